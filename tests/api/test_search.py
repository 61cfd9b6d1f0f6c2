"""Search from a program: the search of the command, its result, and how it is stopped."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import loadgen
from loadgen.api.search import _listed
from loadgen.cli.search import search as command
from loadgen.load_search import plan
from loadgen.servers.launcher import served
from support.schemas import strict
from support.small_search import SHORT, WORDS

SMALL: dict[str, Any] = {
    "input": 20, "output": 20, "goodput": {"ttft": 400}, "attainment": 0.8, "start_rps": 3, "budget_s": 9,
    "idle_s": 0.1, "warmup": 1,
}  # fmt: skip
"""Options of `support.small_search.WORDS`."""
ROW = {"timestamp": 0, "input_length": 20, "output_length": 20}
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def slow() -> Iterator[str]:
    """A server that answers one request at a time, about nine a second."""
    with served("sim", "--engine-option", "max_num_seqs=1", "--engine-option", "counter_period_ms=20") as url:
        yield url


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes take a second or two."""
    for name, value in SHORT.items():
        monkeypatch.setattr(plan, name, value)


def first_probe(out: Path) -> bool:
    """Return whether a search has made a probe."""
    time.sleep(0.02)
    return (out / "search.json").exists() and bool(loadgen.read_search(out).probes)


def test_a_search_is_that_of_the_command_which_goes_on_with_it(slow: str, tmp_path: Path) -> None:
    search = loadgen.search(base_url=slow, out=tmp_path / "a", **SMALL)
    assert search.rate is not None and 3 <= search.rate.value < 20
    assert (search.best, search.rate) == (search.result.settings[0], search.result.settings[0].rate)
    assert len(search.probes) == len(search.result.settings[0].probes)
    assert search.least_joules == search.result.settings[0].least_joules
    assert np.nanmin(search.probes["watts"]) > 0
    assert "requests/s" in search.answer and search.answer.splitlines()[0] in repr(search)

    written = json.loads((search.path / "search.json").read_bytes())
    strict("search").validate(written)
    assert json.loads(json.dumps(search.result.to_dict())) == written
    assert loadgen.read_search(search.path).result == search.result
    first = loadgen.read(search.path / "probes" / search.probes["name"][0])
    assert (first.info.seed, first.info.config["goodput"]) == (search.probes["seed"][0], {"ttft": 400})

    again = CliRunner().invoke(command, [*WORDS[1:], "--base-url", slow, "--out", str(search.path), "--json"])
    assert again.exit_code == 0, again.output
    made = written["settings"][0]["probes"]
    assert json.loads(again.stdout)["settings"][0]["probes"][: len(made)] == made  # seconds of the budget may be left


def test_without_a_rate_that_meets_the_limits_there_is_no_best(
    slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_ALONE", 4.0)  # at 3/s requests hardly meet
    search = loadgen.search(base_url=slow, out=tmp_path / "a", **SMALL | {"goodput": {"ttft": 0.01}})
    assert (search.best, search.rate, search.least_joules_rate, search.least_joules) == (None, None, None, None)
    assert search.result.settings[0].ended == "fails"
    assert "No rate meets the limits" in repr(search)


def test_other_requests_in_memory_are_another_search(slow: str, tmp_path: Path) -> None:
    options = SMALL | {"input": None, "output": None, "max_rps": 3, "base_url": slow, "out": tmp_path / "a"}
    search = loadgen.search([ROW] * 9, **options)
    assert search.result.trace == "requests"
    assert search.rate is not None and (search.rate.value, search.rate.high) == (3, None)
    assert loadgen.search([ROW] * 9, **options).result.settings[0].probes == search.result.settings[0].probes
    with pytest.raises(loadgen.LoadgenError, match=r"holds a search with other options \(requests_sha256"):
        loadgen.search([ROW] * 8, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goodput": None}, "no limits to search within"),
        ({"attainment": 1.0}, "attainment: expected `float` < 1"),
        ({"confidence": 0.5}, "confidence: expected `float` > 0.5"),
        ({"budget_s": 0}, "budget_s: expected `float` > 0"),
        ({"minimize": "joules"}, "minimize: 'joules' is none of joules_per_good_request"),
        ({"start_rps": -1}, "start_rps: expected `float` > 0"),
        ({"replicas": 2}, "--replicas and --keep-idle belong to a load"),
        ({"arrival": "now"}, "arrival: 'now' is none of"),
        ({"over": {"max_num_seqs": [1, 2]}}, "--over needs --serve"),
        ({"over": {"max_num_seqs": "1,2"}}, "over: expected a list of values by engine option"),
        ({"over": {"max_num_seqs": [object()]}}, "over: object has no place in JSON"),
        ({"over": ["max_num_seqs=1,2"]}, "over: expected a list of values by engine option"),
        ({"serve": "sim", "base_url": "http://h/v1"}, "leave one of them out"),
        ({"trace": [ROW]}, "requests are given"),
        ({"trace": [ROW], "input": None, "output": None, "streams": ["chat:1"]}, "requests are given"),
        ({"input": None, "output": None}, "nothing to replay"),
        ({"ui": "tv"}, "'tv' is not one of"),
    ],
)
def test_what_cannot_be_searched_is_an_error_of_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(loadgen.LoadgenError) as error:
        loadgen.search(**SMALL | options, out=tmp_path / "a")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["", "nothing"])
def test_a_folder_without_a_search_is_an_error_of_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(loadgen.LoadgenError, match="is not the folder of a search"):
        loadgen.read_search(tmp_path / name)


@pytest.mark.parametrize(("text", "fault"), [("{", "search.json"), ('{"schema_version": "99.0"}', "has format 99.0")])
def test_a_damaged_or_newer_search_is_refused_by_program_and_command(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text(text)
    with pytest.raises(loadgen.LoadgenError, match=fault):
        loadgen.read_search(tmp_path)
    with pytest.raises(loadgen.LoadgenError, match=fault):
        loadgen.search(**SMALL, base_url="http://127.0.0.1:9/v1", out=tmp_path)


def test_values_of_engine_options_are_those_that_the_command_takes() -> None:
    over = {"max_num_seqs": (np.int64(8), 64), "prefix_caching": [True, False], "name": ["a,b", 0.5]}
    expected = ("max_num_seqs=[8,64]", 'prefix_caching=["on","off"]', 'name=["a,b",0.5]')
    assert _listed(over) == expected


def test_a_cancelled_search_keeps_its_probes_and_the_same_call_goes_on(slow: str, tmp_path: Path) -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(loadgen.asearch(base_url=slow, out=tmp_path / "a", **SMALL))
        while not await asyncio.to_thread(first_probe, tmp_path / "a"):
            assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    before = loadgen.read_search(tmp_path / "a").result
    assert before.settings[0].ended is None
    more = loadgen.search(base_url=slow, out=tmp_path / "a", **SMALL | {"budget_s": before.spent_s + 4})
    assert more.result.settings[0].probes[: len(before.settings[0].probes)] == before.settings[0].probes
    assert more.result.settings[0].ended is not None


def test_a_ctrl_c_ends_the_search_and_is_raised(slow: str, tmp_path: Path) -> None:
    def interrupt() -> None:
        while not first_probe(tmp_path / "a"):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        loadgen.search(base_url=slow, out=tmp_path / "a", **SMALL)
    assert loadgen.read_search(tmp_path / "a").result.settings[0].ended is None
