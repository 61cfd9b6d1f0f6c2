"""Objections against setting runs side by side: one did not finish, one failed, or different things were asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from loadgen.report.format import clean
from loadgen.report.run_facts import summary_of, verdict_remarks
from loadgen.workload.schedule import ArrivalSpec

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

ABSENT = {
    "rate": "no stated rate",
    "duration": "no limit of the duration",
    "requests": "no limit of requests",
    "concurrency": "no limit of concurrency",
    "endpoint": "an unknown endpoint",
    "model": "an unknown model",
    "body": "no extra fields",
}
"""Words for an option that a run does not have, by name."""

REPEATS = ("seed", "lengths", "schedule")
"""Options in which repeats of one experiment differ."""

ALLOWED = ("unfinished", "failed", "different", *ASKED, "lengths", "schedule")
"""Values of --allow: `different` is everything that was asked."""


def objections(results: Sequence[RunResult], letters: Sequence[str], allowed: Sequence[str] = ()) -> list[Objection]:
    """Return the reasons against comparing these runs with the first of them, without those that are allowed."""
    named = list(zip(results, letters, strict=True))
    faults = [objection for result, letter in named for objection in _faults(result, letter)]
    pairs = [_differences(results[0], result, (letters[0], letter)) for result, letter in named[1:]]
    differences = [objection for pair in pairs for objection in pair]
    raised = faults if "different" in allowed else [*faults, *differences]
    return [objection for objection in raised if objection.kind not in allowed]


def objections_of_sides(
    sides: Sequence[Sequence[RunResult]], letters: Sequence[str], allowed: Sequence[str] = ()
) -> list[Objection]:
    """Return the reasons against comparing sides, of which each is a run or its repeats.

    Repeats of a side differ in the seed, and so in the schedule. The i-th runs of two sides are held against each
    other; a side with more runs than the first, by all else.
    """
    if all(len(side) == 1 for side in sides):
        return objections([side[0] for side in sides], letters, allowed)
    names = [[f"{letter}{i}" for i in range(1, len(side) + 1)] for letter, side in zip(letters, sides, strict=True)]
    repeats = [*allowed, *REPEATS]
    raised = [objection for side, of in zip(sides, names, strict=True) for objection in objections(side, of, repeats)]
    for side, of in zip(sides[1:], names[1:], strict=True):
        same = allowed if len(side) == len(sides[0]) else repeats
        for base, base_name, run, name in zip(sides[0], names[0], side, of, strict=False):
            faultless = [*same, "unfinished", "failed"]  # stated once, above
            raised += objections([base, run], [base_name, name], faultless)
    return raised


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


def _differences(base: RunResult, result: RunResult, letters: tuple[str, str]) -> list[Objection]:
    """Return each difference in what was asked. Schedules are compared only where all options are the same."""
    pairs = [(name, read(base.info), read(result.info)) for name, read in ASKED.items()]
    differences = [
        Objection(
            name,
            f"{letters[1]} was asked for {'other' if name.endswith('s') else 'another'} {name} than {letters[0]}: "
            f"{_text(name, asked)} instead of {_text(name, of_base)}",
        )
        for name, of_base, asked in pairs
        if asked != of_base
    ]
    if differences or base.info.schedule_sha256 == result.info.schedule_sha256:
        return differences
    lengths, of_base = ([(r.input_tokens, r.output_tokens) for r in run.schedule] for run in (result, base))
    kind, noun = ("schedule", "another schedule") if lengths == of_base else ("lengths", "other lengths")
    return [Objection(kind, f"{letters[1]} was asked for {noun} than {letters[0]}, though all options are the same")]


def _arrival_text(spec: dict[str, Any]) -> str:
    """Return the process of a stream with what is not usual in it, such as "chat: gamma, burstiness 0.5"."""
    usual = msgspec.to_builtins(ArrivalSpec(workload=None, process="poisson", rate_rps=None))
    stated = [f"{field} {clean(spec[field])}" for field in usual if field not in _NAMES and spec[field] != usual[field]]
    stream = f"{clean(spec['workload'])}: " if spec["workload"] else ""
    return clean(f"{stream}{', '.join([spec['process'], *stated])}", 80)


_NAMES = ("workload", "process")


def _text(name: str, value: Any) -> str:
    if value is None:
        return ABSENT.get(name, f"no {name}")
    if name == "arrivals":
        return "; ".join(_arrival_text(spec) for spec in value) or "unknown ones"
    plain = value if isinstance(value, str | int | float) else msgspec.json.encode(value).decode()
    return clean(plain, 80)
