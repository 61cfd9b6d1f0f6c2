"""Replay from a program: the run of the command, in a script, in a thread, and beside an event loop."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loadgen
from loadgen.api.plain_options import plain_options
from loadgen.cli import main
from loadgen.servers.launcher import served
from support.recording_server import RecordingServer

QUICK: dict[str, Any] = {"rps": 100, "arrival": "constant", "idle_s": 0.2, "max_failed": "100%"}
ENDLESS: dict[str, Any] = {"input": 64, "output": 16, "rps": 10, "duration_s": 60, "idle_s": 0}


@pytest.fixture(scope="module")
def sim() -> Iterator[str]:
    with served("sim") as url:
        yield url


@pytest.fixture
def recorder() -> Iterator[tuple[RecordingServer, str]]:
    server = RecordingServer()
    with server.serving() as url:
        yield server, url


def begun(folder: Path) -> bool:
    """Return whether the requests of a run are being sent."""
    time.sleep(0.02)
    records = folder / "records.jsonl"
    return records.exists() and records.stat().st_size > 0


def test_a_replay_returns_the_run_that_the_command_makes(sim: str, tmp_path: Path) -> None:
    run = loadgen.replay("chat", base_url=sim, num_requests=8, out=tmp_path / "a", goodput={"ttft": 1e6}, **QUICK)
    assert run.summary.requests.completed == len(run.requests) == 8
    assert run.summary.goodput is not None and run.summary.goodput.good == 8
    assert np.nansum(run.requests["joules"]) == pytest.approx(run.summary.energy.attributed_joules)
    assert (run.info.config["trace"], run.info.config["seed"], run.info.command) == ("chat", 0, [])
    assert loadgen.read(run.path).summary == run.summary
    assert (run.path / "report.html").exists()


def test_the_same_seed_is_the_same_schedule_as_that_of_the_command(sim: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_requests": 4, "arrival": "poisson", "rps": 200, "seed": 7, "idle_s": 0}
    run = loadgen.replay("code", base_url=sim, out=tmp_path / "a", **options)
    typed = "replay code --num-requests 4 --arrival poisson --rps 200 --seed 7 --idle 0 --ui none --base-url"
    with pytest.raises(SystemExit):
        main([*typed.split(), sim, "--out", str(tmp_path / "b")])
    command = loadgen.read(tmp_path / "b")
    assert run.info.schedule_sha256 == command.info.schedule_sha256
    assert run.info.config == command.info.config


def test_requests_in_memory_are_sent_word_for_word(recorder: tuple[RecordingServer, str], tmp_path: Path) -> None:
    server, url = recorder
    rows = [{"messages": [{"role": "user", "content": text}]} for text in ("What is a watt?", "And a joule?")]
    run = loadgen.replay(rows, base_url=url, energy="none", out=tmp_path / "a", **QUICK)
    assert run.info.config["trace"] == "requests"
    assert [json.loads(server.received[i].body)["messages"] for i in (0, 1)] == [row["messages"] for row in rows]


def test_a_trace_in_memory_is_replayed_in_the_order_of_its_arrivals(sim: str, tmp_path: Path) -> None:
    chosen = [request for request in loadgen.read_trace("chat").requests if request.output_tokens == 9][:3]
    run = loadgen.replay(chosen[::-1], base_url=sim, idle_s=0, rps=50, out=tmp_path / "a")
    assert run.requests["output_tokens"].tolist() == [9.0] * len(chosen) and chosen
    assert run.requests["input_tokens_planned"].tolist() == [request.input_tokens for request in chosen]


def test_numbers_and_rows_may_be_those_of_numpy(sim: str, tmp_path: Path) -> None:
    row = {"timestamp": np.float64(0), "input_length": np.int64(20), "output_length": np.int64(3)}
    run = loadgen.replay([row], base_url=sim, seed=np.int64(3), idle_s=np.float64(0), out=tmp_path / "a")  # type: ignore[arg-type]
    assert (run.info.seed, run.requests["output_tokens"].tolist()) == (3, [3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trace": "chat", "rps": -1}, "rps: expected `float` > 0"),
        ({"trace": "chat", "rps": "fast"}, "rps: expected `float"),
        ({"trace": "chat", "arrival": "now"}, "arrival: 'now' is none of trace, poisson, gamma, constant"),
        ({"trace": "chat", "processes": 0}, "processes: expected `int` >= 1"),
        ({"trace": "chat", "streams": "chat:1"}, "streams: expected `array`"),
        ({"trace": "chat", "history": "told"}, "history: 'told' is none of recorded, live"),
        ({"trace": "chat", "headers": "a: b"}, "headers: expected `object`, got `str`"),
        ({"trace": "chat", "extra_body": "top_k"}, "extra_body: expected `object`, got `str`"),
        ({"trace": "chat", "extra_body": {"stop": object()}}, "extra_body: object has no place in JSON"),
        ({"trace": "chat", "headers": {"a b": "c"}}, "'a b' is not the name of a header"),
        ({"trace": "chat", "headers": {"a": "b\r\nc: d"}}, "holds a character that cannot be sent"),
        ({"trace": "chat", "goodput": {"e2e": 1}}, "goodput: 'e2e' is none of ttft, tpot, e2el"),
        ({"trace": "chat", "max_failed": "0.01"}, "give a share such as 1%"),
        ({"trace": "chat", "serve": "sim", "base_url": "http://h/v1"}, "leave one of them out"),
        ({"trace": "chat", "serve": "nothing"}, "no server called 'nothing'"),
        ({"trace": "chat", "base_url": "http://127.0.0.1:9/v1"}, "no server at"),
        ({"trace": "chat", "ui": "tv"}, "'tv' is not one of"),
        ({"streams": ["chat:1"], "burstiness": 0.5}, "burstiness is for one trace"),
        ({"trace": [{"timestamp": 0, "input_length": 1, "output_length": 1}], "input": 3}, "requests are given"),
        ({"trace": [{"prompt": "a"}], "streams": ["chat:1"]}, "requests are given"),
        ({}, "nothing to replay"),
        ({"trace": []}, "requests has no requests"),
        ({"trace": ["chat"]}, "expected the fields of a line of a trace each"),
        ({"trace": [{"timestamp": object()}]}, "object has no place in JSON"),
        ({"trace": [{"timestamp": 0}]}, "requests:1: no input_length"),
        ({"trace": 3}, "expected a trace, its name, or requests, not int"),
    ],
)
def test_what_cannot_be_replayed_is_an_error_of_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(loadgen.LoadgenError) as error:
        loadgen.replay(**options, out=tmp_path / "a")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_a_folder_with_a_run_is_not_overwritten_unless_asked(sim: str, tmp_path: Path) -> None:
    row = [{"timestamp": 0, "input_length": 9, "output_length": 2}]
    loadgen.replay(row, base_url=sim, idle_s=0, out=tmp_path)
    with pytest.raises(loadgen.LoadgenError, match="already holds a run"):
        loadgen.replay(row, base_url=sim, idle_s=0, out=tmp_path)
    assert loadgen.replay(row, base_url=sim, idle_s=0, out=tmp_path, overwrite=True).verdict.stands


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(
    sim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def both() -> list[loadgen.Run]:
        rows = [{"timestamp": 0, "input_length": 9, "output_length": 2}]
        return await asyncio.gather(*(loadgen.areplay(rows, base_url=sim, idle_s=0) for _ in range(2)))

    runs = asyncio.run(both())
    assert {run.path.resolve() for run in runs} == set((tmp_path / "runs").iterdir())
    assert len({run.path for run in runs}) == 2


def test_a_run_that_never_began_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(loadgen.LoadgenError, match="no server at"):
        loadgen.replay("chat", base_url="http://127.0.0.1:9/v1")
    assert not list(tmp_path.iterdir())


def test_the_server_and_the_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"trace": "chat", "base_url": None, "api_key": None, "serve": None, "tokenizer": None, "out": None}
    options |= dict.fromkeys(("headers", "extra_body", "goodput", "input", "output"))
    assert plain_options(options)[0]["base_url"] == "http://localhost:8000/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://h:1/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    plain, _ = plain_options(options)
    assert (plain["base_url"], plain["api_key"]) == ("http://h:1/v1", "sk-1")
    assert plain_options(options | {"base_url": "http://g/v1"})[0]["base_url"] == "http://g/v1"


# -- beside an event loop ---------------------------------------------------------------------------------------------


def test_a_loop_that_runs_goes_on_while_a_run_is_awaited(sim: str, tmp_path: Path) -> None:
    async def main() -> tuple[int, loadgen.Run]:
        task = asyncio.ensure_future(loadgen.areplay("chat", base_url=sim, num_requests=4, out=tmp_path, **QUICK))
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks, task.result()

    ticks, run = asyncio.run(main())
    assert run.summary.requests.completed == 4
    assert ticks > 5


def test_a_replay_in_a_notebook_needs_no_await(sim: str, tmp_path: Path) -> None:
    async def cell() -> loadgen.Run:
        return loadgen.replay("chat", base_url=sim, num_requests=2, out=tmp_path, **QUICK)

    assert asyncio.run(cell()).summary.requests.completed == 2


def test_an_error_of_an_awaited_run_is_raised_where_it_is_awaited(tmp_path: Path) -> None:
    with pytest.raises(loadgen.LoadgenError, match="no file, trace or workload called 'cht'"):
        asyncio.run(_awaited("cht", out=tmp_path / "a"))


async def _awaited(*arguments: Any, **options: Any) -> loadgen.Run:
    return await loadgen.areplay(*arguments, **options)


def test_a_cancelled_run_is_aborted_and_its_folder_complete(sim: str, tmp_path: Path) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(loadgen.areplay(base_url=sim, out=tmp_path / "a", **ENDLESS))
        while not await asyncio.to_thread(begun, tmp_path / "a"):
            assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    run = loadgen.read(tmp_path / "a")
    assert run.info.stopped_by in ("aborted", "interrupted")
    assert (tmp_path / "a" / "summary.json").exists()
    assert "loadgen-api" not in {thread.name for thread in threading.enumerate()}


# -- interrupts -------------------------------------------------------------------------------------------------------


def test_a_ctrl_c_drains_the_run_and_is_raised_when_the_folder_is_complete(sim: str, tmp_path: Path) -> None:
    def interrupt() -> None:
        while not begun(tmp_path / "a"):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt, match=f"the run is interrupted; what it did is in {tmp_path / 'a'}"):
        loadgen.replay(base_url=sim, out=tmp_path / "a", **ENDLESS)
    run = loadgen.read(tmp_path / "a")
    assert run.info.stopped_by == "interrupted"
    assert 0 < run.summary.requests.completed < 600
    assert (tmp_path / "a" / "report.html").exists()


def test_a_ctrl_c_before_the_first_request_ends_the_run(tmp_path: Path) -> None:
    """A server that takes connections and never answers keeps a run in its preparation."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def interrupt() -> None:
            connection, _ = listener.accept()
            os.kill(os.getpid(), signal.SIGINT)
            assert not connection.recv(1 << 16) or connection.recv(1 << 16) == b"", "the client closes"
            connection.close()

        threading.Thread(target=interrupt).start()
        port = listener.getsockname()[1]
        with pytest.raises(KeyboardInterrupt):
            loadgen.replay("chat", base_url=f"http://127.0.0.1:{port}/v1", model="m", out=tmp_path / "a")
    assert not (tmp_path / "a").exists()
