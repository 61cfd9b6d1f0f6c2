"""Rows of a study's table, one for each finished run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np

from loadgen.client.redact import redact_setting
from loadgen.energy.gpu_state import GpuState
from loadgen.energy_model.estimate import flops
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.errors import LoadgenError
from loadgen.results.run_folder import RunInfo, read_lines
from loadgen.results.study_table import Row
from loadgen.results.summary import Summary
from loadgen.units import NS_PER_S
from loadgen.workload.schedule import ScheduledRequest

if TYPE_CHECKING:
    from loadgen.study.plan import StudyRun
    from loadgen.study.spec import Study


class RunOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """cell.json, written last: a run that has one is over, and is repeated only if it failed."""

    schema_version: str | None = None
    """Version of this file's format; null in an older version's folder."""
    status: str
    """"done" or "failed"."""
    attempts: int
    """Times that the run was tried."""
    reasons: list[str] = []
    """Reason of each failed attempt."""
    gpus: list[GpuState] = []
    """GPUs before the run."""
    seconds: float = 0.0
    """Time that the last attempt took, in seconds."""


@dataclass(frozen=True)
class FinishedRun:
    """The parts of a run folder that a row needs."""

    info: RunInfo
    summary: Summary
    schedule: Sequence[ScheduledRequest]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read them. FileNotFoundError when run.json or summary.json is gone, LoadgenError when one is damaged."""
        try:
            return cls(
                msgspec.json.decode((folder / "run.json").read_bytes(), type=RunInfo),
                msgspec.json.decode((folder / "summary.json").read_bytes(), type=Summary),
                list(read_lines(folder / "schedule.jsonl", ScheduledRequest)),
            )
        except (msgspec.DecodeError, UnicodeDecodeError) as err:
            raise LoadgenError(f"{folder}: run.json or summary.json is damaged: {err}") from err


def unusable(study: Study, summary: Summary) -> str | None:
    """Return why a run that ended is no result of the study, or None.

    The server died, or more requests failed than a run may have: the load was not the planned one. Where the study
    states limits, failed requests are misses of them, so that an overloaded server has its place in the results; a
    server that completed nothing has none.
    """
    finished, failures = (summary.verdict.check(name) for name in ("finished", "failures"))
    if finished.status == "failed":
        return finished.reason
    if failures.status == "failed" and not (study.goodput and summary.requests.completed):
        return failures.reason
    return None


def row_of(study: Study, run: StudyRun, outcome: RunOutcome, finished: FinishedRun) -> Row:
    """Return the table's row of a run that is done."""
    summary, energy, good = finished.summary, finished.summary.energy, finished.summary.goodput
    measured, output, completed = energy.measured_joules, summary.tokens.output, summary.requests.completed
    ideal = idealized_joules(study, finished.schedule)
    arrival, burstiness = study.arrival_of(run.workload)
    process = f"gamma {burstiness:g}" if arrival == "gamma" else arrival or "streams"
    temperatures = [gpu.temperature_c for gpu in outcome.gpus if gpu.temperature_c is not None]
    bounds = energy.boundary
    return Row(
        cell=run.name,
        server=run.server,
        model=str(finished.info.server["model"]),
        workload=run.workload,
        batch=run.batch,
        rps=run.rps,
        repeat=run.repeat,
        simulated=bool(finished.info.server.get("simulated")),
        completed=completed,
        failed=summary.requests.failed,
        duration_s=summary.duration_s,
        input_tokens=summary.tokens.input,
        output_tokens=output,
        output_tokens_per_s=summary.tokens.output_per_s,
        measured_joules=measured,
        prefill_joules=energy.prefill_joules,
        decode_joules=energy.decode_joules,
        idle_joules=energy.idle_joules,
        unattributed_joules=energy.unattributed_joules,
        mean_watts=energy.mean_watts,
        joules_per_output_token=measured / output if measured is not None and output else None,
        joules_per_request=measured / completed if measured and completed else None,
        **_percentiles(summary),
        goodput_ratio=good.ratio if good else None,
        good_requests_per_joule=good.good / measured if good and measured else None,
        idealized_joules=ideal,
        measured_over_idealized=measured / ideal if measured is not None and ideal else None,
        energy_valid=energy.valid or bool(energy.totals_valid),
        arrival=None if run.rps is None else process,
        steady_joules_per_output_token=energy.steady.joules_per_output_token if energy.steady else None,
        idle_watts=energy.idle_watts,
        **_met_ratios(summary),
        verdict=summary.verdict.status,
        remarks="; ".join(summary.verdict.reasons) or None,
        **_origin(finished.info),
        gpu=gpu_names(outcome.gpus) or None,
        temperature_c=max(temperatures, default=None),
        host_joules=energy.host.measured_joules if energy.host else None,
        total_joules=bounds.total_joules if bounds else None,
        co2e_grams=bounds.co2e_grams if bounds else None,
        cost=bounds.cost if bounds else None,
    )


def _percentiles(summary: Summary) -> dict[str, Any]:
    """Return the median and the p99 of each latency by fields of Row. Failed requests count as infinitely late: where
    they reach a percentile, it is unknown."""
    return {
        f"{name}_{key}_s": getattr(spread, f"{key}_with_failures" if spread.left_out else key)
        for name, spread in (("ttft", summary.ttft_s), ("tpot", summary.tpot_s), ("e2e", summary.e2e_s))
        for key in ("p50", "p99")
    }


def _met_ratios(summary: Summary) -> dict[str, Any]:
    """Return the share of all requests that met each limit, by its field in Row."""
    counts = summary.goodput.met if summary.goodput else {}
    return {f"{limit}_met_ratio": met / summary.requests.scheduled for limit, met in counts.items()}


def _origin(info: RunInfo) -> dict[str, Any]:
    """Return when and with what the run was made, by fields of Row."""
    wall_ns = (info.start_ns or info.anchor.monotonic_ns) + info.anchor.offset_ns
    engine = (info.server.get("engine"), info.server.get("engine_version"))
    options = info.config.get("knobs") or {}
    return {
        "started": datetime.fromtimestamp(wall_ns // NS_PER_S, UTC).isoformat(),
        "loadgen_version": info.loadgen_version,
        "engine": " ".join(str(part) for part in engine if part is not None) or None,
        "engine_options": " ".join(redact_setting(name, value) for name, value in options.items()) or None,
        "seed": info.seed,
    }


def gpu_names(gpus: Iterable[GpuState]) -> str:
    """Return each GPU's name and the beginning of its UUID, enough to tell it from others."""
    return ", ".join(f"{gpu.name} ({gpu.uuid[:12]})" for gpu in gpus)


def idealized_joules(study: Study, requests: Sequence[ScheduledRequest]) -> float | None:
    """Return limit_w / peak_flops x FLOPs of the requested lengths, attention's included.

    That is all work at the dense peak rate and the power limit (arXiv 2504.17674, section 4.2). None when the study
    names no hardware.
    """
    if study.idealized is None:
        return None
    hardware, model = read_hardware(study.idealized.hardware), read_model(study.idealized.model)
    inputs = np.array([request.input_tokens for request in requests])
    outputs = np.array([request.output_tokens for request in requests])
    return float(flops(inputs, outputs, model).sum()) * hardware.limit_w / hardware.peak_flops
