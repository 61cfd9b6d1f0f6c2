"""RAPL, on a recorded powercap tree that the tests move forward."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.energy.choose import open_meter
from loadgen.energy.counter_track import AGE_NS, PACKAGE_MAX_W
from loadgen.energy.cpu_estimate import CpuEstimate, CpuTimes, read_times
from loadgen.energy.rapl import RaplMeter, Wrapping, Zone, find_zones, unwrap
from loadgen.energy.series import EnergyDomain
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


def readable_by_all(tree: Path) -> None:
    temporary_root = Path(tempfile.gettempdir()).resolve()
    for folder in (tree, *tree.parents):
        if temporary_root in folder.parents:
            folder.chmod(folder.stat().st_mode | 0o555)


def deny(path: Path) -> None:
    path.chmod(0o400 if os.geteuid() == 0 else 0)


@pytest.mark.parametrize("name", ["energy_uj", "max_energy_range_uj", "name"])
def test_a_refused_permission_names_the_file_and_the_cure(tree: Path, name: str) -> None:
    readable_by_all(tree)
    for path in tree.glob(f"*/{name}"):
        deny(path)
    with unprivileged(), pytest.raises(MeterError) as refused:
        RaplMeter(tree)
    for text in (str(tree / "intel-rapl:0" / name), "permission denied", f"sudo chmod a+r {tree}/intel-rapl*/{name}"):
        assert text in str(refused.value)


BAD_VALUES: dict[str, dict[str, bytes | None]] = {
    "energy_uj": {"is missing": None, "is empty": b"", "is text": b"up", "is negative": b"-5", "is a byte": b"\xff"},
    "max_energy_range_uj": {"is missing": None, "is empty": b"", "is 0": b"0", "is a fraction": b"1.5"},
    "name": {"is missing": None, "is empty": b"\n"},
}


@pytest.mark.parametrize(("file", "fault"), [(file, fault) for file, faults in BAD_VALUES.items() for fault in faults])
@pytest.mark.parametrize(("zone", "lost"), [("intel-rapl:0:0", "dram:0"), ("intel-rapl:0:1", "cpu:package-0/core")])
def test_a_part_without_its_value_range_or_name_is_left_out_with_a_note(
    tree: Path, zone: str, lost: str, file: str, fault: str
) -> None:
    everything = {domain.name for domain in RaplMeter(tree).domains}
    shutil.rmtree(tree / "intel-rapl-mmio:0")
    spoil(tree / zone / file, BAD_VALUES[file][fault])
    meter = RaplMeter(tree)
    assert everything - {domain.name for domain in meter.domains} == {lost}
    [note] = meter.notes
    assert note.startswith(f"{zone} cannot be read") and f"{zone}/{file}" in note


@pytest.mark.parametrize(("file", "fault"), [(file, fault) for file, faults in BAD_VALUES.items() for fault in faults])
def test_a_sum_that_lacks_a_package_is_refused_with_the_file(tree: Path, file: str, fault: str) -> None:
    spoil(tree / "intel-rapl:1" / file, BAD_VALUES[file][fault])
    with pytest.raises(MeterError, match=f"intel-rapl:1/{file}"):
        RaplMeter(tree)
    meter, reasons = open_meter("auto", powercap=tree, hwmon=tree)
    assert meter is None and reasons[-2].startswith("rapl: ") and f"intel-rapl:1/{file}" in reasons[-2]


def spoil(path: Path, content: bytes | None) -> None:
    path.unlink() if content is None else path.write_bytes(content)


def test_a_denied_memory_zone_does_not_take_the_packages(tree: Path) -> None:
    readable_by_all(tree)
    deny(tree / "intel-rapl:0:0" / "energy_uj")
    with unprivileged():
        meter = RaplMeter(tree)
    assert {"cpu:package-0", "cpu:package-1"} <= {domain.name for domain in meter.domains}
    assert "dram:0" not in {domain.name for domain in meter.domains}


def test_packages_are_in_no_platform_that_cannot_be_read(tree: Path) -> None:
    shutil.copytree(tree / "intel-rapl:1", tree / "intel-rapl:2")
    (tree / "intel-rapl:2" / "name").write_text("psys\n")
    (tree / "intel-rapl:2" / "max_energy_range_uj").unlink()
    within = {zone.domain.name: zone.domain.within for zone in find_zones(tree)[0]}
    assert within["cpu:package-0"] is within["dram:0"] is None and "psys" not in within


# From 180,000 J and, 0.1 s later, the second value: joules counted, gap, resets. 2 kW for 0.1 s and its age are 400 J.
STEPS: dict[str, tuple[int, float, bool, int]] = {
    "a little": (180_005_000_000, 5.0, False, 0),
    "nothing": (180_000_000_000, 0.0, False, 0),
    "as much as a package can draw": (180_399_000_000, 399.0, False, 0),
    "more than a package can draw": (180_401_000_000, 0.0, True, 1),
    "a restart": (5_000_000, 0.0, True, 1),
    "back by rounding": (179_999_999_000, 0.0, False, 0),
    "back by more than rounding": (179_000_000_000, 0.0, True, 1),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_fall_is_a_wrap_only_if_the_package_can_have_drawn_it(tree: Path, step: str) -> None:
    now_uj, joules, gap, resets = STEPS[step]
    clock = Ticking()
    set_uj(tree, "intel-rapl:1", 180_000_000_000)
    meter = RaplMeter(tree, clock=clock)
    meter.read()
    clock.ns = 10**8
    set_uj(tree, "intel-rapl:1", now_uj)
    reading = meter.read()
    [sample] = [sample for sample in reading.samples if sample.domain == "cpu:package-1"]
    assert (sample.joules, sample.gap, reading.resets) == (pytest.approx(joules), gap, resets)


def test_a_counter_beyond_its_own_range_never_counts_backwards(tree: Path) -> None:
    clock = Ticking()
    set_uj(tree, "intel-rapl:1", 2 * RANGE_UJ)
    meter = RaplMeter(tree, clock=clock)
    meter.read()
    clock.ns = 10**8
    set_uj(tree, "intel-rapl:1", 5)
    reading = meter.read()
    assert {s.joules for s in reading.samples if s.domain == "cpu:package-1"} == {0.0} and reading.resets == 1


@given(st.lists(st.tuples(st.integers(1, 10**10), st.integers(0, 2 * RANGE_UJ)), min_size=1, max_size=30))
def test_no_history_of_a_counter_makes_more_than_a_package_can_draw(history: list[tuple[int, int]]) -> None:
    zone = Zone(EnergyDomain(name="cpu:package-0", source="rapl"), Path("zone"), RANGE_UJ)
    counter, now_ns = Wrapping(zone), 0
    samples = [counter.observe(0, 0, 0)]
    for pause_ns, raw_uj in history:
        now_ns += pause_ns
        samples.append(counter.observe(now_ns, now_ns, raw_uj))
    flowed = [(b.joules - a.joules, (b.t_ns - a.t_ns) / 1e9) for a, b in pairwise(samples)]
    assert all(0 <= joules <= PACKAGE_MAX_W * (elapsed_s + AGE_NS / 1e9) + 1e-6 for joules, elapsed_s in flowed)


STAT = "cpu  {user} 0 0 {idle} {iowait} 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n"


def test_the_first_line_of_proc_stat_is_all_cpus() -> None:
    assert read_times("cpu  100 20 30 1000 50 4 5 6 99 9\ncpu0 ...") == CpuTimes(165, 1215)


@pytest.mark.parametrize("text", ["", "intr 1 2 3", "cpu  1 2 3"])
def test_another_proc_stat_is_refused(text: str) -> None:
    with pytest.raises(MeterError, match="does not begin with"):
        read_times(text)


@pytest.mark.parametrize(
    ("user", "idle", "iowait", "joules"),
    [(0, 200, 0, 14.8), (200, 0, 0, 70.0), (100, 100, 0, 42.4), (100, 50, 50, 42.4)],
)
def test_the_estimate_is_the_curve_at_the_utilisation_of_each_interval(
    tmp_path: Path, user: int, idle: int, iowait: int, joules: float
) -> None:
    stat, clock = tmp_path / "stat", Ticking()
    stat.write_text(STAT.format(user=0, idle=0, iowait=0))
    meter = CpuEstimate(stat=stat, cpus=10, clock=clock)
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
