"""The self-test: errors against the timing server's stamps, and the verdict on a plan."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.record import RequestRecord
from loadgen.results.run_folder import RunResult
from loadgen.run.selftest import Capacity, Plan, Selftest, events_per_s, judge_run, max_open, planned_run, timing_errors
from loadgen.run.timing_server import Written
from support import sample_runs

ROOT = Path(__file__).parents[2]
SOME = st.floats(0.5, 500)


@given(st.floats(1, 1000), SOME, SOME, st.floats(0.001, 0.2))
def test_any_two_of_rate_streams_and_gap_give_the_third(
    output: float, rps: float, streams: float, itl_s: float
) -> None:
    by_gap = planned_run(output, rps=rps, streams=None, itl_s=itl_s, ttft_s=0.05)
    assert (by_gap.rps, by_gap.itl_s) == (rps, itl_s)
    by_streams = planned_run(output, rps=None, streams=streams, itl_s=itl_s, ttft_s=0.05)
    assert by_streams.streams == pytest.approx(streams)
    assert by_streams.itl_s == itl_s
    assume(streams / rps > 0.05)
    both = planned_run(output, rps=rps, streams=streams, itl_s=None, ttft_s=0.05)
    assert both.rps == rps
    if output >= 2:
        assert both.streams == pytest.approx(streams)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"rps": 5.0, "streams": 10.0, "itl_s": 0.01}, "give two of them"),
        ({"rps": 100.0, "streams": 1.0, "itl_s": None}, "1 streams at 100 requests/s leave 0.01 s"),
    ],
)
def test_what_cannot_be_planned_is_said(asked: dict[str, float | None], says: str) -> None:
    with pytest.raises(LoadgenError, match=says):
        planned_run(200, ttft_s=0.05, **asked)


def record(sent_ns: int, chunk_ns: list[int]) -> RequestRecord:
    return RequestRecord(
        index=0, workload="chat", scheduled_ns=0, sent_ns=sent_ns, first_token_ns=chunk_ns[0], finished_ns=chunk_ns[-1],
        chunk_ns=chunk_ns,
    )  # fmt: skip


def test_errors_by_hand() -> None:
    seen = record(1_000_000, [51_300_000, 71_100_000, 91_500_000])
    true = Written("a", 1_010_000, 50_000_000, 20_000_000, [51_000_000, 71_000_000, 91_000_000])
    found = timing_errors([(seen, true)])
    assert found.ttft_s.max == pytest.approx(50_300_000e-9 - 49_990_000e-9)
    assert found.itl_s.count == 2
    assert (found.itl_s.mean, found.itl_s.max) == (pytest.approx(0.3e-3), pytest.approx(0.4e-3))
    assert found.arrival_s.max == pytest.approx(10e-6)
    assert (found.token_s.count, found.token_s.max) == (3, pytest.approx(0.5e-3))
    assert events_per_s([true]) == pytest.approx(3 / 0.04)


def test_nothing_answered_has_no_errors() -> None:
    assert timing_errors([]).ttft_s.count == timing_errors([]).itl_s.count == 0
    assert (events_per_s([]), max_open([])) == (0.0, 0)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), max_size=12))
def test_most_open_is_the_most_at_any_instant(spans: list[tuple[int, int]]) -> None:
    records = [record(start, [start + length]) for start, length in spans]
    at_each = [sum(start <= t < start + length for start, length in spans) for t in range(1, 40)]
    assert max_open(records) == max(at_each)


# -- the verdict -----------------------------------------------------------------------------------------------------

CAPACITY = Capacity(requests_per_s=1.0, bulk_events_per_s=1.0, events_per_s=1.0, streams=1.0)


def account(r: RequestRecord, late_ns: int = 0) -> Written:
    """A punctual server's."""
    stamps = [t - late_ns for t in r.chunk_ns]
    return Written("", r.sent_ns or 0, stamps[0], stamps[1] - stamps[0] if len(stamps) > 1 else 0, stamps)


def verdict(made: RunResult, streams: float = 4.0, late_ns: int = 0, cpu_s: float = 1.0) -> Selftest:
    """Of a made-up run, each token of which was read `late_ns` after it was written."""
    truth = {f"{made.info.run_id}-{r.index}": account(r, late_ns) for r in made.records if r.ok}
    info = msgspec.structs.replace(made.info, instrument={"cpu_s": cpu_s})
    planned = Plan(rps=4.0, ttft_s=0.0, itl_s=streams / 4, output_tokens=2)
    return judge_run(replace(made, info=info), truth, planned, 1, CAPACITY)


def test_a_client_that_agrees_with_the_server_is_safe() -> None:
    found = verdict(sample_runs.run(failing=0))
    assert (found.safe, found.reasons) == (True, [])
    assert found.errors.ttft_s.max == found.errors.itl_s.max == 0
    assert found.completed == found.requests == 400


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"late_ns": 6_000_000}, "TTFT is wrong: error p99 6.0 ms"),
        ({"cpu_s": 1e9}, "of a core: more than 80%"),
        ({"streams": 5000.0}, "of 5000 streams were ever open at once"),
    ],
)
def test_each_reason_alone_is_not_safe(options: dict[str, float], says: str) -> None:
    found = verdict(sample_runs.run(failing=0), **options)  # type: ignore[arg-type]
    assert not found.safe
    assert len(found.reasons) == 1
    assert says in found.reasons[0]


def test_a_server_that_was_late_tested_something_else() -> None:
    made = sample_runs.run(failing=0)
    truth = {
        f"{made.info.run_id}-{r.index}": msgspec.structs.replace(account(r), due_ns=r.chunk_ns[0] - 30_000_000)
        for r in made.records
    }
    info = msgspec.structs.replace(made.info, instrument={"cpu_s": 1.0})
    planned = Plan(rps=4.0, ttft_s=0.0, itl_s=0.02, output_tokens=2)
    (reason,) = judge_run(replace(made, info=info), truth, planned, 1, CAPACITY).reasons
    assert reason.startswith("the test's own server was late: p99 30.0 ms")


def test_gaps_that_the_client_moved_and_requests_that_failed_are_not_safe() -> None:
    made = sample_runs.run(failing=0.2)
    rng = np.random.default_rng(3)
    moved = [
        msgspec.structs.replace(r, chunk_ns=r.chunk_ns[:1] + [t + int(rng.integers(20e6)) for t in r.chunk_ns[1:]])
        for r in made.records
    ]
    truth = {f"{made.info.run_id}-{r.index}": account(r) for r in made.records if r.ok}
    info = msgspec.structs.replace(made.info, instrument={"cpu_s": 1.0})
    planned = Plan(rps=4.0, ttft_s=0.0, itl_s=1.0, output_tokens=2)
    found = judge_run(replace(made, info=info, records=moved), truth, planned, 1, CAPACITY)
    assert [reason.split()[-1] for reason in found.reasons[:1]] == ["stamps"]
    assert "requests were not answered" in found.reasons[1]


# -- the command -----------------------------------------------------------------------------------------------------


def selftest(*args: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "loadgen", "selftest", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=55)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_exit_status_is_the_verdict(processes: int) -> None:
    trace = ROOT / "traces" / "chat.jsonl"
    done = selftest(trace, "--rps", 20, "--itl", 2, "--duration", 1, "--processes", processes, "--json")
    assert "Traceback" not in done.stderr
    found = msgspec.json.decode(done.stdout, type=Selftest)
    assert done.returncode == (0 if found.safe else 1)
    assert found.safe is (found.reasons == [])
    assert found.requests == found.completed == 20
    assert found.errors.ttft_s.count == 20
    assert found.capacity.requests_per_s > 0
    assert found.processes == processes


def test_a_plan_that_was_not_reached_is_not_safe_and_says_what_to_do() -> None:
    done = selftest("--streams", 50, "--ttft", 500, "--itl", 1, "--duration", 0.2)
    assert done.returncode == 1
    assert "NOT SAFE" in done.stdout
    assert "ask for a longer --duration" in " ".join(done.stdout.split())


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadgen", "selftest", "--rps", "5", "--itl", "1", "--duration", "30"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    while process.poll() is None and not any(file.stat().st_size for file in tmp_path.glob("*/planned/records.jsonl")):
        time.sleep(0.05)  # until it is running
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=45)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err


def test_a_plan_that_contradicts_itself_is_refused() -> None:
    done = selftest("--streams", 50, "--rps", 3, "--itl", 1)
    assert done.returncode == 2
    assert done.stderr.startswith("loadgen: --rps, --streams and --itl")
    assert done.stdout == ""
