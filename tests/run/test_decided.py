"""A run whose judge has seen enough ends early, whole, and leaves nothing to the server."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadgen.results.summarize import load_run
from loadgen.run.config import RunConfig
from loadgen.run.interrupts import run_replay
from loadgen.run.progress import NullView, Tallies
from loadgen.run.settle import answers, wait_until_at_rest
from loadgen.servers.launcher import served
from loadgen.workload.schedule import Schedule, ScheduledRequest


@pytest.fixture(scope="module")
def slow() -> Iterator[str]:
    """A server that answers one request at a time."""
    with served("sim", "--engine-option", "max_num_seqs=1") as url:
        yield url


def overload(seconds: int) -> Schedule:
    """Forty requests a second, each of which takes about a second."""
    requests = tuple(
        ScheduledRequest(index=i, offset_ns=i * 25_000_000, workload="chat", input_tokens=20, output_tokens=150)
        for i in range(40 * seconds)
    )
    return Schedule(requests, "constant", 40.0, 0)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_decided_is_complete_and_the_server_at_rest(slow: str, tmp_path: Path, processes: int) -> None:
    seen: list[Tallies] = []

    def judge(tallies: Tallies, elapsed_s: float) -> bool:
        seen.append(tallies)
        return tallies.overdue >= 20

    config = RunConfig(base_url=slow, out=tmp_path / "run", energy="none", goodput={"ttft": 50.0}, processes=processes)
    run_replay(overload(10), config, NullView(), judge=judge)
    run = load_run(config.out)
    assert run.info.stopped_by == "decided"
    assert len(run.records) == 400
    assert seen[-1].limited + seen[-1].overdue < 200
    errors = Counter(record.error for record in run.records)
    assert errors["not_sent"] > 200
    assert errors["cancelled"] >= 20
    assert set(errors) <= {None, "not_sent", "cancelled"}
    assert run.summary is not None
    assert run.summary.verdict.check("finished").status == "ok"
    assert run.summary.verdict.check("failures").status in ("ok", None)
    assert wait_until_at_rest(slow.removesuffix("/v1"), None, 5.0)


def test_a_run_that_its_judge_lets_pass_is_as_without_one(slow: str, tmp_path: Path) -> None:
    schedule = Schedule(overload(1).requests[:2], "constant", 40.0, 0)
    config = RunConfig(base_url=slow, out=tmp_path / "run", energy="none", goodput={"ttft": 60_000.0})
    elapsed: list[float] = []

    def judge(tallies: Tallies, elapsed_s: float) -> bool:
        elapsed.append(elapsed_s)
        return tallies.overdue > 0

    run_replay(schedule, config, NullView(), judge=judge)
    assert load_run(config.out).info.stopped_by == "completed"
    assert elapsed == sorted(elapsed)
    assert len(elapsed) >= 2


def test_requests_past_a_limit_of_their_end_are_overdue_too(slow: str, tmp_path: Path) -> None:
    config = RunConfig(base_url=slow, out=tmp_path / "run", energy="none", goodput={"e2el": 1.0})
    run_replay(overload(3), config, NullView(), judge=lambda tallies, _: tallies.overdue >= 3)
    assert load_run(config.out).info.stopped_by == "decided"


def test_a_server_is_known_to_answer_whatever_it_says(slow: str) -> None:
    assert answers(slow)
    assert answers(f"{slow}/no/such/page")
    assert not answers("http://127.0.0.1:9/v1")
    assert wait_until_at_rest("http://127.0.0.1:9", None, 5.0), "no page says otherwise"
