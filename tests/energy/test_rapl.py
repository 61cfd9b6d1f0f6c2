"""RAPL, on a recorded powercap tree that the tests move forward."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.energy.cpu_estimate import CpuEstimate, CpuTimes, PowerCurve, read_times
from loadgen.energy.rapl import RaplMeter, find_zones, unwrap
from loadgen.errors import MeterError

RECORDED = Path(__file__).parents[1] / "fixtures" / "powercap"
RANGE_UJ = 262_143_328_850


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECORDED, tmp_path / "powercap"))


class Ticking:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


def set_uj(tree: Path, zone: str, uj: int) -> None:
    (tree / zone / "energy_uj").write_text(f"{uj}\n")


def test_a_tree_becomes_domains_that_say_what_contains_what(tree: Path) -> None:
    zones, notes = find_zones(tree)
    assert {zone.domain.name: zone.domain.within for zone in zones} == {
        "cpu:package-0": None,
        "dram:0": None,
        "cpu:package-0/core": "cpu:package-0",
        "cpu:package-1": None,
        "dram:1": None,
    }
    assert notes == ["intel-rapl-mmio:0 repeats intel-rapl:0 (package-0): left out"]


def test_psys_contains_the_packages_and_the_memory(tree: Path) -> None:
    shutil.copytree(tree / "intel-rapl:1", tree / "intel-rapl:2")
    (tree / "intel-rapl:2" / "name").write_text("psys\n")
    within = {zone.domain.name: zone.domain.within for zone in find_zones(tree)[0]}
    assert within["psys"] is None
    assert within["cpu:package-0"] == within["dram:0"] == "psys"
    assert within["cpu:package-0/core"] == "cpu:package-0"


def test_memory_mapped_zones_are_used_where_they_are_all_there_is(tree: Path) -> None:
    for zone in tree.glob("intel-rapl:*"):
        shutil.rmtree(zone)
    assert [zone.domain.name for zone in find_zones(tree)[0]] == ["cpu:package-0"]


def test_a_counter_that_wraps_counts_on(tree: Path) -> None:
    clock = Ticking()
    meter = RaplMeter(tree, clock=clock)
    before = {s.domain: s.joules for s in meter.read().samples}
    clock.ns = 10**9
    set_uj(tree, "intel-rapl:0", 49_671_150)
    set_uj(tree, "intel-rapl:0:0", 41_244_567_890)
    after = {s.domain: s.joules for s in meter.read().samples}
    flowed = {name: round(after[name] - before[name], 6) for name in after}
    assert flowed == {
        "cpu:package-0": 50.0,
        "dram:0": 10.0,
        "cpu:package-0/core": 0,
        "cpu:package-1": 0,
        "dram:1": 0,
    }


def test_a_silence_in_which_it_may_have_wrapped_twice_is_a_gap(tree: Path) -> None:
    clock = Ticking()
    meter = RaplMeter(tree, clock=clock)
    meter.read()
    clock.ns = 600 * 10**9
    assert all(sample.gap for sample in meter.read().samples)


@given(st.integers(0, RANGE_UJ - 1), st.integers(0, RANGE_UJ - 1))
def test_unwrapping_undoes_a_wrap(start: int, flowed: int) -> None:
    assert unwrap(start, (start + flowed) % RANGE_UJ, RANGE_UJ) == flowed


def test_one_zone_that_fails_does_not_take_the_others(tree: Path) -> None:
    meter = RaplMeter(tree)
    set_uj(tree, "intel-rapl:0:0", 0)
    (tree / "intel-rapl:0:0" / "energy_uj").unlink()
    reading = meter.read()
    assert len(reading.samples) == 4
    [error] = reading.errors
    assert error.startswith("dram:0:") and "ENOENT" in error


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match=r"no RAPL counters here: .*intel-rapl:\* not found"):
        RaplMeter(tmp_path)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read everything: step down to nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_refused_permission_names_the_file_and_the_cure(tree: Path) -> None:
    temporary_root = Path(tempfile.gettempdir()).resolve()
    for folder in (tree, *tree.parents):
        if temporary_root in folder.parents:
            folder.chmod(folder.stat().st_mode | 0o555)
    secret = tree / "intel-rapl:0" / "energy_uj"
    secret.chmod(0o400 if os.geteuid() == 0 else 0)
    with unprivileged(), pytest.raises(MeterError) as refused:
        RaplMeter(tree)
    assert str(secret) in str(refused.value)
    assert "permission denied" in str(refused.value) and "sudo chmod a+r" in str(refused.value)


STAT = "cpu  {user} 0 0 {idle} {iowait} 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n"


def test_the_first_line_of_proc_stat_is_all_cpus() -> None:
    assert read_times("cpu  100 20 30 1000 50 4 5 6 99 9\ncpu0 ...") == CpuTimes(165, 1215)


@pytest.mark.parametrize("text", ["", "intr 1 2 3", "cpu  1 2 3"])
def test_another_proc_stat_is_refused(text: str) -> None:
    with pytest.raises(MeterError, match="does not begin with"):
        read_times(text)


@pytest.mark.parametrize(
    ("user", "idle", "iowait", "joules"),
    [(0, 200, 0, 20.0), (200, 0, 0, 100.0), (100, 100, 0, 60.0), (100, 50, 50, 60.0)],
)
def test_the_estimate_is_the_curve_at_the_utilisation_of_each_interval(
    tmp_path: Path, user: int, idle: int, iowait: int, joules: float
) -> None:
    stat, clock = tmp_path / "stat", Ticking()
    stat.write_text(STAT.format(user=0, idle=0, iowait=0))
    meter = CpuEstimate(PowerCurve(10, 50), stat=stat, clock=clock)
    clock.ns = 2 * 10**9
    stat.write_text(STAT.format(user=user, idle=idle, iowait=iowait))
    [sample] = meter.read().samples
    assert sample.joules == pytest.approx(joules)
    assert meter.read().samples == []


def test_the_estimate_says_what_it_is_and_on_what_it_rests() -> None:
    meter = CpuEstimate(cpus=10)
    assert [domain.source for domain in meter.domains] == ["estimate"]
    assert "estimate" in meter.notes[0] and "7.4 W idle to 35.0 W busy" in meter.notes[0]


@pytest.mark.parametrize(
    ("start_uj", "end_uj", "flowed_uj"),
    [(5, 5, 0), (5, 6, 1), (5, 4, RANGE_UJ - 1), (RANGE_UJ - 1, 0, 1), (0, RANGE_UJ - 1, RANGE_UJ - 1)],
)
def test_an_equal_value_is_no_wrap_and_a_lower_one_is_one(start_uj: int, end_uj: int, flowed_uj: int) -> None:
    assert unwrap(start_uj, end_uj, RANGE_UJ) == flowed_uj


@pytest.mark.parametrize(("range_uj", "gap"), [(2_000_000_001, False), (2_000_000_000, True)])
def test_a_silence_in_which_2_kw_fill_the_counters_range_is_a_gap(tree: Path, range_uj: int, gap: bool) -> None:
    for zone in tree.glob("intel-rapl*"):
        (zone / "max_energy_range_uj").write_text(f"{range_uj}\n")
    clock = Ticking()
    meter = RaplMeter(tree, clock=clock)
    meter.read()
    clock.ns = 10**9
    assert {sample.gap for sample in meter.read().samples} == {gap}
