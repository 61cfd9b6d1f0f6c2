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
from loadgen.energy.sampler import BRACKET_S, STALE_NS, STOPPED_ANSWERING, Sampler, closing_wait_s
from loadgen.energy.series import EnergyDomain, EnergySample, series_by_domain
from loadgen.errors import LoadgenError, MeterError
from loadgen.units import NS_PER_S, ns_from_s

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


# -- on a clock that only reads and pauses move ------------------------------------------------------------------------

START_NS = 1000 * NS_PER_S


class Clock:
    now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns


class Pauses(threading.Event):
    """Takes no time, notes how long it would have waited, and is set after so many pauses."""

    def __init__(self, clock: Clock, pauses: int) -> None:
        super().__init__()
        self.clock, self.left, self.lengths_s = clock, pauses, []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.lengths_s.append(timeout)
        self.clock.now_ns += ns_from_s(max(timeout, 0))
        self.left -= 1
        if not self.left:
            self.set()
        return self.is_set()


class TimedMeter(ScriptedMeter):
    """Each read takes so many seconds and gives so much, or fails. Its domains have the name of one letter."""

    def __init__(
        self, clock: Clock, *reads: tuple[float, Reading | None], poll_s: float = 0.1, names: str = "a"
    ) -> None:
        super().__init__()
        self.clock, self.script, self.poll_s, self.names = clock, reads, poll_s, names

    @property
    def domains(self) -> list[EnergyDomain]:
        return [EnergyDomain(name=name, source="test") for name in self.names]

    def read(self) -> Reading:
        cost_s, reading = self.script[self.reads]
        self.reads += 1
        self.clock.now_ns += ns_from_s(cost_s)
        if reading is None:
            raise MeterError("no answer")
        return reading


def sampled(meter: TimedMeter, answer_s: float = 5.0) -> tuple[Sampler, list[float]]:
    """Return the sampler after every read of the script, and how long it paused after each."""
    sampler = Sampler(meter, lambda _: None, clock=meter.clock, answer_s=answer_s)
    sampler._stopping = pauses = Pauses(meter.clock, len(meter.script))
    sampler.start()
    sampler._thread.join()
    return sampler, pauses.lengths_s


def at(domain: str, seconds: float, joules: float, *, gap: bool = False) -> EnergySample:
    return EnergySample(START_NS + ns_from_s(seconds), domain, joules, gap=gap)


FINE = Reading([])


@pytest.mark.parametrize(
    ("poll_s", "reads", "pauses_s"),
    [
        (0.1, [(0.0, FINE), (0.01, FINE), (0.3, FINE)], [0.1, 0.09, -0.2]),
        (0.1, [(0.0, None)] * 6, [0.2, 0.4, 0.8, 1.0, 1.0, 1.0]),
        (0.1, [(0.01, None), (0.01, None), (0.01, FINE), (0.01, None)], [0.19, 0.39, 0.09, 0.19]),
        (3.0, [(0.5, None), (0.5, None), (0.5, FINE)], [2.5, 2.5, 2.5]),
    ],
)
def test_reads_begin_a_poll_apart_and_ever_later_while_they_fail(
    poll_s: float, reads: list[tuple[float, Reading | None]], pauses_s: list[float]
) -> None:
    assert sampled(TimedMeter(Clock(), *reads, poll_s=poll_s))[1] == pytest.approx(pauses_s)


def test_the_report_by_hand() -> None:
    """Reads at 0, 0.1 and 0.2 s; at 0.3 s the last update of `a` is 0.1 s ago, that of `b` all the 0.3 s."""
    first = Reading([at("a", 0, 5), at("b", 0, 7)], throttled=(("a", "power"), ("b", None)))
    second = Reading([], resets=2, errors=("b: lost",), throttled=(("a", None),))
    third = Reading([at("a", 0.2, 6)], resets=1, errors=("b: lost",), throttled=(("a", "power"),))
    report = sampled(TimedMeter(Clock(), (0.01, first), (0.02, second), (0.03, third), names="ab"))[0].report()
    assert (report.reads, report.samples, report.resets, report.errors) == (3, 3, 3, {"b: lost": 2})
    assert report.silence_s == {"a": pytest.approx(0.2), "b": pytest.approx(0.3)}
    assert report.throttled == {"a": {"power": pytest.approx(2 / 3)}, "b": {}}
    assert (report.read_cost_s, report.period_s) == (pytest.approx(0.02), pytest.approx(0.1))


@pytest.mark.parametrize(("reads", "period_s"), [(1, None), (2, 0.1), (5, 0.1)])
def test_the_period_is_the_mean_from_one_read_to_the_next(reads: int, period_s: float | None) -> None:
    report = sampled(TimedMeter(Clock(), *[(0.0, FINE)] * reads))[0].report()
    assert report.period_s == (None if period_s is None else pytest.approx(period_s))


@pytest.mark.parametrize(("over_s", "errors"), [(0.0, {}), (1e-9, {STOPPED_ANSWERING: 1})])
def test_a_read_that_took_longer_than_an_answer_may_is_an_error(over_s: float, errors: dict[str, int]) -> None:
    assert sampled(TimedMeter(Clock(), (0.25 + over_s, FINE)), answer_s=0.25)[0].report().errors == errors


@pytest.mark.parametrize(
    ("points", "watts"),
    [
        ([(0, 7)], None),
        ([(0, 7), (0.5, 57)], 100),
        ([(0, 7), (0.4, 17), (0.8, 87)], 100),
        ([(0, 7), (1, 107), (2, 307)], 200),  # a second
        ([(0, 7), (1.001, 107), (2, 307)], 150),  # and the update before it
        ([(0, 7), (10, 307), (20, 907)], 60),  # a slow counter
        ([(0, 7), (0.1, 9), (0.2, 11), (0.3, 13), (2, 183)], 100),
    ],
)
def test_the_power_is_the_mean_over_about_a_second(points: list[tuple[float, float]], watts: float | None) -> None:
    samples = [at("a", seconds, joules) for seconds, joules in points]
    sampler, _ = sampled(TimedMeter(clock := Clock(), (0.0, Reading(samples))))
    clock.now_ns = samples[-1].t_ns + STALE_NS
    live = sampler.latest()
    assert live.watts == ({} if watts is None else {"a": pytest.approx(watts)})
    assert (live.joules, live.total_joules) == ({"a": points[-1][1] - 7}, points[-1][1] - 7)
    clock.now_ns += 1
    assert (sampler.latest().watts, sampler.latest().total_watts) == ({}, None)


def test_no_power_is_taken_across_a_counters_restart() -> None:
    samples = [at("a", 0, 7), at("a", 0.1, 17), at("a", 0.2, 17, gap=True), at("a", 0.3, 22)]
    for count, watts in ((2, {"a": pytest.approx(100)}), (3, {}), (4, {"a": pytest.approx(50)})):
        live = sampled(TimedMeter(Clock(), (0.0, Reading(samples[:count]))))[0].latest()
        assert (live.watts, live.joules["a"]) == (watts, samples[count - 1].joules - 7)


def test_the_total_is_unknown_while_one_domain_is() -> None:
    both = [at("a", 0, 0), at("b", 0, 0), at("a", 0.1, 10), at("b", 0.1, 5)]
    assert sampled(TimedMeter(Clock(), (0.0, Reading(both)), names="ab"))[0].latest().total_watts == pytest.approx(150)
    live = sampled(TimedMeter(Clock(), (0.0, Reading(both[:3])), names="ab"))[0].latest()
    assert (live.watts, live.total_watts) == ({"a": pytest.approx(100)}, None)


class HeldMeter(TimedMeter):
    """The first read is one point now; the next one has no answer for a while of real time, then one a second later."""

    period_s, held_s = 10.0, 5.0

    @property
    def domains(self) -> list[EnergyDomain]:
        return [EnergyDomain(name="a", source="test", period_s=self.period_s)]

    def read(self) -> Reading:
        self.reads += 1
        if self.reads > 1:
            self.enough.set()
            threading.Event().wait(self.held_s)
            return Reading([at("a", 1, 2)])
        return Reading([at("a", 0, 1)])


def test_a_read_hangs_when_it_takes_longer_than_an_answer_may() -> None:
    sampler = Sampler(meter := HeldMeter(clock := Clock(), poll_s=0.0), lambda _: None, clock=clock, answer_s=0.25)
    sampler.start()
    assert meter.enough.wait(20)
    clock.now_ns += NS_PER_S // 4
    assert not sampler.hangs
    assert sampler.report().errors == {}
    clock.now_ns += 1
    assert sampler.hangs
    assert sampler.report().errors == {STOPPED_ANSWERING: 1}
    assert sampler.stop().reads == 1


def test_a_series_that_reaches_the_end_waits_for_no_other_update() -> None:
    sampler = Sampler(meter := HeldMeter(clock := Clock(), poll_s=0.0), lambda _: None, clock=clock, answer_s=0.0)
    sampler.start()
    assert meter.enough.wait(20)
    assert sampler.stop().reads == 1


@pytest.mark.parametrize(
    ("periods_s", "poll_s", "wait_s"),
    [([], 0.1, 0.4), ([None], 0.1, 0.4), ([0.1, None, 3.0], 0.5, 7.2), ([30.0], 5.0, BRACKET_S)],
)
def test_the_last_update_is_waited_for_as_long_as_two_can_take(
    periods_s: list[float | None], poll_s: float, wait_s: float
) -> None:
    class Meter(ScriptedMeter):
        domains = [EnergyDomain(name=str(i), source="test", period_s=s) for i, s in enumerate(periods_s)]  # noqa: RUF012

    meter = Meter()
    meter.poll_s = poll_s
    assert closing_wait_s(meter) == pytest.approx(wait_s)


def test_none_is_a_choice_with_a_reason() -> None:
    assert open_meter("none") == (None, ["energy was turned off (--energy none)"])


@pytest.mark.parametrize("choice", ["", "gpu", "nvml "])
def test_an_unknown_choice_lists_the_known_ones(choice: str) -> None:
    with pytest.raises(LoadgenError, match="auto, nvml, amd, rapl, hwmon, cpu, none, nor hwmon:SENSOR, nor a URL"):
        open_meter(choice)


def test_a_source_asked_for_by_name_is_never_replaced_by_another(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match="--energy rapl: no RAPL counters here"):
        open_meter("rapl", powercap=tmp_path)


NO_NVML = """
import json, sys
from pathlib import Path
from loadgen.energy.choose import open_meter
meter, reasons = open_meter("auto", powercap=Path(sys.argv[1]), hwmon=Path(sys.argv[1]))
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
    assert [reason.split(":")[0] for reason in reasons] == ["nvml", "amd", "rapl", "hwmon"]


def test_meters_on_a_machine_with_nothing_says_so_and_is_no_error(no_driver: dict[str, str]) -> None:
    command = [sys.executable, "-m", "loadgen", "meters", "--seconds", "0.5", "--energy", "http://127.0.0.1:1"]
    out = subprocess.run(command, env=no_driver, capture_output=True, check=True, text=True)
    assert "nvml    not usable: no NVIDIA driver here" in out.stdout
    assert "URL     not usable: http://127.0.0.1:1 cannot be read" in out.stdout
    assert "an estimate" in out.stdout
    assert max(map(len, out.stdout.splitlines())) <= 80
