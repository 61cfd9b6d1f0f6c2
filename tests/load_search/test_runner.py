"""A search: the rate that a server keeps limits at, whatever becomes of the server, the client or the search."""

import asyncio
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from loadgen.cli.export import FORMATS, export
from loadgen.cli.search import search as command
from loadgen.errors import LoadgenError
from loadgen.files import locked
from loadgen.load_search import faults, plan, prober, server
from loadgen.run import replay
from loadgen.run.progress import WARMING_UP
from support.small_search import COMMAND, WORDS

pytestmark = [pytest.mark.usefixtures("short"), pytest.mark.timeout(120)]


def run(out: Path, *words: str) -> Result:
    return CliRunner().invoke(command, [*WORDS[1:], "--out", str(out), *words])


def search_json(out: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((out / "search.json").read_bytes())
    return result


def probes(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = search_json(out)["settings"][0]["probes"]
    return found


def children() -> list[int]:
    """Return the processes that this one has started."""
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(number) for task in tasks for number in task.read_text().split()]


def test_a_search_finds_the_rate_keeps_its_budget_and_leaves_a_folder_that_goes_on(
    slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, begun_s = tmp_path / "out", time.monotonic()
    first = run(out, "--base-url", slow)
    assert first.exit_code == 0, first.output
    assert time.monotonic() - begun_s < 9 + 3
    found = search_json(out)["settings"][0]
    assert found["ended"] in ("budget", "interval")
    low, value, high = (found["rate"][name] for name in ("low", "value", "high"))
    assert 2.9 < value < 20, "about nine a second"
    assert (low or 0.0) <= value <= (high or math.inf)
    assert {path.name for path in out.iterdir()} >= {"search.json", "report.html", "options.json", "probes"}
    for probe in found["probes"]:
        assert (out / "probes" / probe["name"] / "report.html").is_file()
    for kind in FORMATS:
        exported = CliRunner().invoke(export, [str(out / "probes" / "000"), "--as", kind, "-o", "-"])
        assert exported.exit_code == 0 and exported.stdout_bytes, exported.output
    assert [probe["seed"] for probe in found["probes"]] == list(range(len(found["probes"])))

    again = run(out, "--base-url", slow, "--json")
    assert again.exit_code == 0
    assert f"{len(found['probes'])} probes of the search" in again.stderr
    assert json.loads(again.stdout)["settings"][0]["probes"][: len(found["probes"])] == found["probes"]

    other = run(out, "--base-url", slow, "--attainment", "0.9")
    assert isinstance(other.exception, LoadgenError)
    assert "other options (attainment 0.8, now 0.9): choose another --out" in str(other.exception)

    monkeypatch.setattr(plan, "MIN_REFINE_S", 0.5)
    more = run(out, "--base-url", slow, "--budget", f"{search_json(out)['spent_s'] + 8}s", "--width", "1%")
    assert more.exit_code == 0
    assert probes(out)[: len(found["probes"])] == found["probes"]
    assert len(probes(out)) > len(found["probes"])


def test_limits_that_no_rate_meets_are_said_and_exit_with_1(
    slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_ALONE", 4.0)  # at 3/s requests hardly meet
    result = run(tmp_path / "out", "--base-url", slow, "--goodput", "ttft:0.01", "--budget", "30s")
    assert result.exit_code == 1, result.output
    found = search_json(tmp_path / "out")
    assert (found["settings"][0]["ended"], found["best"]) == ("fails", None)


def test_the_highest_rate_that_was_allowed_is_a_lower_bound_and_no_limit_of_the_server(
    slow: str, tmp_path: Path
) -> None:
    result = run(tmp_path / "out", "--base-url", slow, "--max-rps", "3")
    assert result.exit_code == 0, result.output
    found = search_json(tmp_path / "out")["settings"][0]
    assert (found["ended"], found["rate"]) == ("client", {"value": 3.0, "low": 3.0, "high": None})
    assert "--max-rps 3" in found["reason"]


def test_a_probe_that_this_client_was_too_slow_for_is_made_again_and_then_ends_the_search(
    slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []

    def late(result: Any, url: str) -> None:
        attempts.append(result.info.run_id)
        if len(attempts) > 1:
            raise faults.ClientLimitError("this client sent 9 of 10 requests late")

    monkeypatch.setattr(prober, "check_run", late)
    result = run(tmp_path / "out", "--base-url", slow)
    found = search_json(tmp_path / "out")["settings"][0]
    assert result.exit_code == 0
    assert (len(attempts), found["ended"], found["rate"]["value"], found["rate"]["high"]) == (3, "client", 3.0, None)
    assert "this client sent 9 of 10 requests late; add --processes" in found["reason"]


def test_a_first_rate_beyond_this_client_is_one_line(
    slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(result: Any, url: str) -> None:
        raise faults.ClientLimitError("this client sent 9 of 10 requests late")

    monkeypatch.setattr(prober, "check_run", late)
    result = run(tmp_path / "out", "--base-url", slow)
    assert isinstance(result.exception, LoadgenError)
    assert str(result.exception).endswith("9 of 10 requests late; add --processes, or begin at a lower rate by --start")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--budget", "0.5s"], "too short for one probe"),
        (["--base-url", "http://127.0.0.1:9/v1"], "127.0.0.1:9"),
        (["--minimize", "joules_per_good_request", "--energy", "none"], "no energy is measured"),
    ],
)
def test_what_cannot_be_searched_is_one_line(slow: str, tmp_path: Path, words: list[str], fault: str) -> None:
    result = run(tmp_path / "out", "--base-url", slow, *words)
    assert isinstance(result.exception, LoadgenError)
    assert fault in str(result.exception)
    assert "\n" not in str(result.exception)


def test_without_limits_the_search_says_what_to_add(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["chat", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, LoadgenError)
    assert "add --goodput" in str(result.exception)


# -- servers that die -------------------------------------------------------------------------------------------------


def dying(monkeypatch: pytest.MonkeyPatch, kills: Callable[[int], bool]) -> None:
    """Kill the servers that were started just before run n (from 1) of the search, if `kills` says so."""
    whole, runs = prober.run_replay, iter(range(1, 99))

    def replay(*arguments: Any) -> Any:
        if kills(next(runs)):
            for child in set(children()) - before:
                os.killpg(child, signal.SIGKILL)
        return whole(*arguments)

    before = set(children())
    monkeypatch.setattr(prober, "run_replay", replay)


def test_a_server_that_died_is_started_again_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying(monkeypatch, lambda run: run == 2)
    result = run(tmp_path / "out", "--serve", "sim", "--max-rps", "4")
    assert result.exit_code == 0, result.output
    assert "once more" in result.stderr
    assert [probe["rate_rps"] for probe in probes(tmp_path / "out")] == [3.0, 4.0]
    assert search_json(tmp_path / "out")["settings"][0]["ended"] == "client"


def test_a_server_that_dies_again_ends_the_search_and_what_was_measured_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying(monkeypatch, lambda run: run >= 2)
    result = run(tmp_path / "out", "--serve", "sim")
    found = search_json(tmp_path / "out")["settings"][0]
    assert result.exit_code == 2, result.output
    assert (found["ended"], len(found["probes"])) == ("server", 1)
    assert found["rate"]["value"] == 3.0


def test_a_server_of_others_is_waited_for_and_its_loss_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_BACK_S", 0.2)
    dying(monkeypatch, lambda run: run == 2)
    with server.served("sim") as url:
        result = run(tmp_path / "out", "--base-url", url)
    found = search_json(tmp_path / "out")["settings"][0]
    assert result.exit_code == 2, result.output
    assert found["ended"] == "server"
    assert f"no server answers at {url}" in found["reason"]


async def stall(schedule: Any, prepared: Any, client: Any, announce: Callable[..., None]) -> None:
    announce(WARMING_UP, 0, 1)
    await asyncio.sleep(60)


def test_a_server_that_stalls_in_the_warm_up_is_waited_for_as_long_as_the_budget_lasts(
    slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(out, "--base-url", slow, "--max-rps", "3").exit_code == 0
    before, begun_s = probes(out), time.monotonic()
    monkeypatch.setattr(replay, "warm_up", stall)
    again = run(out, "--base-url", slow, "--budget", f"{search_json(out)['spent_s'] + 4}s")
    assert again.exit_code == 2, again.output
    assert time.monotonic() - begun_s < 4 + 3
    found = search_json(out)["settings"][0]
    assert (found["ended"], found["probes"]) == ("server", before)
    assert "still warming up; --warmup 0 sends no such requests" in found["reason"]


# -- searches that are stopped ----------------------------------------------------------------------------------------


def started(out: Path, url: str) -> "subprocess.Popen[str]":
    """Start a search, and return when its second probe sends."""
    process = subprocess.Popen(
        [*COMMAND, "--base-url", url, "--out", str(out)], stderr=subprocess.PIPE, text=True, process_group=0
    )
    until_s = time.monotonic() + 60
    while not (out / "probes" / "001" / "records.jsonl").exists() and time.monotonic() < until_s:
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_search_that_was_stopped_goes_on_where_it_was(
    slow: str, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    out = tmp_path / "out"
    process = started(out, slow)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    before = probes(out)
    assert len(before) == 1
    spent_s, begun_s = search_json(out)["spent_s"], time.monotonic()
    if number is signal.SIGINT:
        assert "the same command goes on from here" in errors
    result = run(out, "--base-url", slow, "--max-rps", "6")
    assert result.exit_code == 0, result.output
    assert [(probe["seed"], probe["rate_rps"]) for probe in probes(out)] == [(0, 3.0), (1, 6.0)]
    assert probes(out)[:1] == before
    assert spent_s < search_json(out)["spent_s"] < spent_s + time.monotonic() - begun_s


def test_a_full_disk_is_one_line(slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loadgen.load_search.folder.write_atomic", full)
    result = run(tmp_path / "out", "--base-url", slow)
    assert isinstance(result.exception, LoadgenError)
    assert str(result.exception).endswith("No space left on device")


def test_two_searches_in_one_folder_are_one_too_many(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", "the search's folder"):
        result = run(tmp_path / "out", "--base-url", "http://127.0.0.1:9/v1")
    assert isinstance(result.exception, LoadgenError)
    assert str(result.exception).startswith(f"another process writes the search's folder {tmp_path / 'out'}: ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    later = run(tmp_path / "out", "--base-url", "http://127.0.0.1:9/v1")
    assert "127.0.0.1:9" in str(later.exception), "the file of the lock alone is no folder of something else"


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    result = run(tmp_path)
    assert isinstance(result.exception, LoadgenError)
    assert "is not empty and holds no search" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
