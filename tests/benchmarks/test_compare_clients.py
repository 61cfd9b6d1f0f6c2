"""The table of clients side by side: medians over rounds, and ratios within them."""

import pytest

from benchmarks.instrument import results_table
from benchmarks.instrument.compare_clients import Cell


def cell(*rates: float) -> Cell:
    return Cell([{"events_per_s": rate} for rate in rates])


def test_a_ratio_is_to_the_same_round() -> None:
    """A machine half as fast in the second round halves both."""
    assert cell(200, 100, 300).ratios(cell(100, 50, 100)) == {"events_per_s": (2.0, 2.0, 3.0)}


def test_rounds_that_only_one_client_had_time_for_count_in_medians_alone() -> None:
    loadgen, peer = cell(100, 300), cell(50)
    assert peer.ratios(loadgen) == {"events_per_s": (0.5, 0.5, 0.5)}
    assert loadgen.medians() == {"events_per_s": 200}


@pytest.mark.parametrize(
    ("ratios", "text"),
    [
        ({}, "-"),
        ({"events_per_s": 50.0}, "50"),
        ({"events_per_s": 50.0, "ratios": {"events_per_s": (0.5, 0.5, 0.5)}}, "50 (×0.5)"),
        ({"events_per_s": 50.0, "ratios": {"events_per_s": (0.25, 0.5, 2.0)}}, "50 (×0.5 [0.25, 2])"),
        ({"failure": results_table.NO_TIME}, results_table.NO_TIME),
        ({"failure": "it broke"}, "failed"),
    ],
)
def test_a_cell_shows_its_number_and_its_ratio_or_why_it_has_none(ratios: dict[str, object], text: str) -> None:
    title, case, *_ = next(row for row in results_table.ROWS if row[-1] == "events_per_s")
    results = {
        "measured": "a day", "command": "a command", "machine": "a machine", "missing": {},
        "versions": {"loadgen": "", "peer": "2"},
        "cases": {case: {"loadgen": {"events_per_s": 100.0, "rounds": 2}, "peer": ratios}},
    }  # fmt: skip
    assert f"| {title} | 100 | {text} |" in results_table.markdown(results)
    assert "median of 2 rounds" in results_table.markdown(results)
