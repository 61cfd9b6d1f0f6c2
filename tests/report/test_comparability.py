"""Which runs are set side by side, and what is said of the others."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from loadgen.report.comparability import ALLOWED, Objection, objections
from loadgen.results.run_folder import RunResult
from loadgen.workload.schedule import ArrivalSpec
from support import sample_runs


def run(failing: float = 0, stopped_by: str | None = "completed", **info: Any) -> RunResult:
    made = sample_runs.run(num_requests=30, failing=failing)
    assert made.summary is not None
    changed = msgspec.structs.replace(made.info, stopped_by=stopped_by, **info)
    summary = msgspec.structs.replace(made.summary, stopped_by=stopped_by)
    return sample_runs.judged(replace(made, info=changed, summary=summary))


def raised(*runs: RunResult, allowed: tuple[str, ...] = ()) -> list[Objection]:
    return objections(runs, "ABCDEF"[: len(runs)], allowed)


BASE = run()
CONFIG = BASE.info.config


@pytest.mark.parametrize(
    ("result", "kind", "text"),
    [
        (run(failing=0.5), "failed", "B failed: failures: "),
        (run(stopped_by="interrupted"), "unfinished", "B did not finish: the run was interrupted: 0 of 30"),
        (run(stopped_by="aborted"), "unfinished", "B did not finish: the run was aborted"),
        (run(stopped_by=None), "unfinished", "B did not finish: the run did not end by itself"),
        (run(requested_rps=8.0), "rate", "B was asked for another rate than A: 8.0 instead of 4.0"),
        (run(seed=8), "seed", "B was asked for another seed than A: 8 instead of 7"),
        (run(server={"model": "m"}), "model", "B was asked for another model than A: m instead of llama-3.1-8b"),
        (run(config=CONFIG | {"trace": "x/code.jsonl"}), "trace", "B was asked for another trace than A: code.jsonl"),
        (run(config=CONFIG | {"max_concurrency": 8}), "concurrency", "than A: 8 instead of no limit of concurrency"),
        (run(config=CONFIG | {"duration_s": 5.0}), "duration", "than A: 5.0 instead of no limit of the duration"),
        (
            run(config=CONFIG | {"num_requests": 5}),
            "requests",
            "A: 5 instead of no limit of requests",
        ),
        (
            run(config=CONFIG | {"endpoint": "completions"}),
            "endpoint",
            "A: completions instead of an unknown endpoint",
        ),
        (
            run(config=CONFIG | {"extra_body": {"top_p": 0.5}}),
            "body",
            'A: {"top_p":0.5} instead of no extra fields',
        ),
        (run(asked=[ArrivalSpec(workload=None, process="poisson", rate_rps=4)]), "arrivals", "A: poisson instead of "),
        (
            run(asked=[ArrivalSpec(workload="chat", process="gamma", rate_rps=4, burstiness=0.5, sessions=True)]),
            "arrivals",
            "A: chat: gamma, burstiness 0.5, sessions True instead of ",
        ),
        (run(schedule_sha256="0"), "schedule", "B was asked for another schedule than A"),
        (replace(run(schedule_sha256="0"), schedule=BASE.schedule[1:]), "lengths", "B was asked for other lengths"),
    ],
)
def test_a_run_that_did_not_finish_or_failed_or_differs_is_named_once_and_can_be_allowed(
    result: RunResult, kind: str, text: str
) -> None:
    (objection,) = raised(BASE, result)
    assert objection.kind == kind and text in objection.text
    assert kind in ALLOWED
    assert raised(BASE, result, allowed=(kind,)) == []
    of_what_was_asked = kind not in ("failed", "unfinished")
    assert (raised(BASE, result, allowed=("different",)) == []) is of_what_was_asked


def test_the_same_again_is_comparable_and_so_is_what_only_the_machine_changed() -> None:
    assert raised(BASE, run(), run(host={"hostname": "b"}, config=CONFIG | {"base_url": "http://b", "out": "x"})) == []


def test_the_first_run_is_held_to_the_same_and_differences_are_to_it() -> None:
    texts = [objection.text for objection in raised(run(stopped_by=None, seed=8), BASE, run(seed=8))]
    assert [text[0] for text in texts] == ["A", "B"] and "seed" in texts[1]


def test_a_run_alone_is_judged_by_itself() -> None:
    assert raised(BASE) == [] and [objection.kind for objection in raised(run(failing=0.5))] == ["failed"]
