"""A profile is carried over to another GPU by both data sheets, and by cells measured there."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

import loadgen
from loadgen.energy_model.energy_profile import EnergyProfile, GridPoint, read_energy_profile, write_energy_profile
from loadgen.energy_model.hardware import Hardware, read_hardware
from loadgen.energy_model.transfer import on_gpu, transferred
from loadgen.errors import LoadgenError
from loadgen.report.estimate_terminal import transfer_line

KEYS = [(n, o, b) for n in (32, 256, 2048) for o in (8, 64, 512) for b in (1, 16, 128)]
SOURCE = read_hardware("h200")
SLOWER = msgspec.structs.replace(SOURCE, name="slower", peak_bytes_per_s=SOURCE.peak_bytes_per_s / 2)


def joules(key: tuple[int, int, int], reads: float, products: float) -> float:
    n, o, batch = key
    contexts = (o - 1) * n + o * (o - 1) / 2
    return reads * (0.5 + 2.4 * o / batch + 2e-5 * contexts) + products * (0.02 * n + 4e-7 * n**2 + 0.01 * (o - 1))


def profile(
    reads: float = 1.0, products: float = 1.0, gpu: str = "h200", keys: list[tuple[int, int, int]] = KEYS
) -> EnergyProfile:
    cells = [
        GridPoint(
            input=key[0],
            output=key[1],
            batch=key[2],
            joules_per_request=joules(key, reads, products),
            stderr=0.1,
            requests=key[2],
            duration_s=joules(key, reads, products) * key[2] / 500,
        )
        for key in keys
    ]
    return EnergyProfile(
        gpu=gpu, engine="e", model="llama-3.1-8b", simulated=True, idle_w=90.0, provenance={}, cells=tuple(cells)
    )


def assert_same_joules(a: EnergyProfile, b: EnergyProfile, within: float = 1e-3) -> None:
    of_b = {cell.key: cell.joules_per_request for cell in b.cells}
    assert {cell.key: cell.joules_per_request for cell in a.cells} == pytest.approx(of_b, rel=within)


@pytest.mark.parametrize(
    ("changes", "reads", "products"),
    [
        ({}, 1.0, 1.0),
        ({"peak_bytes_per_s": SOURCE.peak_bytes_per_s / 2}, 2.0, 1.0),
        ({"peak_flops": SOURCE.peak_flops * 4}, 1.0, 0.25),
        ({"limit_w": SOURCE.limit_w / 2}, 0.5, 0.5),
    ],
)
def test_by_the_data_sheets_reads_cost_as_bandwidth_says_and_products_as_the_peak_rate(
    changes: dict[str, float], reads: float, products: float
) -> None:
    target = msgspec.structs.replace(SOURCE, **changes)
    made, transfer = transferred(profile(), SOURCE, target)
    assert_same_joules(made, profile(reads, products))
    assert (transfer.reads, transfer.products, transfer.cells) == (pytest.approx(reads), pytest.approx(products), 0)


def test_the_time_of_a_request_follows_from_its_joules_and_the_power_limit() -> None:
    half = msgspec.structs.replace(SOURCE, limit_w=SOURCE.limit_w / 2)
    made, _ = transferred(profile(), SOURCE, half)
    assert [cell.duration_s for cell in made.cells] == pytest.approx([cell.duration_s for cell in profile().cells])
    made, _ = transferred(profile(), SOURCE, SLOWER)
    slow = [joules(cell.key, 2, 1) * cell.batch / 500 for cell in made.cells]
    assert [cell.duration_s for cell in made.cells] == pytest.approx(slow, rel=1e-3)


def test_cells_of_the_other_gpu_correct_what_its_data_sheet_promises() -> None:
    true = profile(1.6, 1.1, "slower")
    few = [cell for cell in true.cells if cell.key in ((32, 512, 1), (2048, 8, 128), (256, 64, 16))]
    made, transfer = transferred(profile(), SOURCE, SLOWER, few)
    assert (transfer.reads, transfer.products) == (pytest.approx(1.6, rel=0.01), pytest.approx(1.1, rel=0.01))
    assert_same_joules(made, true, within=0.01)
    assert [cell for cell in made.cells if cell.key in {point.key for point in few}] == few


def test_cells_that_show_one_cost_leave_the_other_to_the_data_sheet() -> None:
    long_prompts = [cell for cell in profile(1.6, 1.3).cells if cell.key == (2048, 8, 128)]
    _, transfer = transferred(profile(), SOURCE, SLOWER, long_prompts)
    assert transfer.products == pytest.approx(1.3, rel=0.02)
    assert transfer.reads == pytest.approx(2.0, rel=0.02)


def test_cells_between_the_grid_points_make_no_holes_in_the_grid() -> None:
    between = profile(1.6, 1.1, keys=[(64, 256, 2), (1024, 8, 64)]).cells
    made, transfer = transferred(profile(), SOURCE, SLOWER, between)
    assert [cell.key for cell in made.cells] == [cell.key for cell in profile().cells]
    assert transfer.reads == pytest.approx(1.6, rel=0.02)


def test_what_was_not_measured_on_the_other_gpu_is_unknown() -> None:
    made, _ = transferred(profile(), SOURCE, SLOWER)
    assert made.idle_w is None
    assert {cell.stderr for cell in made.cells} == {None}


def test_a_profile_on_its_own_gpu_is_itself() -> None:
    of = read_energy_profile("h200-sim-llama-3.1-8b")
    assert on_gpu(of, None, None) == on_gpu(of, "h200", None) == (of, None)


@pytest.mark.parametrize(
    ("hardware", "cells", "message"),
    [
        ("h100", profile(gpu="h200"), "cells are those of h200"),
        (None, msgspec.structs.replace(profile(gpu="h100"), engine="other"), "expected e with llama-3.1-8b on h100"),
        (None, msgspec.structs.replace(profile(gpu="h100"), simulated=False), "on h100 (simulated)"),
        ("no-such-gpu", None, "no-such-gpu"),
    ],
)
def test_a_transfer_that_would_mix_servers_is_refused(
    hardware: str | None, cells: EnergyProfile | None, message: str
) -> None:
    with pytest.raises(LoadgenError) as refused:
        on_gpu(profile(), hardware, cells)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_profile_too_small_to_tell_the_costs_apart_is_not_transferred() -> None:
    with pytest.raises(LoadgenError, match="cannot be transferred to h100: its 5 cells"):
        on_gpu(profile(keys=KEYS[:5]), "h100", None)


def test_an_estimate_for_another_gpu_says_so_and_claims_no_error(tmp_path: Path) -> None:
    keys = [(32, 512, 1), (2048, 8, 128)]
    write_energy_profile(tmp_path / "base.json", profile())
    write_energy_profile(tmp_path / "cells.json", profile(1.3, 1.0, "h100", keys))
    own = loadgen.estimate("chat", profile=tmp_path / "base.json", batch=16)
    sheets = loadgen.estimate("chat", profile=tmp_path / "base.json", batch=16, hardware="h100")
    cells = loadgen.estimate("chat", profile=tmp_path / "base.json", batch=16, cells=tmp_path / "cells.json")
    assert own.transfer is None and own.method("interpolated").stderr_joules is not None
    totals = [made.method("interpolated").joules for made in (own, cells, sheets)]
    assert np.all(np.diff(totals) > 0)
    for made, by in ((sheets, "alone"), (cells, "and 2 measured cells")):
        assert made.profile == "h200-e-llama-3.1-8b" and made.transfer is not None
        assert all(row.stderr_joules is None for row in made.estimates)
        assert f"transferred to h100 by the data sheets {by}" in transfer_line(made.to_dict()["transfer"])


def test_the_shipped_gpus_are_targets() -> None:
    made, _ = on_gpu(read_energy_profile("h200-sim-llama-3.1-8b"), "l4", None)
    assert isinstance(read_hardware(made.gpu), Hardware) and all(cell.joules_per_request > 0 for cell in made.cells)
