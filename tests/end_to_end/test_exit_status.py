"""The exit status of every command: 0 done, 1 the run or a gate failed, 2 invalid input or environment, 130 stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.cli import main
from loadgen.results import run_folder
from loadgen.workload.schedule import Schedule
from support import sample_runs
from support.fake_api import Answer, FakeServer, refusal, serving

ROOT = Path(__file__).parents[2]
REQUESTS = 100


@dataclass
class RunServer(FakeServer):
    """Answers with as many tokens as are requested. Of the run's own requests, `failing` are refused."""

    failing: int = 0
    stalls: bool = False
    """True: nothing is answered but the list of models."""

    def completion(self, body: dict[str, Any]) -> Answer:
        self.bodies.append(body)
        if self.stalls:
            time.sleep(3)
        tokens = body["max_tokens"]
        if tokens == 2 and sum(earlier["max_tokens"] == 2 for earlier in self.bodies) <= self.failing:
            return refusal(500, "no room")
        events: list[Any] = [{"choices": [{"delta": {"content": "a"}}]} for _ in range(tokens)]
        events[-1]["choices"][0]["finish_reason"] = "length"
        usage = {"prompt_tokens": 5 + self.count(body["messages"][0]["content"]), "completion_tokens": tokens}
        events.append({"choices": [], "usage": usage})
        return 200, b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)


def status_of(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A hundred requests of two tokens within half a second."""
    lines = [{"timestamp": 5 * i, "input_length": 20, "output_length": 2} for i in range(REQUESTS)]
    (path := tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


RUNS: list[tuple[str, int, list[str], int]] = [
    ("every request completes", 0, [], 0),
    ("as many fail as the default limit allows", 1, [], 0),
    ("more fail than the default limit allows", 2, [], 1),
    ("as many fail as a number allows", 2, ["--max-failed", "2"], 0),
    ("none may fail", 1, ["--max-failed", "0"], 1),
    ("fewer fail than a share allows", 40, ["--max-failed", "50%"], 0),
    ("more fail than a share allows", 60, ["--max-failed", "50%"], 1),
    ("nothing completes, whatever is allowed", REQUESTS, ["--max-failed", "100%"], 1),
    ("a limit that could mean two things", 0, ["--max-failed", "0.01"], 2),
    ("an energy source that is not here", 0, ["--energy", "nvml"], 2),
    ("a meter too slow for the run", 0, ["--energy", "cpu", "--idle", "0.1"], 0),
    ("an option that does not exist", 0, ["--fast"], 2),
    ("a folder that cannot be written", 0, ["--out", "/proc/none"], 2),
    ("a goodput that is not met", 0, ["--goodput", "ttft:0.000001"], 0),
]


@pytest.mark.parametrize(("failing", "options", "status"), [row[1:] for row in RUNS], ids=[row[0] for row in RUNS])
def test_a_replay_exits_with(tmp_path: Path, trace: Path, failing: int, options: list[str], status: int) -> None:
    plain = ["--energy", "none", "--idle", "0", "--ui", "none", "--out", tmp_path / "run"]
    with serving(RunServer(failing=failing)) as url:
        assert status_of("replay", trace, "--base-url", f"{url}/v1", *plain, *options) == status


@pytest.mark.parametrize(
    ("server", "lines"),
    [
        (None, None),
        (RunServer(models=refusal(401, "key?")), None),
        (RunServer(refuses=lambda _: refusal(401, "key?"), models=refusal(401, "key?")), None),
        (RunServer(), "nonsense\n"),
        (RunServer(), ""),
    ],
    ids=["no server", "a key is wanted", "a key is wanted everywhere", "a bad trace", "an empty trace"],
)
def test_a_replay_that_cannot_begin_exits_with_2(
    tmp_path: Path, trace: Path, server: RunServer | None, lines: str | None
) -> None:
    if lines is not None:
        trace.write_text(lines)
    run = ("replay", trace, "--energy", "none", "--ui", "none", "--out", tmp_path / "run")
    if server is None:
        assert status_of(*run, "--base-url", "http://127.0.0.1:1/v1") == 2
    else:
        with serving(server) as url:
            assert status_of(*run, "--base-url", f"{url}/v1") == 2
    assert not (tmp_path / "run").exists()


# -- reading runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    whole = sample_runs.run(num_requests=30, failing=0)
    failed = sample_runs.run(num_requests=30, failing=0.5)

    def info(**changes: Any) -> run_folder.RunInfo:
        return msgspec.structs.replace(whole.info, **changes)

    runs = {
        "good": whole,
        "again": whole,
        "failing": failed,
        "interrupted": replace(whole, info=info(stopped_by="interrupted")),
        "killed": replace(whole, info=info(stopped_by=None, end_ns=None), records=whole.records[:20]),
        "other-rate": replace(whole, info=info(requested_rps=8.0)),
        "other-seed": replace(whole, info=info(seed=8)),
        "no-records": whole,
    }
    paths = {}
    for name, made in runs.items():
        path = tmp_path_factory.mktemp("runs") / name
        writer = run_folder.RunWriter(path, made.info, Schedule(tuple(made.schedule), "trace", 4.0, 7))
        for record in made.records:
            writer.record(record)
        writer.energy(made.energy)
        writer.close()
        paths[name] = str(path)
    (Path(paths["no-records"]) / "records.jsonl").unlink()
    return paths


READINGS: list[tuple[str, int]] = [
    ("compare good", 0),
    ("compare good again", 0),
    ("compare good again --fail-if ttft_s.p99>100", 0),
    ("compare good again --fail-if ttft_s.p99>+5%", 0),
    ("compare good again --fail-if ttft_s.p99>0", 1),
    ("compare good again --fail-if goodput.rps<1", 1),
    ("compare good again --fail-if ttft.p99>0", 2),
    ("compare good interrupted", 2),
    ("compare good killed --fail-if ttft_s.p99>100", 2),
    ("compare good killed --allow unfinished --fail-if ttft_s.p99>100", 0),
    ("compare good failing", 2),
    ("compare good failing --allow failed", 0),
    ("compare good other-rate", 2),
    ("compare good other-rate --allow rate", 0),
    ("compare good other-seed", 2),
    ("compare good other-seed --allow rate", 2),
    ("compare good other-seed --allow different", 0),
    ("compare good nowhere", 2),
    ("compare good no-records", 2),
    ("report good", 0),
    ("report failing", 0),
    ("report killed", 0),
    ("report no-records", 2),
    ("report nowhere", 2),
]


@pytest.mark.parametrize(("command", "status"), READINGS, ids=[command for command, _ in READINGS])
def test_a_reading_exits_with(folders: dict[str, str], command: str, status: int) -> None:
    assert status_of(*(folders.get(word, word) for word in command.split())) == status


# -- signals ----------------------------------------------------------------------------------------------------------


@contextmanager
def started(*command: object) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process of its own that takes Ctrl-C as at a terminal, whatever this process does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"LOADGEN_IDLE": "0"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("signals", "stopped_by"),
    [
        ([signal.SIGINT], "interrupted"),
        ([signal.SIGTERM], "interrupted"),
        ([signal.SIGINT, signal.SIGINT], "aborted"),
        ([signal.SIGTERM, signal.SIGINT], "aborted"),
    ],
)
def test_a_stopped_run_exits_with_130_and_says_how_it_ended(
    tmp_path: Path, trace: Path, signals: list[int], stopped_by: str
) -> None:
    trace.write_text(
        "".join(f'{{"timestamp":{i},"input_length":20,"output_length":2}}\n' for i in range(0, 60_000, 50))
    )
    server, run = RunServer(), tmp_path / "run"
    with serving(server) as url:
        options = ("--base-url", f"{url}/v1", "--energy", "none", "--ui", "none", "--out", run)
        with started("replay", trace, *options) as process:
            wait_for(lambda: sum(body["max_tokens"] == 2 for body in server.bodies) > 3)
            server.stalls = True
            for number in signals:
                time.sleep(0.2)
                process.send_signal(number)
            assert process.wait(30) == 130
    info = json.loads((run / "run.json").read_text())
    assert info["stopped_by"] == stopped_by
    verdict = json.loads((run / "summary.json").read_text())["verdict"]
    assert verdict["checks"][0]["status"] == {"interrupted": "warning", "aborted": "failed"}[stopped_by]


@pytest.mark.parametrize(
    ("command", "signals"),
    [
        ("replay", [signal.SIGINT]),
        ("replay", [signal.SIGTERM]),
        ("replay", [signal.SIGINT, signal.SIGINT, signal.SIGINT, signal.SIGTERM]),
        ("profile", [signal.SIGINT]),
        ("profile", [signal.SIGTERM]),
    ],
)
def test_signals_while_the_server_is_probed_exit_with_130_and_one_line(
    tmp_path: Path, trace: Path, command: str, signals: list[int]
) -> None:
    options: dict[str, list[object]] = {
        "replay": [trace, "--out", tmp_path / "run", "--ui", "none"],
        "profile": ["--bins", "8x2", "--batch", 1, "--endpoint", "chat", "--out", tmp_path / "p.json"],
    }
    server = RunServer(stalls=True)
    with (
        serving(server) as url,
        started(command, *options[command], "--base-url", f"{url}/v1", "--energy", "none") as it,
    ):
        wait_for(lambda: server.bodies)
        for number in signals:
            it.send_signal(number)
            time.sleep(0.02)
        assert it.wait(30) == 130
        assert it.stderr is not None and it.stderr.read().split(b"\n")[-2:] == [b"loadgen: interrupted", b""]


def test_a_ctrl_c_while_meters_are_read_exits_with_130() -> None:
    with started("meters", "--seconds", 60) as process:
        wait_for(lambda: b"loadgen" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


# -- the other commands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("failing", "status"), [(0, 0), (10**6, 1)])
def test_a_study_with_a_failed_run_exits_with_1(tmp_path: Path, failing: int, status: int) -> None:
    with serving(RunServer(failing=failing)) as url:
        (tmp_path / "s.toml").write_text(
            f"""
            title = "Short"
            batches = [1]
            rounds = 1
            repeats = 1
            retries = 0
            warmup = 0
            idle_s = 0
            energy = "none"
            endpoint = "chat"
            [servers.one]
            base_url = "{url}/v1"
            [workloads.short]
            input = 20
            output = 2
            """
        )
        assert status_of("study", tmp_path / "s.toml", "--out", tmp_path / "out") == status


@pytest.mark.parametrize(("safe", "status"), [(True, 0), (False, 1)])
def test_a_self_test_that_is_not_safe_exits_with_1(monkeypatch: pytest.MonkeyPatch, safe: bool, status: int) -> None:
    @dataclass
    class Result:
        safe: bool

    monkeypatch.setattr("loadgen.run.selftest.run_selftest", lambda *_: Result(safe))
    assert status_of("selftest", "--rps", 1, "--json") == status
