"""The steady state and the thresholds of valid energy, on runs small enough to compute by hand."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from loadgen.attribution.cost_model import Coefficients
from loadgen.attribution.shapley import RequestEnergy, RunAttribution, SumErrors
from loadgen.energy.series import EnergyDomain, EnergySample, EnergySeries
from loadgen.record import RequestRecord
from loadgen.results import energy_summary
from loadgen.results.energy_summary import at_limit_share, cache_energy, capped_share, energy_shares, outermost_series
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from loadgen.results.summary import CacheEnergy
from loadgen.units import NS_PER_S
from support import sample_runs


def record(index: int, sent_s: float, first_s: float, end_s: float, tokens: int = 10) -> RequestRecord:
    """Return a request whose tokens come evenly from `first_s` to `end_s`."""
    chunks = [round(t * NS_PER_S) for t in np.linspace(first_s, end_s, tokens)]
    return RequestRecord(
        index=index, workload="w", scheduled_ns=0, sent_ns=round(sent_s * NS_PER_S), first_token_ns=chunks[0],
        last_token_ns=chunks[-1], finished_ns=chunks[-1], chunk_ns=chunks, input_tokens=30, output_tokens=tokens,
    )  # fmt: skip


def result(records: list[RequestRecord], domains: list[EnergyDomain], samples: list[EnergySample]) -> RunResult:
    info = msgspec.structs.replace(sample_runs.single().info, domains=domains, instrument={}, config={})
    return RunResult(info, [], records, samples, [], None, None)


def at_power(watts: float, end_s: int, domain: str = "gpu:0") -> list[EnergySample]:
    return [EnergySample(t * NS_PER_S, domain, watts * t) for t in range(end_s + 1)]


GPU = EnergyDomain(name="gpu:0", source="nvml-counter", period_s=1.0)


def one_after_another(requests: int) -> list[RequestRecord]:
    """Return requests of 2 s that follow each other: sent at 0, 2, 4 s, first token 1 s later. One is in flight."""
    return [record(i, 2 * i, 2 * i + 1, 2 * i + 1.9) for i in range(requests)]


@pytest.mark.parametrize(("requests", "has_one"), [(1, False), (2, False), (3, True), (5, True)])
def test_a_steady_state_needs_more_than_twice_the_requests_ever_in_flight(requests: int, has_one: bool) -> None:
    records = one_after_another(requests)
    series = outermost_series(result(records, [GPU], at_power(100, 2 * requests + 1)))
    assert (energy_summary.steady_state(records, series, 0) is not None) is has_one


def test_the_steady_state_is_from_the_first_tokens_to_the_last_but_as_many_ends() -> None:
    records = one_after_another(4)  # first tokens at 1, 3, 5, 7 s; ends at 1.9, 3.9, 5.9, 7.9 s
    series = outermost_series(result(records, [GPU], at_power(100, 9)))
    steady = energy_summary.steady_state(records, series, NS_PER_S // 2)
    assert steady is not None
    assert (steady.start_s, steady.end_s) == (0.5, pytest.approx(5.4))
    assert steady.joules == pytest.approx(100 * 4.9)
    assert steady.output_tokens == 29, "thirty, and the last comes at the end, which is not within"


def test_only_gpus_add_up_and_without_one_the_domains_within_no_other() -> None:
    inner = EnergyDomain(name="gpu:0/memory", source="nvml-counter", period_s=1.0, within="gpu:0")
    other = EnergyDomain(name="cpu", source="rapl", period_s=1.0)
    samples = [*at_power(100, 3), *at_power(30, 3, "gpu:0/memory"), *at_power(50, 3, "cpu")]
    series = outermost_series(result([], [GPU, inner, other], samples))
    assert sum(domain.energy_mj(0, 3 * NS_PER_S) or 0 for domain in series) == pytest.approx(300_000)
    core = EnergyDomain(name="cpu/core", source="rapl", within="cpu")
    series = outermost_series(result([], [other, core], [*at_power(50, 3, "cpu"), *at_power(20, 3, "cpu/core")]))
    assert [domain.domain for domain in series] == ["cpu"]


def test_a_domain_with_one_sample_has_no_energy() -> None:
    assert outermost_series(result([], [GPU], at_power(100, 0))) == []
    assert len(outermost_series(result([], [GPU], at_power(100, 1)))) == 1


@pytest.mark.parametrize(
    ("start_s", "end_s", "share"), [(0, 10, 1.0), (2, 8, 1.0), (0, 20, 0.5), (-10, 10, 0.5), (5, 5, 0.0), (12, 20, 0.0)]
)
def test_coverage_is_the_share_of_time_that_the_counter_knows(start_s: int, end_s: int, share: float) -> None:
    (series,) = outermost_series(result([], [GPU], at_power(100, 10)))
    assert energy_summary.time_coverage(series, start_s * NS_PER_S, end_s * NS_PER_S) == pytest.approx(share)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ([], None), ([5.0], None), ([5.0, 5.0], None), ([5.0, 25.0], 1.0), ([0.0, 7.0, 40.0], 0.5),
        ([None, 7.0, 40.0], 0.5),  # SGLang and Dynamo show a counter once it has counted something
        ([None, None], None),
        ([50.0, 10.0, 90.0], None),  # it was restarted
    ],
)  # fmt: skip
def test_token_coverage_is_unknown_until_the_engine_counts(tokens: list[float | None], share: float | None) -> None:
    made = result([record(0, 0, 1, 2), record(1, 0, 1, 2)], [GPU], [])
    engine = [{"t_ns": i} | ({} if n is None else {"generation_tokens": n}) for i, n in enumerate(tokens)]
    sampled = RunResult(made.info, [], made.records, [], engine, None, None)
    assert energy_summary.token_coverage(sampled) == share


@pytest.mark.parametrize(("sent_ns", "reason"), [(None, "the run was killed before its end"), (5, "other clients")])
def test_tokens_whose_records_a_kill_lost_are_not_of_other_clients(sent_ns: int | None, reason: str) -> None:
    cancelled = RequestRecord(index=0, workload="w", scheduled_ns=0, sent_ns=sent_ns, error="cancelled")
    made = result([cancelled], [GPU], at_power(100, 10))
    (stated,) = energy_summary.invalid_reasons(made, 20, 0.99, 0.9, 0.0)
    assert stated.startswith("only 90.0% of the engine's output tokens ") and stated.endswith(reason)


@pytest.mark.parametrize(
    ("updates", "in_time", "in_tokens", "idle_w", "reasons"),
    [
        (20, 0.99, 0.95, 0.0, 0),
        (20, 0.99, None, 0.0, 0),
        (19, 0.99, 0.95, 0.0, 1),
        (20, 0.9899, 0.95, 0.0, 1),
        (20, 0.99, 0.9499, 0.0, 1),
        (20, 0.99, 0.95, None, 1),
        (0, 0.0, 0.0, None, 4),
    ],
)
def test_each_threshold_is_a_reason_of_its_own_and_valid_when_met_exactly(
    updates: int, in_time: float, in_tokens: float | None, idle_w: float | None, reasons: int
) -> None:
    made = result([], [GPU], at_power(100, 10))
    assert len(list(energy_summary.invalid_reasons(made, updates, in_time, in_tokens, idle_w))) == reasons


@pytest.mark.parametrize(
    ("notes", "samples", "reasons"),
    [
        (["1 of this host's 2 GPUs"], 5, []),
        (["gpu:1 is left out: Unknown Error"], 5, ["gpu:1 is left out: Unknown Error; its joules are in no total"]),
        ([], 1, ["gpu:0 gave no energy"]),
        ([], 0, ["gpu:0 gave no energy"]),
    ],
)
def test_a_gpu_whose_joules_are_missing_from_the_total_is_a_reason(
    notes: list[str], samples: int, reasons: list[str]
) -> None:
    made = result(
        [], [GPU, msgspec.structs.replace(GPU, name="gpu:0/memory", within="gpu:0")], at_power(100, samples - 1)
    )
    noted = RunResult(msgspec.structs.replace(made.info, energy_notes=notes), [], [], made.energy, [], None, None)
    said = list(energy_summary.invalid_reasons(noted, 20, 1.0, None, 0.0))
    assert len(said) == len(reasons) and all(map(str.startswith, said, reasons))


def test_shares_sum_whole_millijoules_and_count_only_completed_requests_in_the_distribution() -> None:
    failed = msgspec.structs.replace(record(1, 0, 1, 2), error="timeout", output_tokens=None, input_tokens=None)
    energies = {
        0: RequestEnergy(index=0, prefill_joules=0.1, decode_joules=0.2, joules=0.3),
        1: RequestEnergy(index=1, prefill_joules=0.7, decode_joules=None, joules=0.7),
    }
    shares = energy_shares([record(0, 0, 1, 2), failed], energies)
    assert shares["attributed_joules"] == 1.0
    assert (shares["prefill_joules"], shares["decode_joules"]) == (0.8, 0.2)
    assert shares["joules_per_output_token"] == 0.1
    assert shares["joules_per_token"] == 1.0 / 40
    assert (shares["joules_per_request"].count, shares["joules_per_request"].mean) == (1, 0.3)
    assert energy_shares([failed], {}) == {}


def clipped(watts: list[float], slack_s: list[float] | None) -> EnergySeries:
    """Return a series that updates every second, at a power in each."""
    mj = np.cumsum([0.0, *watts]) * 1000
    t_ns = np.arange(len(mj)) * NS_PER_S
    slack_ns = None if slack_s is None else np.array(slack_s) * NS_PER_S
    return EnergySeries("gpu:0", t_ns, mj.astype(np.int64), slack_ns=slack_ns)


@pytest.mark.parametrize(
    ("watts", "slack_s", "se_joules"),
    [
        ([100, 200, 300], None, 0.0),
        ([100, 200, 300], [0.0, 0.9, 0.9, 0.0], 0.0),
        ([300, 7, 400], [0.1, 0.0, 0.0, 0.1], 50 / math.sqrt(3)),
        ([300, 7, 400], [0.1, 0.5, 0.5, 0.0], 30 / math.sqrt(3)),
    ],
)
def test_the_error_of_the_measured_joules_is_the_power_times_the_uncertainty_at_both_ends(
    watts: list[float], slack_s: list[float] | None, se_joules: float
) -> None:
    """A uniform error of +-u has the variance u^2 / 3; 30 J and 40 J at the ends are 50 J together."""
    assert energy_summary.measured_se_joules([clipped(watts, slack_s)]) == pytest.approx(se_joules)


def test_the_error_of_measured_joules_is_unknown_without_two_updates() -> None:
    one, two = (EnergySeries("gpu:0", np.arange(n) * NS_PER_S, np.arange(n) * 1000) for n in (1, 2))
    assert energy_summary.measured_se_joules([two, one]) is None
    assert energy_summary.measured_se_joules([two]) == 0


def test_the_errors_of_several_counters_add_as_squares() -> None:
    three, four = (clipped([w, 0], [0.1, 0.0, 0.0]) for w in (30.0, 40.0))
    assert energy_summary.measured_se_joules([three, four]) == pytest.approx(5 / math.sqrt(3))
    assert energy_summary.measured_se_joules([]) == 0


@pytest.mark.parametrize(
    ("idle_w", "idle_se_w", "expected"),
    [(100.0, 2.0, 5.0), (100.0, 0.0, 3.0), (0.0, 2.0, 3.0), (None, 2.0, None), (100.0, None, None)],
)
def test_the_error_of_the_attributed_joules_has_that_of_idle_power_over_the_idle_time(
    idle_w: float | None, idle_se_w: float | None, expected: float | None
) -> None:
    """200 J of idle at 100 W are 2 s; at 2 W of error these are 4 J, and hypot(3, 4) = 5."""
    fit = Coefficients(
        step_j=1, prefill_token_j=1, prefill_context_j=0, decode_token_j=1, decode_context_j=0, idle_w=idle_w,
        idle_se_w=idle_se_w,
    )  # fmt: skip
    attribution = RunAttribution(
        method="shapley", start_ns=0, end_ns=9, measured_mj=900_000, idle_mj=200_000, attributed_mj=700_000,
        unattributed_mj=0, requests=[], coefficients=[fit],
    )  # fmt: skip
    assert energy_summary.attributed_se_joules(attribution, 3.0) == expected
    for fits in ([], attribution.coefficients * 2):
        assert energy_summary.attributed_se_joules(msgspec.structs.replace(attribution, coefficients=fits), 3.0) is None


def test_energy_that_was_read_only_before_the_requests_is_unknown_not_0() -> None:
    made = sample_runs.run(num_requests=30)
    before = [EnergySample(sample_runs.START_NS - t * NS_PER_S, "gpu:0", 100.0 * (9 - t)) for t in (5, 4, 3, 2)]
    found = analyse_run(replace(made, energy=before))
    assert found.summary is not None
    assert found.summary.energy.measured_joules is None
    assert found.summary.energy.reasons == ["the energy source was not read while requests ran"]


def limited(watts: list[float], capped: list[float] | None) -> EnergySeries:
    """Windows of 100 ms with these mean powers and shares of lowered clocks, of a GPU whose limit is 700 W."""
    t_ns = np.arange(len(watts) + 1) * 100_000_000
    mj = np.concatenate(([0], np.cumsum(np.array(watts) * 100))).astype(np.int64)
    capped_ns = None if capped is None else np.concatenate(([0], np.cumsum(np.array(capped) * 1e8))).astype(np.int64)
    return EnergySeries("gpu:0", t_ns, mj, capped_ns=capped_ns, limit_w=700.0)


@pytest.mark.parametrize(
    ("gpus", "capped", "at_limit"),
    [
        ([limited([700, 700, 500, 500], [1, 1, 1, 1])], 1.0, 0.5),
        ([limited([700, 700], [1, 1]), limited([300, 300], [0, 0])], 0.5, 0.5),
        ([limited([700, 700], [1, 1]), limited([300, 300], None)], 1.0, 1.0),
        ([limited([700, 700], None)], None, None),
        ([replace(limited([700, 700], [1, 1]), limit_w=None)], 1.0, None),
        ([], None, None),
    ],
)
def test_the_shares_of_the_time_at_the_limit_are_of_the_gpus_that_count_it(
    gpus: list[EnergySeries], capped: float | None, at_limit: float | None
) -> None:
    assert (capped_share(gpus), at_limit_share(gpus)) == (capped, at_limit)


@pytest.mark.parametrize(
    ("saved", "again", "cache"),
    [
        ([None, None], [None, None], None),
        ([], [], None),
        ([1.5, None, 2.0], [None, None, None], CacheEnergy(saved_joules=3.5, saved_se_joules=0.2)),
        ([0.0], [0.25], CacheEnergy(saved_joules=0.0, saved_se_joules=0.2, recomputed_joules=0.25)),
    ],
)
def test_what_a_cache_saved_is_summed_over_the_requests_for_which_it_is_known(
    saved: list[float | None], again: list[float | None], cache: CacheEnergy | None
) -> None:
    energies = [
        RequestEnergy(
            index=i, prefill_joules=1.0, decode_joules=1.0, joules=2.0, saved_joules=known, recomputed_joules=repeated
        )
        for i, (known, repeated) in enumerate(zip(saved, again, strict=True))
    ]
    errors = SumErrors(attributed_se_joules=1.0, prefill_se_joules=1.0, decode_se_joules=1.0, saved_se_joules=0.2)
    assert cache_energy(energies, errors) == cache
