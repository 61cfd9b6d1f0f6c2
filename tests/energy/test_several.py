"""Several meters are read side by side, each at its own pace, and nothing is counted twice."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from loadgen.clock import monotonic_ns
from loadgen.energy import choose
from loadgen.energy.choose import open_meter
from loadgen.energy.meter import EnergyMeter, Reading
from loadgen.energy.sampler import Sampler
from loadgen.energy.series import EnergyDomain, EnergySample, accelerators, host_domains, scope
from loadgen.energy.several import SeveralMeters
from loadgen.energy.source_names import sources_of
from loadgen.errors import LoadgenError, MeterError

RECORDED = Path(__file__).parents[1] / "fixtures" / "powercap"


class Counter:
    """A meter whose every read is a new sample, or what `answer` does instead."""

    def __init__(self, *names: str, uuid: str | None = None, answer: Callable[[], Reading] | None = None) -> None:
        self.domains = [EnergyDomain(name=name, source="nvml-counter", uuid=uuid, period_s=0.001) for name in names]
        self.notes = [f"note of {names[0]}"]
        self.poll_s = 0.002
        self.reads = 0
        self.closed = False
        self._answer = answer

    def read(self) -> Reading:
        self.reads += 1
        if self._answer is not None:
            return self._answer()
        return Reading([EnergySample(monotonic_ns(), domain.name, float(self.reads)) for domain in self.domains])

    def close(self) -> None:
        self.closed = True


def sampled(meter: EnergyMeter) -> tuple[set[str], dict[str, int]]:
    """Return the domains of the samples of a short run, and the errors."""
    samples: list[EnergySample] = []
    sampler = Sampler(meter, samples.extend)
    sampler.start()
    report = sampler.stop()
    meter.close()
    return {sample.domain for sample in samples}, report.errors


def test_a_run_has_the_samples_of_all_meters_to_its_end() -> None:
    gpu, cpu = Counter("gpu:0"), Counter("cpu:package-0", "dram:0")
    meter = SeveralMeters({"nvml": gpu, "rapl": cpu})
    assert [domain.name for domain in meter.domains] == ["gpu:0", "cpu:package-0", "dram:0"]
    assert meter.notes == ["note of gpu:0", "note of cpu:package-0"]
    assert sampled(meter) == ({"gpu:0", "cpu:package-0", "dram:0"}, {})
    assert gpu.closed
    assert cpu.closed


def test_the_gpu_is_read_at_its_own_pace_wherever_it_is_named() -> None:
    cpu, gpu = Counter("cpu:package-0"), Counter("gpu:0")
    cpu.poll_s = 0.1
    meter = SeveralMeters({"rapl": cpu, "nvml": gpu})
    assert meter.poll_s == gpu.poll_s
    assert {domain.name: domain.period_s for domain in meter.domains} == {"gpu:0": 0.001, "cpu:package-0": 0.1}
    meter.close()


def test_a_meter_whose_domains_are_not_known_yet_is_not_the_one_read_at_the_callers_pace() -> None:
    awaited, machine = Counter("gpu:0"), Counter("machine:plug")
    awaited.domains, awaited.poll_s = [], 1.0
    meter = SeveralMeters({"--engine far": awaited, "URL": machine})
    assert meter.poll_s == machine.poll_s
    meter.close()


def failing() -> Reading:
    raise MeterError("it is gone")


@pytest.mark.parametrize("alive", [0, 1])
def test_a_meter_that_fails_costs_only_itself(alive: int) -> None:
    names = ("gpu:0", "cpu:package-0")
    meters = {name: Counter(name, answer=None if i == alive else failing) for i, name in enumerate(names)}
    domains, errors = sampled(SeveralMeters(meters))
    assert domains == {names[alive]}
    assert "it is gone" in errors


def test_a_meter_that_hangs_delays_no_other() -> None:
    answer = threading.Event()

    def hang() -> Reading:
        answer.wait(10)
        return Reading([])

    meter = SeveralMeters({"nvml": Counter("gpu:0"), "URL": Counter("machine:plug", answer=hang)})
    for _ in range(3):
        assert [sample.domain for sample in meter.read().samples] == ["gpu:0"]
    answer.set()
    meter.close()


def test_meters_that_answer_slowly_end_together() -> None:
    """Each read answers once no further one begins of any meter: closed in turn, the first would wait for ever."""
    reading = threading.Semaphore(0)

    def slow() -> Reading:
        reading.release()
        for reader in meter._others:
            reader._stopping.wait(10)
        return Reading([])

    meters = {f"URL {n}": Counter(f"machine:{n}", answer=slow) for n in range(5)}
    meter = SeveralMeters({"nvml": Counter("gpu:0"), **meters})
    meter.read()
    assert all(reading.acquire(timeout=10) for _ in meters)
    meter.close()
    assert all(one.closed for one in meters.values())


def test_a_bug_of_a_meter_reaches_the_reader() -> None:
    def broken() -> Reading:
        raise ZeroDivisionError

    meter = SeveralMeters({"nvml": Counter("gpu:0"), "rapl": Counter("cpu:package-0", answer=broken)})
    with pytest.raises(ZeroDivisionError):
        for _ in range(1000):
            meter.read()
            threading.Event().wait(0.001)
    meter.close()


@pytest.mark.parametrize(
    "meters",
    [
        {"nvml": Counter("gpu:0"), "URL": Counter("gpu:0")},
        {"nvml": Counter("gpu:0", uuid="GPU-1"), "URL": Counter("gpu:0@h", uuid="GPU-1")},
    ],
)
def test_what_two_meters_measure_is_refused(meters: dict[str, EnergyMeter]) -> None:
    with pytest.raises(MeterError, match="nvml and URL both measure gpu:0"):
        SeveralMeters(meters)


@pytest.mark.parametrize(
    ("choice", "sources"),
    [
        ("nvml", ["nvml"]), ("nvml, rapl", ["nvml", "rapl"]),
        ('nvml,http://plug:9100#watts{a="x",b="y"},rapl', ["nvml", 'http://plug:9100#watts{a="x",b="y"}', "rapl"]),
    ],
)  # fmt: skip
def test_a_comma_is_between_sources_but_for_one_between_labels(choice: str, sources: list[str]) -> None:
    assert sources_of(choice) == sources


@pytest.mark.parametrize(
    ("choice", "words"),
    [("auto,rapl", "auto stands alone"), ("rapl,none", "none stands alone"), ("rapl,rapl", "names a source twice"),
     ("rapl,cpu", "cpu estimates what rapl measures"), ("rapl,abacus", "'abacus' is none of"),
     ("rapl,", "'' is none of")],
)  # fmt: skip
def test_what_cannot_be_several_is_refused(choice: str, words: str) -> None:
    with pytest.raises(LoadgenError, match=words):
        open_meter(choice, powercap=RECORDED)


def test_sources_by_name_are_one_meter_and_none_stays_open_where_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Counter("gpu:0")
    monkeypatch.setattr(choose, "open_nvml", lambda _, every_s: gpu)
    meter, reasons = choose.open_meter("nvml,rapl", powercap=RECORDED)
    assert meter is not None
    assert {"gpu:0", "cpu:package-0", "dram:0"} <= {domain.name for domain in meter.domains}
    assert reasons == []
    meter.close()
    gpu.closed = False
    with pytest.raises(LoadgenError, match="--energy rapl: no RAPL counters here"):
        choose.open_meter("nvml,rapl", powercap=RECORDED / "nowhere")
    assert gpu.closed


@pytest.mark.parametrize(
    ("name", "part"),
    [("gpu:0", "accelerator"), ("gpu:3@host", "accelerator"), ("cpu:package-0", "host"), ("cpu:all", "host"),
     ("dram:1", "host"), ("psys", "machine"), ("machine:plug", "machine")],
)  # fmt: skip
def test_a_domain_is_of_one_part_of_a_machine(name: str, part: str) -> None:
    assert scope(EnergyDomain(name=name, source="rapl")) == part


def test_gpus_and_host_are_apart_and_inner_domains_are_in_neither() -> None:
    names = {"gpu:0": "machine:plug", "gpu:0/memory": "gpu:0", "cpu:package-0": "psys", "cpu:package-0/core": None,
             "dram:0": "psys", "psys": None, "machine:plug": None}  # fmt: skip
    names["cpu:package-0/core"] = "cpu:package-0"
    domains = [EnergyDomain(name=name, source="x", within=within) for name, within in names.items()]
    assert [domain.name for domain in accelerators(domains)] == ["gpu:0"]
    assert [domain.name for domain in host_domains(domains)] == ["cpu:package-0", "dram:0"]
    without_gpu = [domain for domain in domains if scope(domain) != "accelerator"]
    assert [domain.name for domain in accelerators(without_gpu)] == ["psys", "machine:plug"]
    assert host_domains(without_gpu) == []
