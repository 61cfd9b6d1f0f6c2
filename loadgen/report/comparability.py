"""Objections against setting runs side by side: one did not finish, one failed, or different things were asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from loadgen.report.format import clean
from loadgen.report.run_facts import summary_of, verdict_remarks

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunInfo, RunResult


class Objection(NamedTuple):
    """A reason against comparing runs. `kind` is what --allow takes to compare them all the same."""

    kind: str
    text: str


def _arrivals(info: RunInfo) -> Any:
    """Return the requested processes without their rates, which are compared by themselves."""
    return [msgspec.to_builtins(msgspec.structs.replace(spec, rate_rps=None)) for spec in info.asked]


ASKED: dict[str, Callable[[RunInfo], Any]] = {
    "trace": lambda info: PurePath(str(info.config.get("trace") or "")).name or None,
    "rate": lambda info: info.requested_rps,
    "arrivals": _arrivals,
    "duration": lambda info: info.config.get("duration_s"),
    "requests": lambda info: info.config.get("num_requests"),
    "seed": lambda info: info.seed,
    "model": lambda info: info.server.get("model"),
    "endpoint": lambda info: info.config.get("endpoint"),
    "concurrency": lambda info: info.config.get("max_concurrency"),
    "body": lambda info: info.config.get("extra_body") or None,
}
"""Options that make an experiment, by name. Two runs that differ in one of them are two experiments."""

ALLOWED = ("unfinished", "failed", "different", *ASKED, "lengths", "schedule")
"""Values of --allow: `different` is everything that was asked."""


def objections(results: Sequence[RunResult], letters: Sequence[str], allowed: Sequence[str] = ()) -> list[Objection]:
    """Return the reasons against comparing these runs with the first of them, without those that are allowed."""
    named = list(zip(results, letters, strict=True))
    faults = [objection for result, letter in named for objection in _faults(result, letter)]
    differences = [objection for result, letter in named[1:] for objection in _differences(results[0], result, letter)]
    raised = faults if "different" in allowed else [*faults, *differences]
    return [objection for objection in raised if objection.kind not in allowed]


def _faults(result: RunResult, letter: str) -> list[Objection]:
    """Return how the run ended if not by itself, and the failed checks of its verdict."""
    summary = summary_of(result)
    finished = summary.verdict.check("finished")
    faults = [remark.text for remark in verdict_remarks(summary) if remark.status == "failed"]
    if finished.status == "ok":
        return [Objection("failed", f"{letter} failed: {text}") for text in faults]
    unfinished = Objection("unfinished", f"{letter} did not finish: {clean(finished.reason)}")
    others = [text for text in faults if not text.startswith("finished: ")]
    return [unfinished, *(Objection("failed", f"{letter} failed: {text}") for text in others)]


def _differences(base: RunResult, result: RunResult, letter: str) -> list[Objection]:
    """Return each difference in what was asked. Schedules are compared only where all options are the same."""
    pairs = [(name, read(base.info), read(result.info)) for name, read in ASKED.items()]
    differences = [
        Objection(
            name,
            f"{letter} was asked for {'other' if name.endswith('s') else 'another'} {name} than A: {_text(asked)}, "
            f"not {_text(of_base)}",
        )
        for name, of_base, asked in pairs
        if asked != of_base
    ]
    if differences or base.info.schedule_sha256 == result.info.schedule_sha256:
        return differences
    lengths, of_base = ([(r.input_tokens, r.output_tokens) for r in run.schedule] for run in (result, base))
    kind, noun = ("schedule", "another schedule") if lengths == of_base else ("lengths", "other lengths")
    return [Objection(kind, f"{letter} was asked for {noun} than A, though all options are the same")]


def _text(value: Any) -> str:
    plain = value if isinstance(value, str | int | float) else msgspec.json.encode(value).decode()
    return "none" if value is None else clean(plain, 80)
