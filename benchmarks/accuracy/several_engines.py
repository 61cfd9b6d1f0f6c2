"""Condense runs against one or two engines to the numbers of docs/results/several-engines.md.

    python -m benchmarks.accuracy.several_engines FOLDER > docs/results/h200-2026/several-engines.json

FOLDER holds run folders of `loadgen replay --engine ... --engine ...`: pd-NAME with an engine that computes prompts and
one that generates, duo-NAME with two engines on one GPU, one-NAME with one engine. p.otlp and d.otlp, where they are,
hold what the first and the second engine of all these runs sent to a trace collector: each body after its length in 4
bytes, and one file after another where there were several. Every run folder gets a spans.jsonl of its part of them.

No prompt, instant, machine or path is written.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from loadgen.attribution.beside_others import steps_beside_others
from loadgen.attribution.fit_quality import held_out_r_squared
from loadgen.attribution.foreign_spans import engine_spans
from loadgen.attribution.shapley import RunAttribution
from loadgen.energy.series import EnergySeries
from loadgen.results.energy_summary import accounts_mj, aligned_series
from loadgen.results.engine_parts import EnginePart, engine_parts
from loadgen.results.run_attribution import attribute_run
from loadgen.results.run_folder import RunResult, read_run
from loadgen.results.summarize import analyse_run, span
from loadgen.telemetry.engine_span import EngineSpan
from loadgen.telemetry.otlp_parse import parse_spans
from loadgen.units import MJ_PER_J, NS_PER_MS, NS_PER_S

BODIES = ("p.otlp", "d.otlp")
COUNTERS = ("prompt_tokens", "cached_tokens", "generation_tokens", "iterations", "preemptions")
SETTLED_NS = 300 * NS_PER_MS
"""Time after a request in which its joules still reach the counter."""
APART_NS = SETTLED_NS + 100 * NS_PER_MS
"""Time without a request that parts two bursts: that, and one move of the counter."""
REST_NS = 500 * NS_PER_MS
"""Time after a request from which an engine is at rest."""


def in_order(path: Path) -> tuple[str, bool, list[int]]:
    """Sort runs by their kind, those without a load first, and then by load and seed."""
    kind, _, rest = path.name.partition("-")
    return kind, rest.startswith("load"), [int(number) for number in re.findall(r"\d+", rest)]


def bodies(data: bytes) -> Iterator[bytes]:
    """Yield the bodies of a file; half a last one is left out."""
    at = 0
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if at + 4 + size <= len(data):
            yield data[at + 4 : at + 4 + size]
        at += 4 + size


def read_spans(path: Path) -> list[EngineSpan]:
    """Return what an engine sent of its requests; nothing if there is no such file."""
    sent = bodies(path.read_bytes()) if path.exists() else ()
    return [made for body in sent for made in engine_spans(parse_spans(body).spans)]


def spans_of_run(result: RunResult, sent: Sequence[Sequence[EngineSpan]]) -> list[EngineSpan]:
    """Return the spans of a run, under the names of its engines: those in the time of its energy samples, of any
    client. sent: by each engine, in the order of the run's engines."""
    ahead_ns = result.info.anchor.offset_ns
    instants = [sample.t_ns + ahead_ns for sample in result.energy]
    first_ns, last_ns = min(instants), max(instants)
    return [
        msgspec.structs.replace(made, engine=engine.name)
        for engine, of_engine in zip(result.info.engines, sent, strict=False)
        for made in of_engine
        if made.end_ns >= first_ns and made.arrival_ns <= last_ns
    ]


def condense(result: RunResult) -> dict[str, Any]:
    """Return the numbers of a run. ValueError without energy."""
    start_ns, end_ns = span(result)
    attribution, series = attribute_run(result, start_ns, end_ns)
    summary = analyse_run(result).summary
    if attribution is None or summary is None:
        raise ValueError("the run has no energy")
    shares = {share.index: share for share in attribution.requests}
    is_split = any(engine.role for engine in result.info.engines)
    parts = engine_parts(result)
    return {
        "engine_version": result.info.server.get("engine_version"),
        "devices": sorted({domain.device or domain.source for domain in result.info.domains}),
        "seed": result.info.seed,
        "duration_s": round(summary.duration_s, 3),
        "requests": len(result.records),
        "completed": sum(record.ok for record in result.records),
        "tokens": {"input": summary.tokens.input, "output": summary.tokens.output},
        "spans": sum(made.id.startswith(f"{result.info.run_id}-") for made in result.spans),
        "latency_ms": {
            name: [round(value * 1e3, 2) for value in (latency.p50, latency.p95) if value is not None]
            for name, latency in (("ttft", summary.ttft_s), ("tpot", summary.tpot_s))
        },
        "gpus": gpu_accounts(attribution, series, parts, start_ns, end_ns),
        "engines": {part.engine.name: engine_account(result, attribution, part) for part in parts},
        "one_law": one_law(result, parts) if is_split else {},
        "by_counter": {part.engine.name: by_counter(result, part) for part in parts if is_alone(part, parts)},
        "columns": {
            "workload": [record.workload for record in result.records],
            "input_tokens": [record.input_tokens for record in result.records],
            "prefill_j": [shares[record.index].prefill_joules for record in result.records],
            "decode_j": [shares[record.index].decode_joules for record in result.records],
            "engine": [shares[record.index].engine for record in result.records],
        },
    }


def gpu_accounts(
    attribution: RunAttribution, series: Sequence[EnergySeries], parts: Sequence[EnginePart], start_ns: int, end_ns: int
) -> dict[str, Any]:
    """Return the accounts of the GPUs of each engine, or of the engines that share some, by their names. The counter's
    millijoules are taken from the counter, not from the accounts."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for part in parts:
        groups.setdefault(tuple(domain.name for domain in part.result.info.domains), []).append(part.engine.name)
    accounts = {}
    for domains, names in groups.items():
        of_group = attribution if len(groups) == 1 else attribution.engines[names[0]]
        clipped = [domain.clip(start_ns, end_ns) for domain in series if domain.domain in domains]
        idle_w = attribution.engines[names[0]].idle_w
        accounts["+".join(names)] = {
            "counter_mj": sum(domain.total_mj for domain in clipped),
            "seconds": round(max(float(domain.t_ns[-1] - domain.t_ns[0]) / NS_PER_S for domain in clipped), 3),
            **{f"{name}_mj": mj for name, mj in accounts_mj(of_group).items()},
            "idle_w": None if idle_w is None else round(idle_w, 3),
        }
    return accounts


def engine_account(result: RunResult, attribution: RunAttribution, part: EnginePart) -> dict[str, Any]:
    """Return the accounts of one engine, its law, and by how much its counters grew."""
    own, samples = attribution.engines[part.engine.name], result.engines.get(part.engine.name, [])
    held_out, accounts = held_out_r_squared(own.fits), accounts_mj(own)
    return {
        "role": part.engine.role,
        "requests": int((part.probability > 0).sum()),
        "named_by": dict(part.named_by),
        "prefill_mj": accounts["prefill"],
        "decode_mj": accounts["decode"],
        "attributed_se_j": round(own.sums["all"].attributed_se_joules, 3),
        "prefill_se_j": round(own.sums["all"].prefill_se_joules, 3),
        "held_out_r_squared": None if held_out is None else round(held_out, 4),
        "counters": {name: grown(samples, name) for name in COUNTERS},
        "company_j": company_j(result, part, own),
        "before_prefill_ms": before_prefill_ms(result, part),
    }


def before_prefill_ms(result: RunResult, part: EnginePart) -> float | None:
    """Return the median time from a request's arrival at an engine to its prefill, by the spans; None without any."""
    own = [made for made in part.result.spans if made.id.startswith(f"{result.info.run_id}-")]
    waits_ns = [made.prefill_ns - made.arrival_ns for made in own]
    return round(float(np.median(waits_ns)) / NS_PER_MS, 2) if waits_ns else None


def company_j(result: RunResult, part: EnginePart, own: RunAttribution) -> float:
    """Return what prefills would have had beyond their share of the price of a step, had each been alone in its steps:
    that price is divided in equal parts among the members of a step."""
    ahead_ns, records = result.info.anchor.offset_ns, part.result.records
    steps = steps_beside_others(records, part.result.engine, part.result.spans, result.info.run_id, ahead_ns).steps
    members = np.bincount(steps.step)[steps.step[steps.prefilling]]
    return round(float((1 - 1 / members).sum()) * sum(law.step_j for law in own.coefficients), 3)


def grown(samples: Sequence[Mapping[str, Any]], name: str) -> int | None:
    """Return by how much a counter grew over the samples; None where it was not read."""
    if len(samples) < 2 or name not in samples[0] or name not in samples[-1]:
        return None
    return int(samples[-1][name] - samples[0][name])


def one_law(result: RunResult, parts: Sequence[EnginePart]) -> dict[str, Any]:
    """Return how one law over all engines, as of a client that knows of none, divides what each engine's GPUs used."""
    start_ns, end_ns = span(result)
    accounts = {}
    for part in parts:
        info = msgspec.structs.replace(result.info, engines=[], domains=part.result.info.domains)
        attribution, _ = attribute_run(replace(result, info=info, engines={}, spans=[]), start_ns, end_ns)
        if attribution is not None:
            accounts[part.engine.name] = {f"{name}_mj": mj for name, mj in accounts_mj(attribution).items()}
    return accounts


# -- requests between rests, by the counter alone --------------------------------------------------------------------


class Stay(NamedTuple):
    """A request at an engine: its row, when it was sent, and its end there."""

    row: int
    sent_ns: int
    end_ns: int


def stays_of(result: RunResult, part: EnginePart) -> list[Stay]:
    """Return the requests that an engine served, in the order of their sending."""
    ends_ns = [own.finished_ns if served > 0 else None
               for own, served in zip(part.result.records, part.probability, strict=True)]  # fmt: skip
    stays = [
        Stay(row, record.sent_ns, end_ns)
        for row, (record, end_ns) in enumerate(zip(result.records, ends_ns, strict=True))
        if record.sent_ns is not None and end_ns is not None
    ]
    return sorted(stays, key=lambda stay: stay.sent_ns)


def bursts_of(stays: Sequence[Stay]) -> list[list[Stay]]:
    """Cut the requests of an engine where it had none for APART_NS."""
    bursts: list[list[Stay]] = []
    end_ns = 0
    for stay in stays:
        if not bursts or stay.sent_ns > end_ns + APART_NS:
            bursts.append([])
        bursts[-1].append(stay)
        end_ns = max(end_ns, stay.end_ns)
    return bursts


def is_alone(part: EnginePart, parts: Sequence[EnginePart]) -> bool:
    """Return True if an engine served requests, and no other one did on its GPUs."""
    served = [other.result.info.domains for other in parts if other.probability.any()]
    return bool(part.probability.any()) and served.count(part.result.info.domains) == 1


def by_counter(result: RunResult, part: EnginePart) -> dict[str, Any]:
    """Return what an engine's GPU used for each burst of requests, from its counter alone, and its power at rest.

    A burst's joules are from the counter's last update before it to the first one at least SETTLED_NS after its end;
    `seconds` is the time between these updates, `busy_s` that with a request under way. `rest_w`: mean power from
    REST_NS after it to the next burst.
    """
    bursts = bursts_of(stays_of(result, part))
    (series,) = aligned_series(part.result)
    measured = []
    for burst, later in zip_longest(bursts, bursts[1:]):
        next_ns = later[0].sent_ns if later else int(series.t_ns[-1])
        end_ns = max(stay.end_ns for stay in burst)
        until_ns = _first_after(series, end_ns + SETTLED_NS)
        joules, seconds = _between(series, _last_before(series, burst[0].sent_ns), min(until_ns, next_ns))
        rest_j, rest_s = _between(series, _first_after(series, end_ns + REST_NS), _last_before(series, next_ns))
        if joules is None or seconds is None or until_ns > next_ns:
            continue
        rest_w = rest_j / rest_s if rest_j is not None and rest_s else None
        measured.append({
            "rows": [stay.row for stay in burst], "joules": round(joules, 3), "seconds": round(seconds, 3),
            "busy_s": round(busy_s(burst), 3), "rest_w": None if rest_w is None else round(rest_w, 3),
        })  # fmt: skip
    rests = np.array([burst["rest_w"] for burst in measured if burst["rest_w"] is not None])
    return {
        "idle_w": round(float(rests.mean()), 3) if len(rests) else None,
        "idle_se_w": round(float(rests.std(ddof=1) / np.sqrt(len(rests))), 3) if len(rests) > 1 else None,
        "bursts": measured,
    }


def busy_s(burst: Sequence[Stay]) -> float:
    """Return the time in which at least one request of a burst was under way."""
    busy_ns, until_ns = 0, 0
    for stay in burst:
        busy_ns += max(stay.end_ns - max(stay.sent_ns, until_ns), 0)
        until_ns = max(until_ns, stay.end_ns)
    return busy_ns / NS_PER_S


def _between(series: EnergySeries, start_ns: int, end_ns: int) -> tuple[float | None, float | None]:
    mj = series.energy_mj(start_ns, end_ns) if end_ns > start_ns else None
    return (None, None) if mj is None else (mj / MJ_PER_J, (end_ns - start_ns) / NS_PER_S)


def _last_before(series: EnergySeries, t_ns: int) -> int:
    """Return the counter's last update at or before an instant; the instant itself if there is none."""
    row = int(np.searchsorted(series.t_ns, t_ns, side="right")) - 1
    return int(series.t_ns[row]) if row >= 0 else t_ns


def _first_after(series: EnergySeries, t_ns: int) -> int:
    row = int(np.searchsorted(series.t_ns, t_ns, side="left"))
    return int(series.t_ns[row]) if row < len(series) else t_ns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    sent = [read_spans(folder / name) for name in BODIES]
    runs = {}
    for path in sorted((file.parent for file in folder.glob("*/run.json")), key=in_order):
        result = read_run(path)
        spans = spans_of_run(result, sent)
        (path / "spans.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(spans))
        runs[path.name] = condense(replace(result, spans=spans))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(run)}" for name, run in runs.items())
    print(f"{{\n{lines}\n}}")


if __name__ == "__main__":
    main()
