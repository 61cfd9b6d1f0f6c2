"""The sampling thread, over meters that do as the test says; and the choice of a meter."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from loadgen.clock import monotonic_ns
from loadgen.energy.choose import open_meter
from loadgen.energy.meter import Reading
from loadgen.energy.sampler import STOPPED_ANSWERING, Sampler
from loadgen.energy.series import EnergyDomain, EnergySample, series_by_domain
from loadgen.errors import LoadgenError, MeterError

POWERCAP = Path(__file__).parents[1] / "fixtures" / "powercap"


class ScriptedMeter:
    """100 W on gpu:0, of which 40 W in gpu:0/memory; a read is one point of each. Overridden by what the test needs."""

    poll_s = 0.005
    notes: list[str] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.reads = 0
        self.enough = threading.Event()
        self.broken: BaseException | None = None
        self.blocked: threading.Event | None = None

    @property
    def domains(self) -> list[EnergyDomain]:
        whole = EnergyDomain(name="gpu:0", source="test", period_s=0.005)
        return [whole, EnergyDomain(name="gpu:0/memory", source="test", within="gpu:0")]

    def read(self) -> Reading:
        self.reads += 1
        if self.reads >= 20:
            self.enough.set()
        if self.blocked is not None:
            self.blocked.wait()
        if self.broken is not None:
            raise self.broken
        t_ns = monotonic_ns()
        samples = [EnergySample(t_ns, "gpu:0", 100 * t_ns / 1e9), EnergySample(t_ns, "gpu:0/memory", 40 * t_ns / 1e9)]
        return Reading(samples, resets=int(self.reads == 3), errors=("gpu:1: lost",) if self.reads == 5 else ())

    def close(self) -> None: ...


def test_every_sample_is_handed_on_and_the_run_is_bracketed() -> None:
    meter, got = ScriptedMeter(), []
    sampler = Sampler(meter, got.extend)
    start_ns = monotonic_ns()
    sampler.start()
    assert meter.enough.wait(20)
    end_ns = monotonic_ns()
    report = sampler.stop()
    series = series_by_domain(got)["gpu:0"]
    assert start_ns <= series.t_ns[0] and series.t_ns[-1] >= end_ns
    assert report.samples == len(got) == 2 * report.reads
    assert (report.resets, report.errors) == (1, {"gpu:1: lost": 1})
    assert report.period_s is not None and report.period_s >= meter.poll_s
    assert report.read_cost_s is not None and report.read_cost_s > 0
    assert report.cpu_s > 0
    assert meter.reads == report.reads


def test_live_power_is_the_last_seconds_and_adds_no_domain_twice() -> None:
    meter = ScriptedMeter()
    sampler = Sampler(meter, lambda _: None)
    assert (sampler.latest().watts, sampler.latest().total_watts) == ({}, None)
    sampler.start()
    assert meter.enough.wait(20)
    live = sampler.latest()
    assert live.watts == {"gpu:0": pytest.approx(100), "gpu:0/memory": pytest.approx(40)}
    assert live.total_watts == pytest.approx(100)
    assert live.joules["gpu:0"] > live.joules["gpu:0/memory"] > 0
    sampler.stop()


def test_a_failing_meter_is_counted_and_asked_again() -> None:
    meter, got = ScriptedMeter(), []
    meter.broken = MeterError("no answer")
    sampler = Sampler(meter, got.extend)
    sampler.start()
    while sampler.report().errors.get("no answer", 0) < 3:
        meter.enough.wait(0.01)
    meter.broken = None
    meter.reads = 10
    assert meter.enough.wait(20)
    assert sampler.stop().errors["no answer"] >= 3
    assert got


def test_a_domain_that_fell_silent_does_not_hold_up_the_end_and_shows() -> None:
    meter = ScriptedMeter()
    sampler = Sampler(meter, lambda _: None)
    sampler.start()
    assert meter.enough.wait(20)
    meter.broken = MeterError("lost")
    report = sampler.stop()
    assert report.silence_s["gpu:0"] >= 0.2


def test_a_read_that_hangs_is_reported_and_left_behind() -> None:
    meter = ScriptedMeter()
    sampler = Sampler(meter, lambda _: None, answer_s=0.05)
    sampler.start()
    assert meter.enough.wait(20)
    meter.blocked = threading.Event()
    while not sampler.hangs:
        meter.enough.wait(0)
    report = sampler.stop()
    assert report.errors[STOPPED_ANSWERING] == 1
    meter.blocked.set()


def test_a_bug_in_the_thread_comes_out_of_stop() -> None:
    def full(_: list[EnergySample]) -> None:
        raise OSError("disk full")

    sampler = Sampler(ScriptedMeter(), full)
    sampler.start()
    with pytest.raises(OSError, match="disk full"):
        sampler.stop()


def test_none_is_a_choice_with_a_reason() -> None:
    assert open_meter("none") == (None, ["energy was turned off (--energy none)"])


@pytest.mark.parametrize("choice", ["", "gpu", "nvml "])
def test_an_unknown_choice_lists_the_known_ones(choice: str) -> None:
    with pytest.raises(LoadgenError, match="auto, nvml, amd, rapl, cpu, none, nor a URL"):
        open_meter(choice)


def test_a_source_asked_for_by_name_is_never_replaced_by_another(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match="--energy rapl: no RAPL counters here"):
        open_meter("rapl", powercap=tmp_path)


NO_NVML = """
import json, sys
from pathlib import Path
from loadgen.energy.choose import open_meter
meter, reasons = open_meter("auto", powercap=Path(sys.argv[1]))
print(json.dumps([meter and [d.source for d in meter.domains], reasons]))
"""


def auto(powercap: Path, no_driver: dict[str, str]) -> tuple[list[str] | None, list[str]]:
    out = subprocess.run([sys.executable, "-c", NO_NVML, str(powercap)], env=no_driver, capture_output=True, check=True)
    sources, reasons = json.loads(out.stdout)
    return sources, reasons


@pytest.fixture
def no_driver(tmp_path: Path) -> dict[str, str]:
    """An environment in which libnvidia-ml.so.1 is no library, driver or not."""
    folder = tmp_path / "no-driver"
    folder.mkdir()
    (folder / "libnvidia-ml.so.1").write_text("")
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(Path(__file__).parents[2])}


def test_auto_takes_the_next_measurement_and_says_why(tmp_path: Path, no_driver: dict[str, str]) -> None:
    tree = Path(shutil.copytree(POWERCAP, tmp_path / "powercap"))
    sources, reasons = auto(tree, no_driver)
    assert sources == ["rapl"] * 5
    assert [reason.split(":")[0] for reason in reasons] == ["nvml", "amd"]
    assert reasons[0].startswith("nvml: no NVIDIA driver here")


def test_auto_is_never_an_estimate(tmp_path: Path, no_driver: dict[str, str]) -> None:
    sources, reasons = auto(tmp_path, no_driver)
    assert sources is None
    assert [reason.split(":")[0] for reason in reasons] == ["nvml", "amd", "rapl"]


def test_meters_on_a_machine_with_nothing_says_so_and_is_no_error(no_driver: dict[str, str]) -> None:
    command = [sys.executable, "-m", "loadgen", "meters", "--seconds", "0.5", "--energy", "http://127.0.0.1:1"]
    out = subprocess.run(command, env=no_driver, capture_output=True, check=True, text=True)
    assert "nvml    not usable: no NVIDIA driver here" in out.stdout
    assert "URL     not usable: http://127.0.0.1:1 cannot be read" in out.stdout
    assert "an estimate" in out.stdout
    assert max(map(len, out.stdout.splitlines())) <= 80
