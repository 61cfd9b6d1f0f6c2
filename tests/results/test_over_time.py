"""Numbers over time add up to those of the whole run, and are unknown where nothing was measured."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.record import RequestRecord
from loadgen.results import metrics
from loadgen.results.over_time import OverTime, over_time
from loadgen.results.run_folder import RunResult
from support import sample_runs

MS = 1_000_000
START_NS = sample_runs.START_NS


def _over_time(result: RunResult) -> OverTime:
    made = over_time(result)
    assert made is not None
    return made


def _request(index: int, sent_ms: int, **fields: Any) -> RequestRecord:
    """A record whose instants are in ms after the start."""
    sent_ns = START_NS + sent_ms * MS
    for name, value in fields.items():
        if name.endswith("_ns") and value is not None:
            fields[name] = [START_NS + t * MS for t in value] if name == "chunk_ns" else START_NS + value * MS
    return RequestRecord(**{"index": index, "workload": "chat", "scheduled_ns": sent_ns, "sent_ns": sent_ns, **fields})


def _run(*records: RequestRecord, engine: tuple[dict[str, float], ...] = ()) -> RunResult:
    """A run of these requests alone; `t_ns` of the engine's samples are in ms after the start."""
    made = sample_runs.run(num_requests=len(records))
    samples = [sample | {"t_ns": START_NS + sample["t_ns"] * MS} for sample in engine]
    return replace(made, records=list(records), engine=samples, energy=[], attribution=None)


def test_sums_over_the_bins_are_the_totals_of_the_run() -> None:
    result = sample_runs.run(num_requests=600, rps=10)
    made, records = _over_time(result), result.records
    counts = metrics.request_counts(records)
    tokens = metrics.token_counts(records, 1.0)
    assert (made.scheduled.sum(), made.sent.sum(), made.completed.sum()) == (600, counts.sent, counts.completed)
    assert {kind: failed.sum() for kind, failed in made.failed.items()} == counts.by_error
    assert made.output_tokens.sum() == pytest.approx(tokens.output)
    assert made.input_tokens.sum() == pytest.approx(tokens.input)
    assert np.nansum(made.joules) == pytest.approx(result.energy[-1].joules - result.energy[0].joules)


def test_requests_in_flight_are_the_time_that_requests_took_by_littles_law() -> None:
    result = sample_runs.run(num_requests=300)
    made = _over_time(result)
    took_s = sum(record.e2e_ns or 0 for record in result.records) / 1e9
    assert made.in_flight.sum() * made.bins.width_s == pytest.approx(took_s)
    assert (made.in_flight >= 0).all()


def test_percentiles_are_of_the_completed_requests_that_were_sent_in_the_bin() -> None:
    records = [_request(i, 100 * i, first_token_ns=100 * i + 10 * i, finished_ns=25_000, status=200) for i in range(10)]
    failed = _request(10, 500, first_token_ns=9_000, finished_ns=9_500, error="truncated")
    made = _over_time(_run(*records, failed))
    assert made.bins.width_s == 1
    assert made.ttft_s.p50[0] == pytest.approx(0.045)
    assert made.ttft_s.p99[0] == pytest.approx(0.0891)
    assert np.isnan(made.ttft_s.p50[1:]).all()
    assert np.isnan(made.tpot_s.p50).all()


def test_a_failure_counts_when_it_happened_and_one_without_an_end_when_the_run_ended() -> None:
    made = _over_time(
        _run(
            _request(0, 0, finished_ns=20_500),
            _request(1, 0, finished_ns=3_200, error="http"),
            _request(2, 0, error="cancelled"),
            _request(3, 0, sent_ns=None, error="not_sent"),
        )
    )
    assert {kind: np.flatnonzero(failed).tolist() for kind, failed in made.failed.items()} == {
        "cancelled": [20],
        "http": [3],
    }
    assert made.in_flight[10] == pytest.approx(2)


def test_tokens_are_spread_over_the_chunks_and_hidden_ones_over_the_time_before() -> None:
    request = _request(
        0, 500, first_token_ns=2_500, finished_ns=21_000, chunk_ns=[2_500, 3_500], input_tokens=7, output_tokens=10
    )
    hidden = msgspec.structs.replace(request, index=1, hidden_tokens=4, input_tokens=9)
    made = _over_time(_run(request, hidden, _request(2, 0)))
    assert made.output_tokens[:5].tolist() == pytest.approx([1, 2, 1 + 5 + 3, 5 + 3, 0])
    assert np.flatnonzero(made.input_tokens).tolist() == [2]


def test_an_answer_without_chunks_has_its_tokens_at_its_end() -> None:
    made = _over_time(_run(_request(0, 0, finished_ns=21_500, output_tokens=5)))
    assert np.flatnonzero(made.output_tokens).tolist() == [21]


ENGINE = tuple(
    {"t_ns": 1_000 * t, "waiting": 2.0 * t, "preemptions": p, "prompt_tokens": 100.0 * t, "cached_tokens": 50.0 * t}
    for t, p in enumerate((5, 7, 7, 1, 4))  # the engine restarts after the third
)


def test_gauges_are_means_and_counters_grow_across_a_restart_of_the_engine() -> None:
    made = _over_time(_run(_request(0, 0, finished_ns=20_500), engine=ENGINE))
    assert made.waiting[:4].tolist() == pytest.approx([0, 2, 4, 6])
    assert np.isnan(made.waiting[4:]).all()
    assert made.preemptions[:4].tolist() == pytest.approx([2, 0, 1, 3])
    assert made.cached_share[:4].tolist() == pytest.approx([0.5] * 4)
    assert np.isnan(made.running).all()
    assert np.isnan(made.kv_cache_usage).all()


def test_a_reading_holds_no_longer_than_a_few_seconds() -> None:
    engine = ({"t_ns": 0, "running": 3.0}, {"t_ns": 12_000, "running": 1.0}, {"t_ns": 13_000, "running": 1.0})
    made = _over_time(_run(_request(0, 0, finished_ns=20_500), engine=engine))
    assert made.running[:5].tolist() == pytest.approx([3] * 5)
    assert np.isnan(made.running[5:12]).all()
    assert made.running[12] == pytest.approx(1)


@pytest.mark.parametrize(("cached", "share"), [(10, 0.1), (0, 0.5)])
def test_cached_tokens_are_those_of_the_usage_unless_it_has_none(cached: int, share: float) -> None:
    request = _request(
        0, 0, first_token_ns=2_500, finished_ns=20_500, input_tokens=100, cached_tokens=cached, output_tokens=1
    )
    assert _over_time(_run(request, engine=ENGINE)).cached_share[2] == pytest.approx(share)


def test_power_is_unknown_where_most_of_a_bin_was_not_measured_and_across_a_gap() -> None:
    at = {0: 0.0, 1_000: 100.0, 2_000: 300.0, 4_000: 300.0, 6_200: 740.0}
    energy = [EnergySample(START_NS + ms * MS, "gpu:0", joules, gap=ms == 4_000) for ms, joules in at.items()]
    run = _run(_request(0, 0, finished_ns=20_500, chunk_ns=[1_500], output_tokens=10))
    info = msgspec.structs.replace(run.info, domains=[EnergyDomain(name="gpu:0", source="nvml-counter")])
    made = _over_time(replace(run, info=info, energy=energy))
    assert np.nan_to_num(made.watts[:8], nan=-1).tolist() == pytest.approx([100, 200, -1, -1, 200, 200, -1, -1])
    assert np.nansum(made.joules) == pytest.approx(740)


def test_the_tokens_of_a_bin_that_the_run_ended_in_cost_what_the_run_took_of_it() -> None:
    chunks_ms = list(range(0, 25_251, 250))
    answered = _request(0, 0, first_token_ns=0, finished_ns=25_250, chunk_ns=chunks_ms, output_tokens=len(chunks_ms))
    energy = [EnergySample(START_NS + t * 1000 * MS, "gpu:0", 500.0 * t) for t in range(-2, 28)]
    made = _over_time(replace(_run(answered), energy=energy))
    last = int(np.flatnonzero(made.output_tokens)[-1])
    assert made.output_tokens[last] == 2
    assert made.joules_per_output_token[last] == pytest.approx(500 * 0.25 / 2)
    assert np.nansum(made.joules_per_output_token * made.output_tokens) == pytest.approx(500 * 25.25)


def test_a_run_without_engine_or_energy_has_neither() -> None:
    made = _over_time(sample_runs.without_energy())
    for values in (made.joules, made.watts, made.joules_per_output_token, made.running, made.preemptions):
        assert np.isnan(values).all()
    assert made.sent.sum() > 0


def test_nothing_sent_and_nothing_measured_is_nothing_over_time() -> None:
    unsent = msgspec.structs.replace(_request(0, 0), sent_ns=None, error="not_sent")
    assert over_time(_run(unsent)) is None
