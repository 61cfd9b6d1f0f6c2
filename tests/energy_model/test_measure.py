"""A profile measured against the simulated server, in one process."""

import asyncio
from pathlib import Path

import pytest

from loadgen.energy_model import grid_measurement
from loadgen.energy_model.energy_profile import EnergyProfile
from loadgen.energy_model.measure import ProfileOptions, check_bins_fit, profile_server
from loadgen.energy_model.profiling_plan import StoppingRule, journal, journal_path
from loadgen.energy_model.profiling_session import ProfilingSession
from loadgen.energy_model.waves import RequestShape
from loadgen.errors import LoadgenError
from loadgen.simulator.app import ServerOptions, running_simulator
from loadgen.simulator.cost_model import CounterOptions
from loadgen.simulator.engine import EngineOptions
from loadgen.simulator.faults import parse_faults
from loadgen.telemetry.engine_metrics import EnginePoller
from loadgen.units import NS_PER_MS

QUICK = StoppingRule(repeat_s=0.1, cap_s=0.3, max_repeats=2, idle_s=0.05)


def measure(
    out: Path, *, faults: tuple[str, ...] = (), budget_s: float | None = None, static: bool = False
) -> tuple[EnergyProfile, list[str]]:
    """Measure 64x8 at batches 4 and 2; return the profile and the progress lines."""
    lines: list[str] = []

    async def run() -> EnergyProfile:
        options = ServerOptions(
            port=0,
            engine=EngineOptions(prefix_caching=True),
            counter=CounterOptions(10 * NS_PER_MS, keep_s=60),
            faults=parse_faults(faults),
        )
        rule = StoppingRule(
            QUICK.within, QUICK.repeat_s, QUICK.max_repeats, QUICK.cap_s, 0.0, QUICK.idle_s, static, budget_s
        )
        async with running_simulator(options) as (_, url):
            profile = ProfileOptions(base_url=url + "/v1", gpu_name="h200", model="llama-3.1-8b", rule=rule)
            return await profile_server([RequestShape(64, 8)], [4, 2], out, profile, lines.append)

    return asyncio.run(run()), lines


def test_an_interrupted_profile_resumes_and_no_prompt_comes_from_the_prefix_cache(tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    part, lines = measure(out, budget_s=0.01)
    assert len(part.cells) == 1 and not part.provenance["complete"] and "1 of 2 cells are not" in lines[-1]
    whole, lines = measure(out)
    assert "1 of 2 cells are there already" in "\n".join(lines)
    assert {point.key for point in whole.cells} == {(64, 8, 2), (64, 8, 4)}
    assert whole.simulated and whole.engine == "sim" and whole.provenance["complete"]
    by_batch = {point.batch: point.joules_per_request for point in whole.cells}
    assert by_batch[4] < by_batch[2], "sharing the weights makes a request cheaper"


def test_static_batches_are_measured_whole(tmp_path: Path) -> None:
    profile, _ = measure(tmp_path / "p.json", static=True)
    assert all(point.requests and point.requests % point.batch == 0 for point in profile.cells)
    assert all(point.joules_per_request > 0 for point in profile.cells)
    assert len(profile.cells) == 2 and "whole batches" in profile.provenance["how"]


def test_a_failing_server_ends_the_profile_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match="fail"):
        measure(tmp_path / "p.json", faults=("http_500:1",))


@pytest.mark.parametrize("static", [True, False])
def test_an_energy_counter_that_stops_ends_the_profile_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, static: bool
) -> None:
    monkeypatch.setattr(grid_measurement, "_COUNTER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(ProfilingSession, "joules", lambda *_: None)
    with pytest.raises(LoadgenError, match=r"the energy counter did not update for 0\.2 s"):
        measure(tmp_path / "p.json", static=static)


def test_nothing_measured_in_the_budget_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match="no cell was measured"):
        measure(tmp_path / "p.json", budget_s=1e-12)


def test_a_journal_of_another_model_is_not_continued(tmp_path: Path) -> None:
    with journal(journal_path(tmp_path / "p.json"), {"model": "other"}, []):
        pass
    with pytest.raises(LoadgenError, match="holds cells measured on"):
        measure(tmp_path / "p.json")


def test_a_bin_fits_up_to_exactly_the_context() -> None:
    bins = [RequestShape(90, 10), RequestShape(1, 50)]
    check_bins_fit(bins, 100, "m")
    check_bins_fit(bins, None, "m")
    with pytest.raises(LoadgenError, match="bin 90x10 is longer than m takes: 99 tokens"):
        check_bins_fit(bins, 99, "m")


def test_a_cache_that_usage_does_not_report_is_known_from_the_engines_counters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM and SGLang are silent about cached tokens in usage unless they are started with an option."""
    counted = iter(({"t_ns": 0, "prompt_tokens": 0.0, "cached_tokens": 0.0},
                    {"t_ns": 1, "prompt_tokens": 1000.0, "cached_tokens": 51.0}))  # fmt: skip
    monkeypatch.setattr(EnginePoller, "read_now", lambda poller: poller._on_sample(next(counted)))
    with pytest.raises(LoadgenError, match="64x8 at batch 4: 5% of the prompt tokens came from"):
        measure(tmp_path / "p.json")
