"""hwmon sensors, on trees laid out as the kernel does, which the tests move forward."""

import re
import shutil
from pathlib import Path

import pytest

from loadgen.energy.choose import open_meter
from loadgen.energy.hwmon import HwmonMeter, find_sensors, known_domain
from loadgen.energy.series import EnergyDomain, accelerators, host_domains
from loadgen.errors import LoadgenError, MeterError
from loadgen.units import NS_PER_S

TREES = Path(__file__).parents[1] / "fixtures" / "hwmon"


@pytest.fixture(params=["grace", "epyc"])
def any_tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(TREES / request.param, tmp_path / "hwmon"))


@pytest.fixture
def grace(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TREES / "grace", tmp_path / "hwmon"))


@pytest.fixture
def epyc(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TREES / "epyc", tmp_path / "hwmon"))


class Ticking:
    """A clock that the test moves."""

    ns = 0

    def __call__(self) -> int:
        return self.ns


def test_the_rails_of_a_grace_are_within_its_socket_and_that_within_the_module(grace: Path) -> None:
    domains = HwmonMeter(grace).domains
    assert {domain.name: domain.within for domain in domains} == {
        "module:0": None,
        "cpu:socket-0": "module:0",
        "cpu:socket-0/cpu": "cpu:socket-0",
        "cpu:socket-0/sysio": "cpu:socket-0",
    }
    gpu = EnergyDomain(name="gpu:0", source="nvml-counter")
    assert [domain.name for domain in host_domains([gpu, *domains])] == ["cpu:socket-0"], "and nothing is added twice"


def test_without_a_container_the_rails_add_up(grace: Path) -> None:
    for chip in ("hwmon1", "hwmon2"):
        shutil.rmtree(grace / chip)
    domains = HwmonMeter(grace).domains
    assert [(domain.name, domain.within) for domain in accelerators(domains)] == [
        ("cpu:socket-0/cpu", None),
        ("cpu:socket-0/sysio", None),
    ]


@pytest.mark.parametrize(
    ("chip", "label", "domain"),
    [
        ("power_meter", "Module Power Socket 3", "module:3"),
        ("power_meter", "Grace Power Socket 1", "cpu:socket-1"),
        ("power_meter", "Total Power in uW Socket 0", "cpu:socket-0"),
        ("power_meter", "CPU Rail Input Power in uW socket 0", "cpu:socket-0/cpu"),
        ("power_meter", "SoC Rail Input Power in uW socket 2", "cpu:socket-2/sysio"),
        ("power_meter", "DRAM Input Power in uW socket 0", "cpu:socket-0/dram"),
        ("power_meter", "CPU Rail Output Power in uW socket 0", None),
        ("power_meter", "CPU Power Socket ", None),
        ("power_meter", "", None),
        ("corsairpsu", "CPU Power Socket 0", None),
        ("amd_energy", "Esocket1", "cpu:package-1"),
        ("amd_energy", "Ecore001", None),
        ("zenpower", "SVI2_P_Core", None),
    ],
)
def test_a_label_tells_the_domain_or_the_sensor_is_unknown(chip: str, label: str, domain: str | None) -> None:
    assert known_domain(chip, label) == domain


def test_power_is_integrated(grace: Path) -> None:
    clock = Ticking()
    meter = HwmonMeter(grace, "power_meter/Grace-Power-Socket-0", clock=clock)
    value = grace / "hwmon2/device/power1_average"
    samples = []
    for second, watts in enumerate([100, 300, 300]):
        clock.ns = second * NS_PER_S
        value.write_text(f"{watts * 1_000_000}\n")
        samples += meter.read().samples
    assert [(sample.domain, sample.joules) for sample in samples] == [
        ("cpu:socket-0", 0), ("cpu:socket-0", 200), ("cpu:socket-0", 500)
    ]  # fmt: skip


def test_a_counter_is_in_microjoules_and_its_restart_is_a_gap(epyc: Path) -> None:
    clock = Ticking()
    meter = HwmonMeter(epyc, clock=clock)
    counter = epyc / "hwmon0/energy3_input"
    samples, resets = [], 0
    for second, joules in enumerate([900, 950, 1050, 20, 70]):
        clock.ns = second * NS_PER_S
        counter.write_text(f"{joules * 1_000_000}\n")
        reading = meter.read()
        samples += [sample for sample in reading.samples if sample.domain == "cpu:package-0"]
        resets += reading.resets
    assert [sample.gap for sample in samples] == [False, False, True]
    assert samples[1].joules - samples[0].joules == 100
    assert resets == 1


def test_a_sensor_of_unknown_scope_is_listed_and_read_only_by_name(epyc: Path) -> None:
    meter = HwmonMeter(epyc)
    assert [domain.name for domain in meter.domains] == ["cpu:package-0", "cpu:package-1"]
    assert "power_meter/power1, amdgpu/PPT@hwmon2, amdgpu/PPT@hwmon3" in meter.notes[-1]
    [machine] = HwmonMeter(epyc, "power_meter/power1").domains
    assert (machine.name, machine.source) == ("machine:power_meter/power1", "hwmon-power-average")
    [card] = HwmonMeter(epyc, "amdgpu/PPT@hwmon3").domains
    assert (card.name, card.source) == ("sensor:amdgpu/PPT@hwmon3", "hwmon-power")


def test_an_unknown_name_is_refused_with_the_names_there_are(epyc: Path) -> None:
    with pytest.raises(MeterError, match=re.escape("of this name; it has amd_energy/Esocket0")):
        HwmonMeter(epyc, "amdgpu/PPT")
    shutil.rmtree(epyc / "hwmon0")
    with pytest.raises(MeterError, match=re.escape("read only by name (--energy hwmon:NAME): power_meter/power1")):
        HwmonMeter(epyc)


def test_a_tree_without_sensors_is_no_meter(tmp_path: Path) -> None:
    (tmp_path / "hwmon0").mkdir()
    (tmp_path / "hwmon0" / "temp1_input").write_text("41000\n")
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(MeterError, match=r"has no sensor of power or energy of known scope$"):
            HwmonMeter(root)


def test_a_sensor_that_stops_answering_costs_only_itself(any_tree: Path) -> None:
    clock = Ticking()
    meter = HwmonMeter(any_tree, clock=clock)
    first, *others = [domain.name for domain in meter.domains]
    meter.read()
    clock.ns = NS_PER_S
    for path in any_tree.glob("hwmon*/**/*_*put"):
        if path.name.startswith("energy"):
            path.write_text(f"{int(path.read_text()) + 50_000_000}\n")
    broken = next(sensor for sensor in find_sensors(any_tree) if sensor.domain.name == first).path
    broken.write_text("no data\n")
    reading = meter.read()
    assert {sample.domain for sample in reading.samples} == set(others)
    assert len(reading.errors) == 1
    assert reading.errors[0].startswith(f"{first}: ")


@pytest.mark.parametrize("text", ["-5", "1e9", "", "99999999999999999999", "9" * 400, "9" * 5_000, "٣"])
def test_a_value_that_is_no_power_is_an_error_and_no_sample(text: str, grace: Path) -> None:
    meter = HwmonMeter(grace, "power_meter/CPU-Power-Socket-0")
    (grace / "hwmon3/device/power1_average").write_text(text)
    reading = meter.read()
    assert not reading.samples
    assert len(reading.errors) == 1


def test_hostile_labels_become_plain_names(tmp_path: Path) -> None:
    chip = tmp_path / "hwmon0"
    chip.mkdir()
    (chip / "name").write_bytes(b"a,b{\x00\xff}\n" * 500)
    (chip / "power1_label").write_text('"><script>\n')
    (chip / "power1_input").write_text("5\n")
    [sensor] = find_sensors(tmp_path)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}/script", sensor.name)


def test_the_same_socket_twice_is_refused(grace: Path) -> None:
    shutil.copytree(grace / "hwmon2", grace / "hwmon9")
    with pytest.raises(MeterError, match="cpu:socket-0 twice: read one of them by name"):
        HwmonMeter(grace)
    assert HwmonMeter(grace, "power_meter/Grace-Power-Socket-0@hwmon9").domains[0].name == "cpu:socket-0"


def test_several_sources_measure_nothing_twice(epyc: Path) -> None:
    powercap = Path(__file__).parents[1] / "fixtures" / "powercap"
    with pytest.raises(LoadgenError, match="rapl and hwmon both measure cpu:package-0"):
        open_meter("rapl,hwmon", powercap=powercap, hwmon=epyc)
    with pytest.raises(LoadgenError, match="cpu estimates what hwmon measures"):
        open_meter("cpu,hwmon", hwmon=epyc)
    meter, _ = open_meter("hwmon,hwmon:power_meter/power1", hwmon=epyc)
    assert meter is not None
    assert [domain.name for domain in accelerators(meter.domains)] == ["cpu:package-0", "cpu:package-1"]
    meter.close()
