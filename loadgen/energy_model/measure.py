"""Measure an energy profile against a live server: every bin at every batch size, resumable."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen import __version__
from loadgen.client.client import Client
from loadgen.client.server_probe import probe
from loadgen.energy.choose import energy_token, open_meter, source_beside
from loadgen.energy_model.energy_profile import EnergyProfile
from loadgen.energy_model.grid_measurement import measure_grid
from loadgen.energy_model.profiling_plan import (
    StoppingRule,
    journal,
    journal_path,
    measurement_order,
    read_journal,
)
from loadgen.energy_model.profiling_session import ProfilingSession
from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from loadgen.energy.meter import EnergyMeter
    from loadgen.energy_model.waves import RequestShape
    from loadgen.record import Endpoint

_HOW = {
    True: "whole batches against a live server, one after another",
    False: "closed loop against a live server, whole waves, the first one left out",
}
"""Provenance of static and of closed-loop measurements."""


@dataclass(frozen=True)
class ProfileOptions:
    """Options of one profile measurement, as `loadgen profile` takes them."""

    base_url: str
    gpu_name: str
    model: str
    """Name in profiles/models; `served_model` is the server's name for it."""
    api_key: str | None = None
    served_model: str | None = None
    engine: str | None = None
    endpoint: Endpoint = "completions"
    tokenizer: Path | None = None
    energy: str = "auto"
    seed: int = 0
    """Seed of the order of the bins."""
    rule: StoppingRule = field(default_factory=StoppingRule)
    notes: dict[str, str] = field(default_factory=dict)


async def profile_server(
    bins: Sequence[RequestShape],
    batches: Sequence[int],
    out: Path,
    options: ProfileOptions,
    progress: Callable[[str], None],
) -> EnergyProfile:
    """Measure the grid, or what a journal beside `out` does not have yet. `progress` gets a line per grid point.

    Raises LoadgenError if the server, its energy or the journal cannot be used, or if nothing was measured.
    """
    async with Client(options.base_url, api_key=options.api_key, timeout_s=600) as client:
        answers = await probe(
            client,
            options.endpoint,
            {"chat"},
            model=options.served_model,
            tokenizer=options.tokenizer,
            check=lambda server: check_bins_fit(bins, server.max_model_len, server.model),
            say=progress,
            wait=progress,
            announce=progress,
        )
        server = answers.server
        # Not options.seed: a prefix cache would reuse the prompts of an earlier measurement on the same server.
        prompt_seed = secrets.randbits(63)
        session = ProfilingSession(client, server, options.endpoint, answers.vocabularies["chat"], prompt_seed)
        measured_on = {"model": server.model, "engine": server.engine, "endpoint": options.endpoint}
        path = journal_path(out)
        earlier = read_journal(path, measured_on)
        plan = measurement_order(bins, batches, options.seed)
        remaining = [key for key in plan if key not in {point.key for point in earlier}]
        if earlier:
            progress(f"{path}: {len(plan) - len(remaining)} of {len(plan)} cells are there already")
        simulated_at = server.root_url if server.simulated else None
        meter = await asyncio.to_thread(_open_meter, server.base_url, options.energy, simulated_at)
        try:
            with journal(path, measured_on, earlier) as keep:
                points, idle_w = await measure_grid(remaining, session, meter, options.rule, keep, progress)
        finally:
            await asyncio.to_thread(meter.close)
    # The journal of an interrupted measurement may have points that this one does not want.
    points = [point for point in earlier + points if point.key in set(plan)]
    if not points:
        raise LoadgenError("no cell was measured: give it more time with --budget-s")
    rule = options.rule
    provenance: dict[str, Any] = {
        "how": _HOW[rule.static],
        "complete": len(points) == len(plan),
        "served_model": server.model,
        "max_model_len": server.max_model_len,
        "endpoint": options.endpoint,
        "prompt_lengths_from": answers.lengths_from,
        "prompt_seed": prompt_seed,
        "energy": [{"domain": d.name, "source": d.source, "period_s": d.period_s} for d in meter.domains],
        "meter_notes": meter.notes,
        "loadgen": __version__,
        **{key: getattr(rule, key) for key in ("within", "repeat_s", "max_repeats", "cap_s", "settle_s")},
        "seed": options.seed,
        **options.notes,
    }
    return EnergyProfile(
        gpu=options.gpu_name,
        engine=options.engine or ("sim" if server.simulated else server.engine or "unknown"),
        model=options.model,
        simulated=server.simulated,
        idle_w=idle_w,
        provenance=provenance,
        cells=tuple(points),
    )


def check_bins_fit(bins: Sequence[RequestShape], context_tokens: int | None, model: str) -> None:
    """Raise LoadgenError if the longest bin exceeds the model's context; None is an unknown context."""
    longest = max(bins, key=sum)
    if context_tokens is not None and sum(longest) > context_tokens:
        raise LoadgenError(
            f"bin {longest.input}x{longest.output} is longer than {model} takes: {context_tokens} tokens"
        )


def _open_meter(base_url: str, energy: str, simulated_at: str | None) -> EnergyMeter:
    source = source_beside(base_url, energy, simulated_at=simulated_at)
    if source is None:
        raise LoadgenError("the server is on another host: say where its energy is read, with --energy URL")
    meter, reasons = open_meter(source, token=energy_token(energy))
    if meter is None:
        raise LoadgenError("no energy to measure: " + "; ".join(reasons))
    return meter
