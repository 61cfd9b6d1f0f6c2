"""Requests by length in a shaded table: each once, and blank where there is none."""

import pytest

from loadgen.report import heat_map
from support import sample_runs


def test_heat_map_cells_hold_every_request_once_and_empty_is_unknown() -> None:
    found = heat_map.points(sample_runs.run())
    grid = heat_map.heat(found)
    assert grid is not None
    cells = [cell for row in grid.cells for cell in row]
    assert sum(cell[0] for cell in cells if cell) == len(found)
    assert sum(cell[0] * cell[1] for cell in cells if cell) == pytest.approx(sum(p.joules for p in found))
    assert None in cells
    assert all(cell is None or cell[0] > 0 for cell in cells)
    assert len(grid.cells) <= 8
    assert len(grid.cells[0]) <= 8


@pytest.mark.parametrize("tokens", [[1], [0, 1], [0], [3, 4, 5], [1, 2**20], [64, 128], [8000]])
def test_heat_map_edges_hold_every_length(tokens: list[int]) -> None:
    grid = heat_map.heat([heat_map.Point(n, n, 2.0) for n in tokens])
    assert grid is not None
    assert grid.input_edges[0] <= min(tokens)
    assert max(tokens) < grid.input_edges[-1]
    assert grid.input_edges == sorted(set(grid.input_edges))
