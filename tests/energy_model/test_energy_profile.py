"""The file of a measured energy profile: what is written is read back, and what makes no sense is refused."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from loadgen.energy_model.energy_profile import (
    EnergyProfile,
    GridPoint,
    energy_profile_json,
    read_energy_profile,
    write_energy_profile,
)
from loadgen.errors import LoadgenError

POINT = GridPoint(input=8, output=2, batch=1, joules_per_request=1.5)


def profile(*points: GridPoint) -> EnergyProfile:
    return EnergyProfile(
        gpu="h200", engine="none", model="llama-3.1-8b", simulated=True, idle_w=None, provenance={}, cells=points
    )


def test_a_profile_is_read_as_it_was_written_in_order_of_batch_then_lengths(tmp_path: Path) -> None:
    points = [
        msgspec.structs.replace(POINT, batch=b, input=n, output=o) for b in (2, 1) for n in (9, 8) for o in (4, 3)
    ]
    (path := tmp_path / "p.json").write_bytes(energy_profile_json(profile(*points)))
    expected = sorted(points, key=lambda p: (p.batch, p.input, p.output))
    assert list(read_energy_profile(str(path)).cells) == expected


def test_a_profile_is_written_into_a_new_folder_or_over_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "p.json"
    for point in (POINT, msgspec.structs.replace(POINT, batch=2)):
        write_energy_profile(path, profile(point))
        assert path.read_bytes() == energy_profile_json(profile(point))
    assert [entry.name for entry in path.parent.iterdir()] == ["p.json"]


def test_a_profile_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadgenError, match=r"cannot write .*file/p\.json"):
        write_energy_profile(tmp_path / "file" / "p.json", profile(POINT))


def test_the_shipped_simulated_profile_says_so_and_has_a_full_grid() -> None:
    shipped = read_energy_profile("h200-sim-llama-3.1-8b")
    assert shipped.simulated and shipped.engine == "sim"
    axes = [{getattr(c, side) for c in shipped.cells} for side in ("input", "output", "batch")]
    assert len(shipped.cells) == np.prod([len(axis) for axis in axes]) == 120


REFUSED = [
    ("no grid points", [], "no cells in it"),
    ("an input length of 0", [msgspec.structs.replace(POINT, input=0)], r"cell \(0, 2, 1\): expected lengths"),
    ("an output length of 0", [msgspec.structs.replace(POINT, output=0)], r"cell \(8, 0, 1\): expected lengths"),
    ("a batch of 0", [msgspec.structs.replace(POINT, batch=0)], r"cell \(8, 2, 0\): expected lengths"),
    ("no energy", [msgspec.structs.replace(POINT, joules_per_request=0.0)], "joules above 0"),
    ("negative energy", [msgspec.structs.replace(POINT, joules_per_request=-1.0)], "joules above 0"),
    ("a point twice", [POINT, msgspec.structs.replace(POINT, joules_per_request=9.0)], r"\(8, 2, 1\) is there twice"),
]


@pytest.mark.parametrize(("problem", "points", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_profile_that_makes_no_sense_is_refused(
    tmp_path: Path, problem: str, points: list[GridPoint], message: str
) -> None:
    (path := tmp_path / "p.json").write_bytes(energy_profile_json(profile(*points)))
    with pytest.raises(LoadgenError, match=message):
        read_energy_profile(str(path))


def test_the_smallest_lengths_and_batch_are_accepted(tmp_path: Path) -> None:
    smallest = GridPoint(input=1, output=1, batch=1, joules_per_request=1e-9)
    (path := tmp_path / "p.json").write_bytes(energy_profile_json(profile(smallest)))
    assert read_energy_profile(str(path)).cells == (smallest,)
