"""The command, as a user runs it: a real process against a real server, and what is left on disk."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from loadgen.cli import main
from loadgen.results import run_folder
from loadgen.results.summarize import analyse_run
from loadgen.results.summary import Summary
from loadgen.servers.launcher import served
from support.fake_api import BurstServer

ROOT = Path(__file__).parents[2]
CHAT = ROOT / "traces" / "chat.jsonl"
CODE = ROOT / "traces" / "code.jsonl"


def loadgen(*args: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadgen", *map(str, args)], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"LOADGEN_IDLE": "0.6"} | (env or {}), timeout=55,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sim() -> Iterator[str]:
    with served("sim") as url:
        yield url


def summary_of(run: Path) -> Summary:
    return msgspec.json.decode((run / "summary.json").read_bytes(), type=Summary)


@pytest.mark.parametrize("trace", [CHAT, CODE], ids=["chat", "code"])
def test_a_replay_is_whole(sim: str, tmp_path: Path, trace: Path) -> None:
    run = tmp_path / "run"
    done = loadgen("replay", trace, "--rps", 16, "--num-requests", 24, "--base-url", sim, "--out", run, "--ui", "none")
    assert done.returncode == 0, done.stderr
    assert "SIMULATED" in done.stdout
    assert {path.name for path in run.iterdir()} == {
        "run.json", "schedule.jsonl", "records.jsonl", "energy.jsonl", "engine.jsonl", "attribution.jsonl",
        "summary.json", "report.html",
    }  # fmt: skip
    engine = [json.loads(line) for line in (run / "engine.jsonl").read_text().splitlines()]
    counters = {"prompt_tokens", "cached_tokens", "generation_tokens", "iterations", "preemptions"}
    assert all({"t_ns", "running", "waiting", "kv_cache_usage", *counters} <= sample.keys() for sample in engine)
    assert json.loads((run / "run.json").read_text())["server"]["metrics"] == {
        "answered": True, "understood": True, "path": "/metrics", "names_of": "vLLM", "reason": None,
    }  # fmt: skip
    summary = summary_of(run)
    assert (summary.requests.scheduled, summary.requests.completed, summary.requests.failed) == (24, 24, 0)
    sent_ns = [json.loads(line)["sent_ns"] for line in (run / "records.jsonl").read_text().splitlines()]
    assert summary.rate.requested_rps == 16
    assert summary.rate.achieved_rps == pytest.approx(23e9 / (max(sent_ns) - min(sent_ns)))
    assert summary.lengths is not None
    assert summary.lengths.output_asked == summary.lengths.output_counted
    assert summary.lengths.input_counted == pytest.approx(summary.lengths.input_asked, rel=0.01)
    assert list(summary.by_workload) == [trace.stem]
    energy = summary.energy
    assert energy.source == "simulated"
    assert None not in (
        energy.measured_joules,
        energy.idle_joules,
        energy.attributed_joules,
        energy.unattributed_joules,
    )
    accounts = [energy.idle_joules, energy.attributed_joules, energy.unattributed_joules]
    assert round(1000 * (energy.measured_joules or 0)) == sum(round(1000 * (joules or 0)) for joules in accounts)
    shares = [json.loads(line)["joules"] for line in (run / "attribution.jsonl").read_text().splitlines()]
    assert round(1000 * sum(shares)) == round(1000 * (energy.attributed_joules or 0))
    assert 100 < (energy.mean_watts or 0) < 700


def test_streams_run_together_and_are_reported_apart(sim: str, tmp_path: Path) -> None:
    """Sessions wait for themselves, the rest is an open loop, and each stream has its joules, limits and verdict."""
    run, mix = tmp_path / "run", tmp_path / "mix.toml"
    mix.write_text(
        f"""
        [talk]
        trace = "{CODE}"
        rps = 6
        arrival = "poisson"
        turns = 2
        think = "exponential:0.2"
        goodput = {{ ttft = 60000 }}
        [edit]
        bins = "azure-2023-code"
        rps = 12
        arrival = "constant"
        files = 3
        """
    )
    done = loadgen("replay", mix, "--duration", 2, "--base-url", sim, "--out", run, "--ui", "none")
    assert done.returncode == 0, done.stderr
    schedule = {r["index"]: r for r in map(json.loads, (run / "schedule.jsonl").read_text().splitlines())}
    records = {r["index"]: r for r in map(json.loads, (run / "records.jsonl").read_text().splitlines())}
    assert records.keys() == schedule.keys()
    turns = [r for r in schedule.values() if r["after"] is not None]
    assert turns
    for turn in turns:
        record, before = records[turn["index"]], records[turn["after"]]
        assert record["scheduled_ns"] == before["finished_ns"] + turn["think_ns"] <= record["sent_ns"]
    summary = summary_of(run)
    assert summary.requests.failed == 0
    assert set(summary.by_workload) == {"talk", "edit"}
    talk, edit = summary.by_workload["talk"], summary.by_workload["edit"]
    assert talk.goodput and talk.goodput.ratio == 1 and edit.goodput is None
    assert talk.arrivals and edit.arrivals and (talk.arrivals.of, edit.arrivals.of) == ("sessions", "requests")
    assert edit.arrivals.scheduled.rate == pytest.approx(12, rel=0.02)
    assert not edit.arrivals.scheduled.faults and not talk.arrivals.scheduled.faults
    assert f"edit: {edit.arrivals.verdict}: constant requests" in " ".join(done.stdout.split())
    joules = sum(part.attributed_joules or 0 for part in (talk, edit))
    assert joules == pytest.approx(summary.energy.attributed_joules, abs=0.002)
    page = (run / "report.html").read_text()
    assert "Arrivals of talk" in page and "Arrivals of edit" in page


def test_joules_agree_with_the_oracle(sim: str, tmp_path: Path) -> None:
    """The bounds are the promise for a run this short. A machine that stands still while the simulator plays only adds
    to the error, so one run of three within the bounds shows that they can be kept."""
    for attempt in range(3):
        errors = errors_by_the_oracle(sim, tmp_path / f"run-{attempt}")
        assert len(errors) == 40
        if np.median(errors) <= 0.03 and np.percentile(errors, 90) <= 0.10:
            return
    raise AssertionError(
        f"median {np.median(errors):.3f}, p90 {np.percentile(errors, 90):.3f} in the last of three runs"
    )


def errors_by_the_oracle(sim: str, run: Path) -> list[float]:
    """Replay 40 requests into `run`; return the relative error of each one's joules against the simulator's account."""
    done = loadgen("replay", CHAT, "--rps", 8, "--num-requests", 40, "--base-url", sim, "--out", run, "--ui", "none")
    assert done.returncode == 0, done.stderr
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    with urllib.request.urlopen(sim.removesuffix("/v1") + "/oracle/requests") as page:
        truth = {row["request_id"]: row["joules"] for row in map(json.loads, page)}
    shares = [json.loads(line) for line in (run / "attribution.jsonl").read_text().splitlines()]
    return [abs(share["joules"] / truth[f"{run_id}-{share['index']}"] - 1) for share in shares]


def test_the_same_folder_gives_the_same_bytes(sim: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    loadgen("replay", CODE, "--rps", 20, "--num-requests", 10, "--base-url", sim, "--out", run, "--ui", "none")
    names = ("summary.json", "attribution.jsonl", "report.html")
    first = {name: (run / name).read_bytes() for name in names}
    assert analyse_run(run_folder.read_run(run)).summary == summary_of(run)
    assert loadgen("report", run).returncode == 0
    assert {name: (run / name).read_bytes() for name in names} == first


def test_serve_sim_starts_and_ends_a_server_of_its_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = loadgen("replay", CODE, "--rps", 20, "--num-requests", 5, "--serve", "sim", "--out", run, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["requests"]["completed"] == 5
    port = json.loads((run / "run.json").read_text())["server"]["base_url"].split(":")[2].split("/")[0]
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)


def test_without_energy_there_are_no_joules_and_it_is_said(sim: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = loadgen(
        "replay", CODE, "--rps", 20, "--num-requests", 5, "--base-url", sim, "--out", run, "--energy", "none"
    )
    assert done.returncode == 0
    assert "--energy none" in done.stdout
    energy = summary_of(run).energy
    assert not energy.valid
    assert energy.reasons == ["energy was turned off (--energy none)"]
    assert energy.measured_joules is energy.joules_per_request is energy.joules_per_output_token is None
    assert not (run / "attribution.jsonl").exists()


# -- interrupts ------------------------------------------------------------------------------------------------------


def interrupted(run: Path, url: str, signals: list[tuple[float, int]], trace: Path = CODE) -> subprocess.Popen[str]:
    """Send signals to a replay once it has a record, each after a pause."""
    command = ["replay", trace, "--rps", 8, "--base-url", url, "--out", run, "--ui", "plain", "--idle", 0.2]
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    wait_for(lambda: (run / "records.jsonl").exists() and (run / "records.jsonl").stat().st_size > 0)
    for pause_s, number in signals:
        time.sleep(pause_s)
        process.send_signal(number)
    process.communicate(timeout=40)
    return process


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_first_ctrl_c_drains(sim: str, tmp_path: Path) -> None:
    process = interrupted(tmp_path / "run", sim, [(0, signal.SIGINT)])
    assert process.returncode == 130
    summary = summary_of(tmp_path / "run")
    assert summary.stopped_by == "interrupted"
    assert summary.requests.scheduled == 2000
    assert summary.requests.completed == summary.requests.sent > 0
    assert set(summary.requests.by_error) == {"not_sent"}
    assert (tmp_path / "run" / "report.html").exists()


def test_a_ctrl_c_before_the_first_request_leaves_a_complete_folder(sim: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "replay", CHAT, "--rps", "4", "--idle", "60", "--base-url", sim,
         "--ui", "none", "--out", run],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for(lambda: (run / "energy.jsonl").exists() and (run / "energy.jsonl").stat().st_size > 0)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    summary = summary_of(run)
    assert summary.requests.by_error == {"not_sent": 2000} and not summary.energy.valid


def test_the_second_ctrl_c_aborts(sim: str, tmp_path: Path) -> None:
    process = interrupted(tmp_path / "run", sim, [(0, signal.SIGINT), (0.05, signal.SIGINT)], trace=CHAT)
    assert process.returncode == 130
    requests = summary_of(tmp_path / "run").requests
    assert requests.completed + requests.failed == 2000


def test_kill_9_leaves_a_folder_that_can_be_reported(sim: str, tmp_path: Path) -> None:
    process = interrupted(tmp_path / "run", sim, [(0.5, signal.SIGKILL)])
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "summary.json").exists()
    done = loadgen("report", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    summary = summary_of(tmp_path / "run")
    assert summary.stopped_by is None
    assert summary.requests.completed > 0
    assert summary.requests.completed + summary.requests.failed == 2000


def test_a_server_killed_in_mid_run_is_data(tmp_path: Path) -> None:
    run = tmp_path / "run"
    server = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "serve", "sim", "--port", "0"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert server.stdout is not None
    with server.stdout as said:
        url = said.readline().split("server: ")[1].split()[0]
        options = ["--rps", 16, "--num-requests", 40, "--base-url", url, "--out", run, "--ui", "none", "--idle", 0.6]
        process = subprocess.Popen(
            [sys.executable, "-m", "loadgen", "replay", str(CHAT), *map(str, options)], stdout=subprocess.PIPE, cwd=ROOT
        )
        wait_for(lambda: (run / "records.jsonl").exists() and (run / "records.jsonl").stat().st_size > 0)
        server.kill()
        server.wait()
    process.communicate(timeout=40)
    assert process.returncode == 1
    summary = summary_of(run)
    assert summary.requests.completed + summary.requests.failed == 40
    assert set(summary.requests.by_error) <= {"connect", "truncated"}
    assert summary.requests.failed > 0
    assert not summary.energy.valid


# -- what is refused before anything happens -------------------------------------------------------------------------


class OddServer(BaseHTTPRequestHandler):
    """Answers every GET with the server's `answer`, and wants a key when that says so."""

    def do_GET(self) -> None:
        status, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def odd_server() -> Iterator[BurstServer]:
    with BurstServer(("127.0.0.1", 0), OddServer) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


ODD_ANSWERS = [
    ((401, b'{"error":"key?"}'), "wants an API key (401: key?): set OPENAI_API_KEY"),
    ((404, b""), "cannot tell which model"),
    ((200, b"<html>hello</html>"), "cannot tell which model"),
    ((200, b'{"data":[]}'), "cannot tell which model"),
    ((200, b'{"data":[{"id":"a"},{"id":"b"}]}'), "has 2 models (a, b); choose one with --model"),
    ((500, b'{"error":{"message":"no GPU"}}'), "500, no GPU"),
]


@pytest.mark.parametrize(("answer", "says"), ODD_ANSWERS, ids=[says for _, says in ODD_ANSWERS])
def test_a_server_that_is_not_as_asked(
    odd_server: Any, tmp_path: Path, answer: tuple[int, bytes], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    odd_server.answer = answer
    url = f"http://127.0.0.1:{odd_server.server_port}/v1"
    refused(here(capsys, "replay", CHAT, "--base-url", url, "--out", tmp_path / "run"), says)
    assert not (tmp_path / "run").exists()


def here(capsys: pytest.CaptureFixture[str], *args: object) -> subprocess.CompletedProcess[str]:
    """Run the command in this process: a start of Python takes longer than all else."""
    with pytest.raises(SystemExit) as exit_:
        main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return subprocess.CompletedProcess(args, int(exit_.value.code or 0), out, err)


def refused(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


GOOD_LINE = '{"timestamp":0,"input_length":10,"output_length":5}\n'

BAD_TRACES = [
    ("", "t.jsonl"),
    ("{\n", "t.jsonl:1"),
    (GOOD_LINE + "nonsense\n", "t.jsonl:2"),
    ('{"timestamp":0,"input_length":-1,"output_length":5}\n', "t.jsonl:1"),
    ('{"timestamp":0,"input_length":10,"output_length":0}\n', "t.jsonl:1"),
    ('{"timestamp":NaN,"input_length":10,"output_length":5}\n', "t.jsonl:1"),
    ('{"timestamp":9,"input_length":1,"output_length":5}\n' + GOOD_LINE, "t.jsonl:2"),
]


@pytest.mark.parametrize(("text", "says"), BAD_TRACES, ids=range(len(BAD_TRACES)))
def test_bad_traces_are_refused_with_file_and_line(
    tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text(text)
    refused(here(capsys, "replay", trace, "--serve", "sim", "--out", tmp_path / "run"), says)
    assert not (tmp_path / "run").exists()


BAD_OPTIONS = [
    (["no-such-trace.jsonl"], "no-such-trace.jsonl"),
    ([CHAT, "--rps", "0"], "0"),
    ([CHAT, "--rps", "nan"], "nan"),
    ([CHAT, "--arrival", "weekly"], "weekly"),
    ([CHAT, "--goodput", "ttft:fast"], "fast"),
    ([CHAT, "--goodput", "speed:3"], "speed"),
    ([CHAT, "--extra-body", "{"], "--extra-body"),
    ([CHAT, "--extra-body", "[1]"], "--extra-body"),
    ([CHAT, "--header", "nothing"], "nothing"),
    ([CHAT, "--num-requests", "5000"], "--num-requests 5000"),
    ([CHAT, "--serve", "nobody"], "nobody"),
    ([CHAT, "--base-url", "localhost:8000"], "http://localhost:8000/v1"),
    ([CHAT, "--base-url", "http://127.0.0.1:1/v1"], "no server at http://127.0.0.1:1/v1 (Connection refused)"),
    ([CHAT, "--no-such-flag"], "--no-such-flag"),
    (["--duration", "5"], "nothing to replay"),
    ([CHAT, "--stream", "code:1"], "and --stream: give a trace, or streams"),
    (["--stream", "chat:3", "--rps", "4"], "--rps is shared out by weight"),
    (["--stream", "nobody:3"], "no file, trace or workload called 'nobody'"),
    ([CHAT, "--shape", "sine:1:2:3"], "expected ramp:FROM:TO:SECONDS"),
    ([CHAT, "--shape", "ramp:1:2:3", "--rps", "2"], "leave out --rps"),
    ([CHAT, "--scale", "thin"], "needs --rps"),
]


@pytest.mark.parametrize(("args", "says"), BAD_OPTIONS, ids=[str(args[-1]) for args, _ in BAD_OPTIONS])
def test_bad_options_are_refused(
    tmp_path: Path, args: list[object], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(here(capsys, "replay", *args, "--out", tmp_path / "run"), says)
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_there(sim: str, tmp_path: Path) -> None:
    done = loadgen("replay", CHAT, "--base-url", sim, "--model", "gpt-9", "--out", tmp_path / "run")
    refused(done, "has no model 'gpt-9'; it has: llama-3.1-8b")


def test_an_energy_source_asked_for_by_name_must_be_there(sim: str, tmp_path: Path) -> None:
    refused(loadgen("replay", CHAT, "--base-url", sim, "--energy", "nvml", "--out", tmp_path / "run"), "--energy nvml")
    assert not (tmp_path / "run").exists()


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_the_key_reaches_the_server_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--rps", 20, "--num-requests", 3, "--out", run]
    with served("sim", "--api-key", "sk-very-secret") as url:
        refused(loadgen("replay", CODE, "--base-url", url.replace("//", "//me:pw@"), *options), "set OPENAI_API_KEY")
        done = loadgen("replay", CODE, "--base-url", url, *options, env={"OPENAI_API_KEY": "sk-very-secret"})
    assert done.returncode == 0, done.stderr
    assert summary_of(run).requests.completed == 3
    for path in run.iterdir():
        assert b"sk-very-secret" not in path.read_bytes()
        assert b"me:pw" not in path.read_bytes()


def test_the_key_is_not_in_the_process_title(sim: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--rps", 20, "--num-requests", 3, "--base-url", sim, "--api-key", "sk-shown", "--out", run, "--idle", 1]
    command = [sys.executable, "-m", "loadgen", "replay", *map(str, [CODE, *options])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    wait_for(run.exists)
    title = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    process.communicate(timeout=40)
    assert b"replay" in title
    assert b"sk-shown" not in title
