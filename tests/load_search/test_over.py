"""A search over engine options: a server for each setting, the same seeds for all, and the better one wins."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from loadgen.cli.search import search as command
from loadgen.errors import LoadgenError, NotReadyError
from loadgen.load_search import race
from loadgen.load_search import state as state_module
from loadgen.load_search.folder import SearchFolder
from loadgen.load_search.plan import PlannedProbe, Question
from loadgen.load_search.settings import settings_of
from loadgen.load_search.state import SearchState
from loadgen.results.search_result import PresentLoad, SearchResult
from loadgen.run import replay
from support.search_results import probe, probes, setting
from support.small_search import WORDS

pytestmark = pytest.mark.timeout(120)


def run(out: Path, *words: str) -> Result:
    return CliRunner().invoke(command, [*WORDS[1:], "--out", str(out), "--serve", "sim", *words])


def search_json(out: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((out / "search.json").read_bytes())
    return result


@pytest.mark.usefixtures("short")
def test_each_setting_has_a_server_of_its_own_and_one_that_does_not_start_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "_MIN_OVERLOADED", 1)
    out = tmp_path / "out"
    result = run(out, "--over", "max_num_seqs=4,1,0", "--start", "12", "--max-rps", "24", "--budget", "90s")
    assert result.exit_code == 0, result.output
    found = search_json(out)
    four, one, none = found["settings"]
    assert found["best"] == "max_num_seqs=4"
    assert (four["ended"], four["rate"]) == ("client", {"value": 24.0, "low": 24.0, "high": None})
    assert (one["ended"], one["rate"]) == ("dropped", None), "it takes about nine a second"
    assert [[probe["rate_rps"] for probe in each["probes"]] for each in (four, one)] == [[12.0, 24.0], [24.0]]
    for number, each in enumerate((four, one), 1):
        assert [probe["name"] for probe in each["probes"]] == [f"{number}-{n:03}" for n in range(len(each["probes"]))]
        assert [probe["seed"] for probe in each["probes"]] == list(range(len(each["probes"])))
        assert all((out / "probes" / probe["name"] / "run.json").is_file() for probe in each["probes"])
        assert (out / f"{number}-server.log").read_text()
    assert (none["ended"], none["probes"]) == ("server", [])
    assert "0 is not in the range" in none["reason"]
    assert sum(each["spent_s"] for each in found["settings"]) == pytest.approx(found["spent_s"])


@pytest.mark.usefixtures("short")
def test_where_no_server_starts_the_search_says_so(tmp_path: Path) -> None:
    result = run(tmp_path / "out", "--over", "hardware=abacus,quipu", "--budget", "60s")
    assert isinstance(result.exception, LoadgenError)
    assert "no setting was measured: hardware=abacus: " in str(result.exception)


@pytest.mark.usefixtures("short")
def test_a_setting_whose_server_fails_in_the_warm_up_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, runs = replay.warm_up, iter(range(9))

    async def first_one_fails(*arguments: Any) -> None:
        if not next(runs):
            raise NotReadyError("4 of 4 warm-up requests failed")
        await whole(*arguments)

    monkeypatch.setattr(replay, "warm_up", first_one_fails)
    result = run(tmp_path / "out", "--over", "max_num_seqs=4,8", "--max-rps", "3", "--budget", "60s")
    assert result.exit_code == 0, result.output
    four, eight = search_json(tmp_path / "out")["settings"]
    assert (four["ended"], four["reason"], four["probes"]) == ("server", "4 of 4 warm-up requests failed", [])
    assert (eight["ended"], len(eight["probes"])) == ("client", 1)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--over", "batch=8"], "sim has no engine option 'batch'"),
        (["--replicas", "2"], "add --now RPS"),
        (["--keep-idle"], "add --now RPS"),
        (["--max-rps", "2"], "--start 3 is above --max-rps 2"),
    ],
)
def test_bad_options_fail_before_anything_is_written(tmp_path: Path, words: list[str], fault: str) -> None:
    result = run(tmp_path / "out", *words)
    assert isinstance(result.exception, LoadgenError)
    assert fault in str(result.exception)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the state, without servers

QUESTION = Question(limits_ms={"ttft": 200.0, "tpot": 10.0}, attainment=0.99, budget_s=600.0)
SETTINGS = settings_of("sim", ["max_num_seqs=64,8,256"])


def begun(tmp_path: Path, *results: Any, now_s: float = 0.0, **changes: Any) -> SearchState:
    """Return the state of a search that goes on from these results."""
    folder = SearchFolder(tmp_path / "out", {})
    if results:
        folder.result = SearchResult(settings=results, spent_s=sum(result.spent_s for result in results))
    question = Question(**(vars(QUESTION) | changes))
    return SearchState(folder, question, SETTINGS, "chat", None, state_module.monotonic())


def undone(name: str, **changes: Any) -> Any:
    unknown = dict.fromkeys(("rate", "least_joules", "least_joules_rate"))
    return setting(name, **({"probes": (), "ended": None, "spent_s": 0.0, "binding": ()} | unknown | changes))


def test_the_first_setting_has_an_even_share_and_begins_at_the_first_rate(tmp_path: Path) -> None:
    search = begun(tmp_path)
    search.begin(0)
    planned = search.next(1e9)
    assert isinstance(planned, PlannedProbe)
    assert planned.rate_rps == 1.0
    assert search.remaining_s == pytest.approx(200, abs=20)


def test_a_challenger_begins_at_the_rate_of_the_best_and_has_a_share_of_what_is_left(tmp_path: Path) -> None:
    search = begun(tmp_path, setting("a", spent_s=100.0), undone("b"), undone("c"))
    search.begin(1)
    planned = search.next(1e9)
    assert isinstance(planned, PlannedProbe)
    assert (planned.rate_rps, planned.seed) == (13.4, 0)
    assert search.remaining_s == pytest.approx(250, abs=20)


def test_a_challenger_that_loses_is_dropped_with_its_reason_and_stays_so(tmp_path: Path) -> None:
    slow = undone("b", probes=probes(0.5), spent_s=100.0)
    search = begun(tmp_path, setting("a", spent_s=100.0), slow, undone("c"), width=0.001)
    search.begin(1)
    assert search.next(1e9) == "dropped"
    search.end("dropped")
    dropped = search.results[1]
    assert dropped.ended == "dropped" and "is below the" in (dropped.reason or "") and "of a" in (dropped.reason or "")
    again = begun(tmp_path, *search.results, budget_s=6000.0)
    again.begin(1)
    assert again.next(1e9) == "dropped"
    again.end("dropped")
    assert again.results[1].reason == dropped.reason


def test_with_more_time_an_undecided_setting_goes_on_and_an_answered_one_does_not(tmp_path: Path) -> None:
    undecided = setting("a", ended="budget", spent_s=300.0)
    made = (*probes(1.1), probe(10, 12.4, 1.1, stage="bracket"))
    answered = setting("b", 1.1, probes=made, ended="interval", spent_s=300.0)
    search = begun(tmp_path, undecided, answered, undone("c"), budget_s=1200.0, width=0.3)
    search.begin(1)
    assert search.next(1e9) == "interval"
    search.end("interval")
    search.begin(2)
    assert isinstance(search.next(1e9), PlannedProbe)
    assert search.remaining_s == pytest.approx(600, abs=20)


def test_time_that_losers_left_over_goes_to_the_best_setting_if_it_is_undecided(tmp_path: Path) -> None:
    undecided, lost = setting("a", ended="budget", spent_s=200.0), setting("b", 0.5, ended="dropped", spent_s=50.0)
    search = begun(tmp_path, undecided, lost, undone("c", ended="server"), width=0.001)
    assert search.undecided_best == 0
    search.begin(0, is_last=True)
    assert isinstance(search.next(1e9), PlannedProbe)
    assert search.remaining_s == pytest.approx(350, abs=20)
    assert begun(tmp_path / "done", setting("a", spent_s=200.0), lost).undecided_best is None
    late = setting("a", ended="budget", spent_s=500.0)
    assert begun(tmp_path / "late", late, lost).undecided_best is None
    assert begun(tmp_path / "alone", undecided).undecided_best is None


def test_a_setting_whose_server_is_lost_ends_and_the_search_goes_on(tmp_path: Path) -> None:
    lines: list[str] = []
    search = begun(tmp_path, setting("a", spent_s=100.0), undone("b"), undone("c"))
    search.begin(1)
    search.end_without_server("it did not start:\n  loading\n  no memory", lines.append)
    assert (search.results[1].ended, search.results[1].reason) == ("server", "it did not start: no memory")
    assert lines == ["b: it did not start: no memory"]
    result = search.end_all()
    assert result.best == "a"


def test_with_a_present_load_each_setting_begins_at_its_rate_and_the_best_one_is_costed(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path / "out", {})
    folder.result = SearchResult(settings=(setting("a"), setting("b", 1.2, spent_s=0.0), undone("c")), spent_s=100.0)
    question = Question(**(vars(QUESTION) | {"start_rps": 4.0}))
    load = PresentLoad(now_rps=8.0, replicas=2)
    search = SearchState(folder, question, SETTINGS, "chat", None, state_module.monotonic(), load)
    search.begin(2)
    planned = search.next(1e9)
    assert isinstance(planned, PlannedProbe) and planned.rate_rps == 4.0
    present = search.write().present
    assert present is not None and present.best == 1
    assert [cost.replicas for cost in present.costs] == [2, 1]
