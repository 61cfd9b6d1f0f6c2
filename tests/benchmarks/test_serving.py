"""The online study in docs/results/serving.md: what was ingested agrees with itself, and a few numbers by hand."""

import csv
import gzip
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pytest

from benchmarks.paper import engine_options, serving
from loadgen.stats.intervals import t95

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/results/h200-2026/studies/serving"
SECOND = FOLDER.with_name("serving-2")


def results(folder: Path = FOLDER) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def lines(folder: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    with gzip.open(folder / "requests.csv.gz", "rt", newline="") as file:
        for line in csv.DictReader(file):
            found.setdefault(line["cell"], []).append(line)
    return found


@pytest.mark.parametrize("folder", [FOLDER, SECOND], ids=lambda folder: folder.name)
def test_requests_add_up_to_their_runs(folder: Path) -> None:
    """Tokens exactly, joules to the millijoule of each, medians to the microsecond."""
    each = lines(folder)
    assert each.keys() == {row["cell"] for row in results(folder)}
    for row in results(folder):
        mine = each[row["cell"]]
        assert len(mine) == int(row["completed"])
        for side in ("input_tokens", "output_tokens"):
            assert sum(int(one[side]) for one in mine) == int(row[side])
        accounts = sum(float(row[name]) for name in ("prefill_joules", "decode_joules"))
        assert sum(float(one["joules"]) for one in mine) == pytest.approx(accounts, abs=1e-3 * len(mine))
        assert median(float(one["ttft_s"]) for one in mine) == pytest.approx(float(row["ttft_p50_s"]), abs=2e-6)


def test_the_accounts_of_every_run_add_up_to_what_was_measured() -> None:
    for row in [*results(), *results(SECOND)]:
        parts = ("prefill_joules", "decode_joules", "idle_joules", "unattributed_joules")
        assert sum(float(row[part]) for part in parts) == pytest.approx(float(row["measured_joules"]), abs=0.01)


def test_the_samples_say_the_same_joules() -> None:
    for row in serving.rows():
        assert serving.recounted(row) == pytest.approx(row.measured_joules, rel=0.005)


def test_a_study_is_all_on_one_card_and_whole_with_the_other() -> None:
    first, second = ({row["gpu"] for row in results(folder)} for folder in (FOLDER, SECOND))
    assert len(first) == len(second) == 1 and first != second
    assert len({row["cell"] for row in [*results(), *results(SECOND)]}) == 39 == len(results()) + len(results(SECOND))


def test_pairs_have_the_same_requests_and_are_compared_by_hand() -> None:
    known = {row["cell"]: row for row in results(SECOND)}
    few, many = (known[f"{server}-llama_3.1_8b-chat-16rps-r2"] for server in ("budget_512", "plain"))
    assert few["output_tokens"] == many["output_tokens"]
    mine, base = (engine_options.cells(SECOND)[server, "chat", None, 16.0] for server in ("budget-512", "plain"))
    there = float(few["joules_per_output_token"]) / float(many["joules_per_output_token"]) - 1
    assert engine_options.pairs(base, mine) == [pytest.approx(there)]
    assert len(engine_options.pairs(mine, mine)) == 3 and set(engine_options.pairs(mine, mine)) == {0.0}


def test_prompt_tokens_come_from_a_cache_where_it_is_on() -> None:
    for row in engine_options.rows(SECOND):
        assert (engine_options.cached_share(row, SECOND) > 0.2) == (row.server == "prefix-caching"), row.cell


def logs() -> dict[tuple[str, ...], list[float]]:
    """Of J per output token, by configuration of the chat trace."""
    found: dict[tuple[str, ...], list[float]] = {}
    for row in results():
        if row["workload"] != "sessions":
            joules = float(row["measured_joules"]) / int(row["output_tokens"])
            key = (row["server"], row["workload"], row["batch"], row["rps"])
            found.setdefault(key, []).append(float(np.log(joules)))
    return found


def test_the_noise_of_all_loads_together_by_hand() -> None:
    """Squared distances from each configuration's mean, over how many there are beyond one of each."""
    freedom = sum(len(one) - 1 for one in logs().values())
    squares = sum((x - fmean(one)) ** 2 for one in logs().values() for x in one)
    found = serving.noise(serving.per_token)
    assert found.freedom == freedom >= 2
    assert found.deviation == pytest.approx((squares / freedom) ** 0.5)


def test_a_line_of_the_loads_by_hand() -> None:
    """16/s: the mean, and half an interval of t times the deviation over the root of the repeats."""
    mine = np.exp(logs()["plain", "chat", "", "16.0"])
    found = serving.noise(serving.per_token)
    half = fmean(mine) * t95(found.freedom) * found.deviation / len(mine) ** 0.5
    line = next(row for row in serving.loads().splitlines() if row.startswith("| 16/s |"))
    told, _, ends = line.split(" | ")[3].partition(" ± ")
    assert float(told) == pytest.approx(fmean(mine), abs=6e-4)
    assert float(ends) == pytest.approx(half, abs=1e-3)


def test_offline_at_as_many_as_were_measured_is_what_was_measured() -> None:
    for many, values in serving.offline()[:-1]:
        found = serving.offline_at(many * 1.0000001)
        assert found == pytest.approx(values[: len(found)], rel=1e-5), "as many repeats as both neighbours have"
    assert serving.offline_at(serving.offline()[0][0] / 2) is None, "not beyond the batches that were run"


def test_what_a_step_costs_is_shared_and_what_a_token_costs_is_not() -> None:
    """0.1 + 3/n, at 4 and 64, is that at 12 too."""
    few, more = (4.0, [0.1 + 3 / 4]), (64.0, [0.1 + 3 / 64])
    assert serving.between(few, more, 12.0) == pytest.approx([0.1 + 3 / 12])


def test_looser_limits_let_more_through() -> None:
    for row in serving.rows():
        assert serving.good(row, (0, 0)) == 0 <= serving.good(row, (200, 10)) <= serving.good(row, (500, 30))
        assert serving.good(row, (1e9, 1e9)) == row.completed
        assert serving.good(row, serving.LIMITS[0]) == round((row.goodput_ratio or 0) * row.completed)


def test_without_prefix_caching_no_prompt_token_comes_from_a_cache() -> None:
    for row in serving.rows():
        assert row.server == "plain" and serving.cached_share(row) == 0, row.cell
