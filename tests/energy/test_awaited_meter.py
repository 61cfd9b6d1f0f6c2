"""A source of energy that does not answer is awaited where that is asked for, and refused elsewhere."""

import logging
import threading
from collections.abc import Iterator

import pytest

from energy.test_named_engine import Fixed
from loadgen.energy import awaited_meter, fleet_meter
from loadgen.energy.awaited_meter import AwaitedMeter
from loadgen.energy.fleet_meter import open_fleet_meter
from loadgen.energy.meter import EnergyMeter
from loadgen.energy.named_engine import parse_engines
from loadgen.energy.sampler import Sampler
from loadgen.energy.several import SeveralMeters
from loadgen.errors import LoadgenError, MeterError, NoAnswerError
from support.fake_api import FakeServer, serving

ENGINES = (
    "a=http://127.0.0.1:8001,gpus=0",
    "far=http://h:1,energy=http://m:9478",
    "off=http://h:2,energy=http://n:9478",
)


def test_a_source_has_no_domains_until_a_read_opens_it_and_each_reason_against_it_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    away, wrong, meter = NoAnswerError("away"), MeterError("no GPU 7"), Fixed("0")
    turns: Iterator[EnergyMeter | MeterError] = iter([away, wrong, away, wrong, meter])

    def opening() -> EnergyMeter:
        turn = next(turns)
        if isinstance(turn, MeterError):
            raise turn
        return turn

    awaited = AwaitedMeter("--engine far", opening)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            with pytest.raises(MeterError):
                awaited.read()
            assert (awaited.domains, awaited.notes) == ([], [])
        awaited.close()
        assert [sample.domain for sample in awaited.read().samples] == ["gpu:0"]
    assert caplog.messages == [
        "--engine far: no GPU 7; its energy is unknown",
        "--engine far: its energy source answers: gpu:0 (nvml-counter)",
    ]
    assert (awaited.domains, awaited.poll_s, awaited.notes) == (meter.domains, meter.poll_s, meter.notes)
    awaited.close()
    assert meter.closed


class Hosts:
    """Energy sources that come and go, in place of `open_meter`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.present: dict[str, Fixed] = {"nvml": Fixed("0")}
        self.tokens: dict[str, object] = {}
        monkeypatch.setattr(fleet_meter, "open_meter", self.open)

    def open(self, choice: str, *, token: object, **_: object) -> tuple[EnergyMeter, list[str]]:
        self.tokens[choice] = token
        if choice not in self.present:
            raise LoadgenError(f"--energy URL: {choice}") from NoAnswerError(f"{choice} cannot be read")
        return self.present[choice], []


def test_engines_are_measured_while_the_sources_of_others_are_awaited(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hosts = Hosts(monkeypatch)
    meter, _, _ = open_fleet_meter(parse_engines(ENGINES), "nvml", awaiting=True)
    assert isinstance(meter, SeveralMeters)
    assert [domain.name for domain in meter.domains] == ["gpu:0"]
    assert caplog.messages == [
        f"--engine {name}: http://{host}:9478 cannot be read; its energy is unknown until it answers"
        for name, host in (("far", "m"), ("off", "n"))
    ]
    late = [reader.meter for reader in meter._others]
    for host, far in (("m", late[0]), ("n", late[1])):
        with pytest.raises(NoAnswerError):
            far.read()
        hosts.present[f"http://{host}:9478"] = Fixed(f"{host}7")
        far.read()
    assert [domain.name for domain in meter.domains] == ["gpu:0", "gpu:m7@far", "gpu:n7@off"]


def test_a_gpu_that_another_source_measures_is_refused_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(monkeypatch)
    meter, _, _ = open_fleet_meter(parse_engines(ENGINES), "nvml", awaiting=True)
    assert isinstance(meter, SeveralMeters)
    far, off = (reader.meter for reader in meter._others)
    hosts.present |= {"http://m:9478": Fixed("0"), "http://n:9478": Fixed("n7")}
    off.read()
    with pytest.raises(MeterError, match="nvml and --engine far both measure gpu:0@far"):
        far.read()
    assert hosts.present["http://m:9478"].closed
    hosts.present["http://m:9478"] = Fixed("n7")
    with pytest.raises(MeterError, match=r"--engine far and --engine off both measure gpu:n7@off"):
        far.read()
    hosts.present["http://m:9478"] = Fixed()
    with pytest.raises(MeterError, match=r"^no energy source has a GPU of it"):
        far.read()
    assert [domain.name for domain in meter.domains] == ["gpu:0", "gpu:n7@off"]


def test_a_run_whose_energy_would_be_unknown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(monkeypatch)
    with pytest.raises(LoadgenError, match=r"^--engine far: http://m:9478 cannot be read$"):
        open_fleet_meter(parse_engines(ENGINES), "nvml")
    assert hosts.present["nvml"].closed


@pytest.mark.parametrize("status", [401, 404, 502, 503, 504])
def test_a_source_that_answers_is_not_awaited_unless_a_gateway_answers_for_it(status: int) -> None:
    with serving(FakeServer(pages={"/energy": (status, {}), "/metrics": (status, {})})) as url:
        engines = parse_engines([f"far=http://h:1,energy={url}"])
        if status > 500:
            meter, _, _ = open_fleet_meter(engines, awaiting=True)
            assert meter is not None and meter.domains == []
        else:
            with pytest.raises(LoadgenError, match=f"^--engine far: {url}/energy answers {status}"):
                open_fleet_meter(engines, awaiting=True)


def test_sources_are_opened_side_by_side_and_all_closed_if_one_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"e{number}" for number in range(6)]
    opened, together = {f"http://{name}": Fixed(name) for name in names if name != "e2"}, threading.Barrier(6)

    def open_it(choice: str, **_: object) -> tuple[EnergyMeter, list[str]]:
        together.wait(30)
        if choice not in opened:
            raise LoadgenError(f"{choice} is no meter")
        return opened[choice], []

    monkeypatch.setattr(fleet_meter, "open_meter", open_it)
    with pytest.raises(LoadgenError, match=r"^--engine e2: http://e2 is no meter$"):
        open_fleet_meter(parse_engines(f"{name}=http://h:{n + 1},energy=http://{name}" for n, name in enumerate(names)))
    assert all(meter.closed for meter in opened.values())


def test_a_token_is_for_sources_that_the_user_names_not_for_what_a_server_says_of_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = Hosts(monkeypatch)
    hosts.present |= {"http://h:1": Fixed("1"), "http://m:9478": Fixed("2")}
    engines = parse_engines(["sim=http://h:1", "far=http://h:2,energy=http://m:9478"])
    _, _, taken = open_fleet_meter(engines, token="sesame", simulated={"sim"})
    assert hosts.tokens == {"http://h:1": None, "http://m:9478": "sesame"}
    assert [engine.energy for engine in taken] == ["http://h:1", "http://m:9478"]


def test_a_sampler_counts_domains_that_come_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awaited_meter, "AWAIT_S", 0.01)
    turns: Iterator[Fixed | None] = iter([None, Fixed("0")])

    def opening() -> EnergyMeter:
        if (turn := next(turns)) is None:
            raise NoAnswerError("away")
        return turn

    meter = AwaitedMeter("--engine far", opening)
    arrived = threading.Event()
    sampler = Sampler(meter, lambda _: arrived.set())
    sampler.start()
    assert arrived.wait(30)
    report = sampler.stop()
    assert report.errors["away"] == 1 and report.silence_s.keys() == {"gpu:0"}
