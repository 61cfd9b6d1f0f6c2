"""A probe: the counts, latencies and power of a run at one rate."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.record import RequestRecord
from loadgen.results.probe import probe_of
from loadgen.results.run_folder import RunResult
from loadgen.results.search_result import Probe
from loadgen.results.summarize import analyse_run
from loadgen.units import NS_PER_S
from support import sample_runs
from support.sample_runs import START_NS

LIMITS_MS = {"ttft": 200.0, "e2el": 1000.0}
WATTS = 350.0


def answered(index: int, ttft_s: float = 0.05, e2e_s: float = 0.5) -> RequestRecord:
    """A request that was sent index / 10 s after the start, and whose answer has six tokens."""
    sent_ns = START_NS + index * NS_PER_S // 10
    first_ns, last_ns = sent_ns + round(ttft_s * NS_PER_S), sent_ns + round(e2e_s * NS_PER_S)
    chunks = [first_ns + (last_ns - first_ns) * k // 5 for k in range(6)]
    return RequestRecord(
        index=index, workload="chat", scheduled_ns=sent_ns, sent_ns=sent_ns, first_token_ns=first_ns,
        last_token_ns=last_ns, finished_ns=last_ns, chunk_ns=chunks, input_tokens=10, output_tokens=6,
        token_source="usage", status=200, finish_reason="length",
    )  # fmt: skip


def cut_off(index: int, after_s: float, begun_s: float | None = None) -> RequestRecord:
    """A request that was in flight when the run was ended; its first token came after `begun_s`, if any did."""
    whole = answered(index, ttft_s=begun_s or 0.05)
    first_ns = None if begun_s is None else whole.first_token_ns
    end_ns = (whole.sent_ns or 0) + round(after_s * NS_PER_S)
    return msgspec.structs.replace(
        whole, first_token_ns=first_ns, last_token_ns=first_ns, finished_ns=end_ns, error="cancelled",
        chunk_ns=[] if first_ns is None else [first_ns],
        output_tokens=None,
    )  # fmt: skip


def unsent(index: int) -> RequestRecord:
    return RequestRecord(index=index, workload="chat", scheduled_ns=START_NS, error="not_sent")


def refused(index: int) -> RequestRecord:
    scheduled_ns = START_NS + index * NS_PER_S // 10
    return RequestRecord(
        index=index, workload="chat", scheduled_ns=scheduled_ns, finished_ns=scheduled_ns + 1000, error="connect"
    )


def run_of(make: Callable[[int], RequestRecord], stopped_by: str = "completed", has_meter: bool = True) -> RunResult:
    """A run of 100 requests in 10 s, at constant power."""
    whole = sample_runs.run(100)
    domain = EnergyDomain(name="gpu:0", source="nvml-counter")
    info = msgspec.structs.replace(
        whole.info,
        start_ns=START_NS,
        stopped_by=stopped_by,
        seed=5,
        config={"goodput": LIMITS_MS},
        domains=[domain] if has_meter else [],
    )
    samples = [
        EnergySample(t_ns=START_NS + k * NS_PER_S // 10, domain="gpu:0", joules=k * WATTS / 10) for k in range(-10, 200)
    ]
    schedule = [
        msgspec.structs.replace(request, offset_ns=i * NS_PER_S // 10, output_tokens=6)
        for i, request in enumerate(whole.schedule)
    ]
    records = [make(i) for i in range(100)]
    return analyse_run(
        replace(
            whole,
            info=info,
            schedule=schedule,
            records=records,
            energy=[msgspec.structs.replace(sample, joules=sample.joules + WATTS) for sample in samples] * has_meter,
            engine=[],
        )
    )


def probe(run: RunResult, **changes: Any) -> Probe:
    plan: dict[str, Any] = {
        "name": "003", "number": 3, "rate_rps": 10.0, "stage": "refine", "planned_s": 10.0, "wall_s": 12.0,
        "stopped_early": False,
    }  # fmt: skip
    return probe_of(run, **plan | changes)


def test_the_requests_of_the_steady_state_are_counted_with_their_latencies_and_the_power() -> None:
    made = probe(run_of(answered))
    assert 1.0 < made.from_s < made.until_s < 10.0
    assert made.requests == made.good == pytest.approx(10 * made.counted_s, abs=1)
    assert made.met == {"ttft": made.requests, "e2el": made.requests}
    assert (made.ttft_p50_s, made.e2e_p99_s, made.tpot_p50_s) == pytest.approx((0.05, 0.5, 0.09))
    assert made.output_tokens == 6 * made.requests
    assert made.watts == pytest.approx(WATTS, rel=1e-3)
    assert (made.seed, made.wall_s, made.failed, made.stopped_early) == (5, 12.0, 0, False)


def test_power_without_a_meter_or_of_less_than_half_of_the_time_is_unknown() -> None:
    assert probe(run_of(answered, has_meter=False)).watts is None
    assert probe(run_of(answered), planned_s=60.0).watts is None


def test_the_power_of_a_run_that_ended_before_the_counted_time_is_that_of_what_it_measured() -> None:
    run = run_of(answered)
    short = replace(run, energy=[sample for sample in run.energy if sample.t_ns <= START_NS + 8 * NS_PER_S])
    assert probe(short).watts == pytest.approx(WATTS, rel=1e-3)


def test_a_failed_request_has_missed_its_limits_and_one_that_could_not_connect_too() -> None:
    made = probe(run_of(lambda i: refused(i) if i % 4 == 0 else answered(i)))
    assert made.failed == made.missed == pytest.approx(made.requests / 4, abs=1)
    assert any("25 of 100 requests failed (25 connect" in reason for reason in made.reasons)
    assert made.ttft_p50_s == pytest.approx(0.05)


def test_a_probe_that_was_ended_early_counts_what_was_sent_and_no_failure() -> None:
    """From the sixth second on nothing is answered; at the eighth the run is ended."""

    def make(i: int) -> RequestRecord:
        if i < 60:
            return answered(i)
        return cut_off(i, after_s=(80 - i) / 10) if i < 80 else unsent(i)

    made = probe(run_of(make, "decided"), stopped_early=True)
    assert made.stopped_early
    assert made.failed == 0
    assert made.missed == 18, "requests that waited for less than the limit might have met it"
    assert made.until_s == pytest.approx(8.0)


def test_a_probe_that_the_budget_cut_short_counts_what_could_end_before_that() -> None:
    """At the eighth second the run is ended; requests take half a second."""
    made = probe(run_of(lambda i: answered(i) if i < 75 else cut_off(i, 0.1) if i < 80 else unsent(i), "decided"))
    assert made.until_s == pytest.approx(8.0 - 0.5)
    assert made.requests == made.good == pytest.approx(10 * made.counted_s, abs=1)


@pytest.mark.parametrize(
    ("after_s", "begun_s", "is_known"),
    [(0.1, None, False), (0.3, None, True), (0.9, 0.1, False), (1.1, 0.1, True), (0.5, 0.3, True)],
)
def test_a_request_that_was_cut_off_has_missed_only_a_limit_that_it_was_over(
    after_s: float, begun_s: float | None, is_known: bool
) -> None:
    made = probe(run_of(lambda i: cut_off(i, after_s, begun_s) if i == 50 else answered(i), "decided"))
    whole = probe(run_of(answered))
    assert whole.requests - made.requests == made.unfinished == (0 if is_known else 1)
    assert made.missed == (1 if is_known else 0)
