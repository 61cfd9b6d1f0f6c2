"""Bills of two tenants against the simulated engine's own account, and the published table of them."""

import json

import pytest

from benchmarks.accuracy.bill import JSON, PAGE, TARGET, TENANTS, Cell, cells, score, with_table


@pytest.mark.parametrize("cell", [Cell(50, 5), Cell(90, 20), Cell(30, 20)], ids=lambda cell: cell.name)
def test_each_tenant_has_the_joules_that_it_used_and_no_other_way_to_divide_them_comes_near(cell: Cell) -> None:
    row = score(cell, 800, seed=3)
    measured = max(abs(row["errors"]["measured"][tenant]) for tenant in TENANTS)
    assert measured <= TARGET
    for way, errors in row["errors"].items():
        assert way == "measured" or max(abs(errors[tenant]) for tenant in TENANTS) > 3 * measured, way
    assert (row["off_counter_mj"], row["unsettled_mj"], row["settled"]) == (0, 0, 800)
    assert row["unattributed"] < 0.005


def test_the_published_table_is_drawn_from_the_published_numbers() -> None:
    rows = json.loads(JSON.read_text())
    assert with_table(PAGE.read_text(), rows) == PAGE.read_text()
    assert [(row["chats"], row["in_flight"]) for row in rows] == [(cell.chats, cell.in_flight) for cell in cells()]
    assert all(row["off_counter_mj"] == 0 for row in rows), "sums are exact"
