"""Several processes send one schedule: nothing is lost, doubled or moved, whatever becomes of a process."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.results import run_folder
from loadgen.run.config import RunConfig
from loadgen.run.process_stats import SendingCost, merge_costs
from loadgen.run.processes import check_sending, split_cap, split_requests
from loadgen.servers.launcher import served
from loadgen.stats.distributions import index_of_dispersion, ks_exponential
from loadgen.workload.schedule import ScheduledRequest
from support.fake_api import BurstServer

ROOT = Path(__file__).parents[2]


def request(index: int, session_id: str | None = None) -> ScheduledRequest:
    return ScheduledRequest(
        index=index, offset_ns=index, workload="chat", input_tokens=1, output_tokens=1, session_id=session_id
    )


@given(st.lists(st.none() | st.sampled_from("abcdef")), st.integers(1, 7))
def test_shares_are_the_schedule_and_sessions_stay_whole(sessions: list[str | None], processes: int) -> None:
    requests = [request(i, session) for i, session in enumerate(sessions)]
    shares = split_requests(requests, processes)
    assert len(shares) == processes
    assert sorted(one.index for share in shares for one in share) == list(range(len(requests)))
    for share in shares:
        assert [one.index for one in share] == sorted(one.index for one in share)
    homes = {(one.session_id, k) for k, share in enumerate(shares) for one in share if one.session_id}
    assert len(homes) == len({session for session, _ in homes})


def test_a_session_that_follows_another_on_its_lane_stays_in_that_one_s_process() -> None:
    firsts = [request(i, f"s{i}") for i in range(3)]
    later = [msgspec.structs.replace(request(3 + i, f"t{i}"), after=(i,)) for i in range(3)]
    assert split_requests([*firsts, *later], 2) == [
        (firsts[0], firsts[2], later[0], later[2]),
        (firsts[1], later[1]),
    ]


def test_without_sessions_every_nth_request_is_a_process_s() -> None:
    requests = [request(i) for i in range(10)]
    assert split_requests(requests, 3) == [tuple(requests[k::3]) for k in range(3)]


@pytest.mark.parametrize(("cap", "parts"), [(None, [None] * 3), (3, [1, 1, 1]), (8, [3, 3, 2])])
def test_a_cap_is_split_exactly(cap: int | None, parts: list[int | None]) -> None:
    assert split_cap(cap, 3) == parts


@given(st.integers(1, 40), st.integers(0, 1000))
def test_the_parts_of_a_cap_sum_to_it_and_differ_by_one_at_most(processes: int, surplus: int) -> None:
    parts = [part or 0 for part in split_cap(processes + surplus, processes)]
    assert (len(parts), sum(parts)) == (processes, processes + surplus)
    assert max(parts) - min(parts) <= 1 and min(parts) >= 1


@pytest.mark.parametrize(
    ("options", "requests", "message"),
    [
        ({"processes": 3, "max_concurrency": 2}, 9, "cannot be split over --processes 3"),
        ({"processes": 3, "max_concurrency": 2}, 2, None),  # no more processes than requests
        ({"processes": 3, "max_concurrency": 3}, 9, None),
        ({"processes": 3}, 9, None),
        ({"otlp": "localhost:9478"}, 9, "is no URL of a sidecar|sidecar"),
    ],
)
def test_options_that_cannot_be_sent_with_are_refused(
    options: dict[str, Any], requests: int, message: str | None
) -> None:
    config = RunConfig(out=Path("run"), base_url="http://host/v1", **options)
    with pytest.raises(LoadgenError, match=message) if message else nullcontext():
        check_sending(config, requests)


def test_a_cap_below_the_number_of_processes_is_refused() -> None:
    with pytest.raises(LoadgenError, match="--max-concurrency 2 cannot be split over --processes 3"):
        split_cap(2, 3)


def test_costs_add_up_and_delays_are_pooled() -> None:
    told = {"sent": 3, "lost": 1, "last_error": None}
    costs = [
        SendingCost(1.0, 10, array("q", [1, 2]), 0.1, "kernel", told),
        SendingCost(0.5, 20, array("q", [3]), 0.3, "kernel", told | {"last_error": "it answered 503"}),
        SendingCost(0.25, 5, array("q"), None, None, None),
    ]
    whole = merge_costs(costs)
    assert (whole.cpu_s, whole.max_rss_bytes, list(whole.late_ns)) == (1.75, 35, [1, 2, 3])
    assert whole.spans == {"sent": 6, "lost": 2, "last_error": "it answered 503"}
    assert (whole.waited_s, whole.stamped_by) == (0.3, "kernel")
    assert merge_costs([*costs, replace(costs[0], stamped_by="reading")]).stamped_by == "reading"
    assert merge_costs(costs[2:]).spans is merge_costs(costs[2:]).waited_s is None


# -- real processes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sim() -> Iterator[str]:
    with served("sim") as url:
        yield url


def start(
    run: Path, url: str, *options: object, outputs: Sequence[int] = (10,), **kwargs: object
) -> "subprocess.Popen[str]":
    """Replay a trace of short requests with `outputs` tokens in turn. It runs in a process group of its own, so that a
    signal can go to all of it, as from a terminal."""
    trace = run.with_suffix(".jsonl")
    lines = ({"timestamp": 100 * i, "input_length": 20, "output_length": outputs[i % len(outputs)]} for i in range(400))
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["replay", trace, "--base-url", url, "--out", run, "--ui", "none", "--energy", "none", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "loadgen", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        process_group=0,
        **kwargs,  # type: ignore[call-overload]
    )


def finished(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=45)
    assert "Traceback" not in err
    return process.returncode, " ".join(out.split()), err


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def records_begun(run: Path) -> bool:
    return any(path.stat().st_size for path in run.glob("records.*.jsonl"))


def workers(parent: int) -> list[int]:
    children = map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def lines(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]


def check_whole(run: Path, scheduled: int) -> None:
    """An ordinary run folder, with exactly one record of every request."""
    assert sorted(str(record["index"]) for record in lines(run)) == sorted(map(str, range(scheduled)))
    assert not list(run.glob("records.*.jsonl"))
    assert (run / "summary.json").exists()


def test_the_merged_run_is_one_run_with_the_schedule_s_arrivals(sim: str, tmp_path: Path) -> None:
    """Dispersion 1, gaps that are exponential and do not follow from each other: workers that drew their own arrivals
    from one seed would have a dispersion of 3, and pairs of gaps of zero."""
    run = tmp_path / "run"
    code, _, _ = finished(
        start(run, sim, "--rps", 200, "--arrival", "poisson", "--num-requests", 400, "--seed", 5, "--processes", 3)
    )
    assert code == 0
    check_whole(run, 400)
    result = run_folder.read_run(run)
    offsets_ns = [record.scheduled_ns - (result.info.start_ns or 0) for record in result.records]
    assert offsets_ns == [request.offset_ns for request in result.schedule]
    assert all(record.sent_ns is not None and record.sent_ns >= record.scheduled_ns for record in result.records)
    instants_s = np.sort(offsets_ns) / 1e9
    gaps_s = np.diff(instants_s)
    dispersion = index_of_dispersion(instants_s, 0.075)
    assert dispersion is not None and 0.4 < dispersion < 1.8
    assert abs(np.corrcoef(gaps_s[:-1], gaps_s[1:])[0, 1]) < 0.2
    assert ks_exponential(gaps_s)[0] < 0.15
    by_end = np.argsort([record.finished_ns for record in result.records])
    moved = np.abs(np.argsort([record["index"] for record in lines(run)]) - np.argsort(by_end))
    assert np.median(moved) < 20, "in the order in which they ended, but for those that were read together"
    assert [outcome["requests"] for outcome in result.info.instrument["processes"]] == [134, 133, 133]
    assert {outcome["ended"] for outcome in result.info.instrument["processes"]} == {"completed"}


def test_every_process_tells_the_sidecar_of_its_own_requests(sim: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with BurstServer(("127.0.0.1", 0), Collector) as sidecar:
        threading.Thread(target=sidecar.serve_forever, args=(0.02,), daemon=True).start()
        otlp = f"http://127.0.0.1:{sidecar.server_port}"
        code, _, err = finished(start(run, sim, "--rps", 100, "--num-requests", 20, "--processes", 2, "--otlp", otlp))
        sidecar.shutdown()
    assert (code, err) == (0, "")
    assert run_folder.read_run(run).info.instrument["spans"] == {"sent": 20, "lost": 0, "last_error": None}


class Collector(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_killed_process_costs_its_own_requests_only(sim: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, sim, "--rps", 40, "--num-requests", 90, "--processes", 3)
    wait_for(lambda: records_begun(run))
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    code, out, _ = finished(process)
    assert code == 1  # a share of the requests is lost, which is more than --max-failed
    check_whole(run, 90)
    lost = [record for record in lines(run) if record["error"]]
    assert {int(str(record["index"])) % 3 for record in lost} == {1}
    assert {record["detail"] for record in lost} == {"no record: process 2 of 3 ended early (killed by signal 9)"}
    start_ns = run_folder.read_run(run).info.start_ns or 0
    assert all(int(str(record["scheduled_ns"])) >= start_ns for record in lost)
    assert f"process 2 of 3 ended early (killed by signal 9): {len(lost)} of its 30 requests" in out


def test_ctrl_c_at_the_terminal_drains_and_a_second_aborts(sim: str, tmp_path: Path) -> None:
    """Every second request is in flight for many seconds when the second Ctrl-C comes."""
    for presses, outputs, run in ((1, (10,), tmp_path / "once"), (2, (10, 2000), tmp_path / "twice")):
        process = start(run, sim, "--rps", 8, "--num-requests", 200, "--processes", 2, outputs=outputs)
        wait_for(lambda run=run: records_begun(run))
        for _ in range(presses):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.1)
        code, _, _ = finished(process)
        assert code == 130
        check_whole(run, 200)
        errors = {record["error"] for record in lines(run)}
        assert errors == {None, "not_sent"} | ({"cancelled"} if presses == 2 else set())
        assert run_folder.read_run(run).info.stopped_by == ("interrupted", "aborted")[presses - 1]


def test_workers_end_with_their_parent_and_leave_a_folder_that_can_be_reported(sim: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, sim, "--rps", 8, "--num-requests", 200, "--processes", 2)
    wait_for(lambda: records_begun(run))
    ours = workers(process.pid)
    process.kill()
    process.communicate(timeout=45)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ours))
    records = run_folder.read_run(run).records
    assert len(records) == 200
    assert any(record.ok for record in records)


def test_a_full_disk_ends_the_run_with_one_line(sim: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    full = 40_000  # bytes: schedule.jsonl fits, two shares of records do not

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, full))

    process = start(run, sim, "--rps", 100, "--num-requests", 150, "--processes", 2, outputs=(60,), preexec_fn=limit)
    code, _, err = finished(process)
    assert code == 2
    assert err == f"loadgen: cannot write the run folder {run}: File too large\n"
    assert run_folder.read_run(run).records


def test_a_cap_that_cannot_be_split_is_refused_before_the_run(sim: str, tmp_path: Path) -> None:
    code, _, err = finished(start(tmp_path / "run", sim, "--processes", 3, "--max-concurrency", 2))
    assert code == 2
    assert "cannot be split over --processes 3" in err
    assert not (tmp_path / "run").exists()
