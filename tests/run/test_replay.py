"""What run.json states of a run: before the first request what is known then, afterwards how it went and its cost."""

from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from loadgen import __version__, clock
from loadgen.client.openai_api import Dialect
from loadgen.client.server_info import ServerInfo
from loadgen.client.server_probe import ServerProbe
from loadgen.energy.sampler import LivePower, SamplerReport
from loadgen.results.run_folder import RunInfo
from loadgen.run.config import RunConfig
from loadgen.run.metering import Metering, engine_page_facts
from loadgen.run.preparation import Preparation
from loadgen.run.process_stats import SendingCost
from loadgen.run.progress import NullView, Plan, Progress, Stage, Tallies
from loadgen.run.replay import _shower, info_after, info_before
from loadgen.run.sender import ScheduleSender
from loadgen.telemetry.engine_metrics import EngineState
from loadgen.units import NS_PER_MS, NS_PER_S
from loadgen.workload.schedule import Schedule, ScheduledRequest

SCHEDULE = Schedule(
    (ScheduledRequest(index=0, offset_ns=0, workload="chat", input_tokens=10, output_tokens=2),), "trace", 2.5, 7
)
CONFIG = RunConfig(out=Path("unused"), base_url="http://me:secret@host:1/v1/", api_key="sk-secret", plan={"trace": "t"})
SERVER = ServerInfo("http://host:1/v1", "m", "vllm", 4096, Dialect(min_tokens=False))


def metering(**stated: Any) -> Metering:
    without = {"meter": None, "reasons": [], "report": None, "engine_page": {}, "engines": ()}
    return cast("Metering", SimpleNamespace(**without | stated))


def before(**stated: Any) -> RunInfo:
    probed = ServerProbe(server=SERVER, lengths_from="probe", vocabularies={})
    return info_before(Preparation(SCHEDULE, probed), CONFIG, metering(**stated))


def after(cost: SendingCost, *, processes: list[dict[str, Any]] | None = None, **stated: Any) -> RunInfo:
    sender = cast("ScheduleSender", SimpleNamespace(stopped_by="interrupted", processes=processes))
    return info_after(before(), 5, 9, sender, cost, metering(**stated))


def test_before_the_run_its_schedule_options_and_server_are_stated_without_secrets() -> None:
    info = before()
    assert (info.seed, info.requested_rps, info.schedule_sha256) == (7, 2.5, SCHEDULE.sha256)
    assert info.loadgen_version == __version__
    assert info.config["trace"] == "t"
    assert info.server == {
        "base_url": "http://host:1/v1",
        "model": "m",
        "engine": "vllm",
        "simulated": False,
        "engine_version": None,
        "max_model_len": 4096,
        "addresses": [],
        "proxy": None,
        "ignore_eos": True,
        "min_tokens": False,
        "max_completion_tokens": False,
        "prompt_lengths_from": None,
        "word_lengths_from": None,
        "common_prompt_tokens": None,
    }
    assert set(info.host) == {"hostname", "system", "cpus", "python"}
    assert set(info.versions) == {"aiohttp", "uvloop", "msgspec", "numpy"}
    assert b"secret" not in msgspec.json.encode(info)


def test_after_the_run_the_engines_metrics_page_is_stated_beside_the_server() -> None:
    facts = engine_page_facts(EngineState(5, "NIM", "/v1/metrics"))
    info = after(SendingCost(1.0, 1), engine_page=facts)
    assert info.server == before().server | {"metrics": facts}
    assert facts == {
        "answered": True, "understood": True, "path": "/v1/metrics", "names_of": "NIM", "reason": None,
    }  # fmt: skip
    assert engine_page_facts(EngineState(5, reason="x"))["understood"] is False
    assert engine_page_facts(EngineState())["answered"] is False


def test_every_run_has_an_id_of_its_own() -> None:
    ids = {before().run_id for _ in range(20)}
    assert len(ids) == 20
    assert all(len(run_id) == 12 and int(run_id, 16) >= 0 for run_id in ids)


@pytest.mark.parametrize(
    ("meter", "domains", "reasons"),
    [
        (None, [], ["no meter here"]),
        (SimpleNamespace(domains=["cpu:package-0"]), ["cpu:package-0"], ["no meter here"]),
    ],
)
def test_the_reasons_against_better_meters_are_stated_with_a_meter_and_without(
    meter: object, domains: list[str], reasons: list[str]
) -> None:
    info = before(meter=meter, reasons=["no meter here"])
    assert (info.domains, info.energy_reasons) == (domains, reasons)


def test_after_the_run_its_end_and_the_cost_of_sending_are_stated() -> None:
    delays_ns = array("q", [0, NS_PER_MS, 3 * NS_PER_MS])
    info = after(SendingCost(cpu_s=1.5, max_rss_bytes=100, late_ns=delays_ns, waited_s=0.25, stamped_by="kernel"))
    assert (info.start_ns, info.end_ns, info.stopped_by) == (5, 9, "interrupted")
    assert list(info.instrument) == [
        "loop_delay_s", "waited_s", "stamped_by", "compiled", "cpu_s", "max_rss_bytes", "sampler_period_s", "sampler",
    ]  # fmt: skip
    assert (info.instrument["cpu_s"], info.instrument["waited_s"], info.instrument["max_rss_bytes"]) == (1.5, 0.25, 100)
    assert info.instrument["stamped_by"] == "kernel"
    assert info.instrument["loop_delay_s"]["count"] == 3
    assert info.instrument["loop_delay_s"]["max"] == pytest.approx(0.003)
    assert info.instrument["sampler_period_s"] is info.instrument["sampler"] is None


def test_spans_and_processes_are_stated_where_there_are_any() -> None:
    spans, processes = {"sent": 3, "lost": 0, "last_error": None}, [{"requests": 1}, {"requests": 2}]
    info = after(SendingCost(1.0, 1, spans=spans), processes=processes)
    assert info.instrument["spans"] == spans
    assert info.instrument["processes"] == processes


def test_the_meter_s_domains_and_notes_are_those_after_the_run() -> None:
    meter = SimpleNamespace(domains=["gpu:0", "gpu:1"], notes=["gpu:1 was lost"])
    report = SamplerReport(
        reads=3, samples=6, resets=0, errors={}, silence_s={}, throttled={}, read_cost_s=None, period_s=0.05, cpu_s=0.1
    )
    info = after(SendingCost(1.0, 1), meter=meter, report=report)
    assert (info.domains, info.energy_notes) == (["gpu:0", "gpu:1"], ["gpu:1 was lost"])
    assert info.instrument["sampler_period_s"] == info.instrument["sampler"]["period_s"] == 0.05


def test_the_joules_shown_are_those_since_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meter runs at 100 W from 2 s before the first instant, and a token comes each second after it."""
    start_ns, now_s = 5 * NS_PER_S, 0.0
    monkeypatch.setattr(clock, "monotonic_ns", lambda: round(now_s * NS_PER_S))
    meters = cast(
        "Metering",
        SimpleNamespace(latest=lambda: LivePower({}, {}, total_joules=100 * (now_s - 3), total_watts=100.0)),
    )
    tallies = Tallies(sent=9)
    sender = cast("ScheduleSender", SimpleNamespace(tallies=tallies, oldest=[], stopped_by="completed"))
    view = Shown()
    show = _shower(Plan("m", {}, 9, 10.0, 2.0), sender, meters, view, start_ns)
    for now_s in (3.0, 4.0, 4.9, 5.1, 7.0, 9.0):
        tallies.completed = tallies.output_tokens = max(0, int(now_s - 5))
        show()
    assert view.joules_per_token == [None, None, None, None, pytest.approx(105), pytest.approx(102.5)]


class Shown(NullView):
    """Keeps the joules per token that it is shown."""

    def __init__(self) -> None:
        self.joules_per_token: list[float | None] = []

    def update(self, stage: Stage, progress: Progress | None = None) -> None:
        assert progress is not None
        self.joules_per_token.append(progress.joules_per_token)
