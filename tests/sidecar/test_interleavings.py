"""Joules of spanned requests against the simulator's oracle, in random interleavings with requests without spans."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.random import Generator, default_rng

from loadgen.energy.series import EnergyDomain
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.sidecar.ledger import Ledger, Snapshot
from loadgen.simulator.engine import SimulatedRequest, SimulatedRun, SubmittedRequest, simulate
from loadgen.telemetry.otlp_parse import RequestSpan
from loadgen.units import NS_PER_MS, NS_PER_S, j_from_mj, ns_from_s

GPU = EnergyDomain(name="gpu:0", source="simulated")
H200, LLAMA = read_hardware("h200"), read_model("llama-3.1-8b")
QUIET_S = 75
"""Longer than an engine's missing spans are waited for, and than the fit looks back."""
LONGEST_S = 30
"""No request lasts as long."""


class Phase(NamedTuple):
    """Traffic of about six seconds, or a burst, and the pause until the next begins."""

    kind: str
    """spanned, both (as many without spans beside them) or burst (80 without spans at 60/s)."""
    rate: int
    late_s: float
    lost: float
    """Share of the spans that never arrive."""
    pause_s: float


PHASES = st.lists(
    st.builds(
        Phase,
        st.sampled_from(("spanned", "spanned", "both", "burst")),
        st.sampled_from((2, 4, 8)),
        st.sampled_from((0.0, 3.0, 5.9)),
        st.sampled_from((0.0, 0.1)),
        st.sampled_from((3, 8, 15, QUIET_S)),
    ),
    min_size=1,
    max_size=5,
)


class Sent(NamedTuple):
    """A request, and how late its span arrives; None: never."""

    at_s: float
    input_tokens: int
    output_tokens: int
    late_s: float | None


def traffic(phases: list[Phase], rng: Generator) -> Iterator[Sent]:
    """Yield the requests of all phases, in no order."""
    start_s = 5.0
    for phase in phases:
        spanned = {"spanned": [True], "both": [True, False], "burst": [False]}[phase.kind]
        rate, number = (60, 80) if phase.kind == "burst" else (phase.rate, 6 * phase.rate)
        for reports in spanned:
            at_s = start_s
            for _ in range(number):
                at_s += rng.exponential(1 / rate)
                known = reports and rng.random() >= phase.lost
                yield Sent(
                    at_s, int(rng.integers(20, 800)), int(rng.integers(20, 300)), phase.late_s if known else None
                )
        start_s += phase.pause_s


@dataclass
class Played:
    """What one or several ledgers, one after the other, made of a run."""

    attributed_j: float = 0.0
    true_j: float = 0.0
    snapshots: list[Snapshot] = field(default_factory=list)


def span(number: int, request: SimulatedRequest, workload: str) -> RequestSpan:
    return RequestSpan(
        key=f"r{number}", request_id=None, client=False, start_ns=request.arrival_ns, prefill_ns=request.started_ns,
        first_token_ns=request.token_ns[0], end_ns=request.token_ns[-1], input_tokens=request.input_tokens,
        output_tokens=request.output_tokens, cached_tokens=None, model="m", workload=workload, ok=True,
    )  # fmt: skip


def engine_samples(run: SimulatedRun, restarts_s: list[float]) -> list[dict[str, float]]:
    """The engine's samples, as if its counters had begun again at zero at these instants."""
    samples, zero = [], dict.fromkeys(("generation_tokens", "prompt_tokens", "iterations", "cached_tokens"), 0.0)
    restarts_ns = [ns_from_s(at_s) for at_s in restarts_s]
    for sample in run.engine:
        while restarts_ns and sample["t_ns"] >= restarts_ns[0]:
            restarts_ns.pop(0)
            zero = {name: sample[name] for name in zero}
        samples.append({**sample, **{name: sample[name] - value for name, value in zero.items()}})
    return samples


def play(sent: list[Sent], engine_restarts_s: list[float], sidecar_restarts_s: list[float]) -> Played:
    """Tell ledgers what a sidecar would be told, when it would be told it, and compare with the oracle.

    A request that a sidecar did not see whole, or whose energy was pending when it was stopped, is left out.
    """
    sent = sorted(sent)
    arrivals = [SubmittedRequest(ns_from_s(at_s), *tokens) for at_s, *tokens, _ in sent]
    run = simulate(arrivals, H200, LLAMA, tail_ns=QUIET_S * NS_PER_S, engine_period_ns=250 * NS_PER_MS)
    played, arrived = Played(), []
    for number, (request, (*_, late_s)) in enumerate(zip(run.requests, sent, strict=True)):
        begin_s, end_s = request.arrival_ns / NS_PER_S, request.token_ns[-1] / NS_PER_S
        assert end_s - begin_s < LONGEST_S
        whole = all(end_s + 2 * LONGEST_S < at_s or begin_s > at_s + 1 for at_s in sidecar_restarts_s)
        if late_s is not None:
            played.true_j += (request.prefill_j + request.decode_j) * whole
            arrived.append((end_s + late_s, span(number, request, "whole" if whole else "cut")))
    spans = sorted(arrived, key=lambda row: row[0])
    samples, energy = engine_samples(run, engine_restarts_s), run.counter
    last_s = int(run.end_ns / NS_PER_S) + 1
    stops = {*(int(at_s) for at_s in sidecar_restarts_s), last_s}
    ledger, next_span, next_sample, next_energy = Ledger([GPU]), 0, 0, 0
    for second in range(1, last_s + 1):
        while next_energy < len(energy) and energy[next_energy].t_ns <= second * NS_PER_S:
            ledger.add_energy([energy[next_energy]])
            next_energy += 1
        while next_sample < len(samples) and samples[next_sample]["t_ns"] <= second * NS_PER_S:
            ledger.add_engine_sample(samples[next_sample])
            next_sample += 1
        while next_span < len(spans) and spans[next_span][0] <= second:
            ledger.add_span(spans[next_span][1], second * NS_PER_S)
            next_span += 1
        ledger.commit(second * NS_PER_S)
        snapshot = ledger.snapshot(second * NS_PER_S)  # raises unless every millijoule is in one account
        if second in stops:
            played.snapshots.append(snapshot)
            account = snapshot.accounts.get(("m", "whole"))
            played.attributed_j += j_from_mj(account.prefill_mj + account.decode_mj) if account else 0.0
            ledger = Ledger([GPU])
    return played


RESTARTS = st.lists(st.sampled_from((12.0, 40.0, 101.0, 160.0)), max_size=2, unique=True).map(sorted)


@pytest.mark.timeout(180)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PHASES, st.integers(0, 2**32), RESTARTS, RESTARTS)
def test_spanned_requests_joules_are_within_5_percent_of_the_oracle_in_every_interleaving(
    phases: list[Phase], seed: int, engine_restarts_s: list[float], sidecar_restarts_s: list[float]
) -> None:
    """Left out are interleavings with less than 300 J of spanned requests, a handful, of which one window's rounding to
    a wrong neighbour is several per cent, and requests that a sidecar's restart cut."""
    played = play(list(traffic(phases, default_rng(seed))), engine_restarts_s, sidecar_restarts_s)
    if played.true_j > 300:
        assert played.attributed_j == pytest.approx(played.true_j, rel=0.05)


@pytest.mark.parametrize("pause_s", [8, QUIET_S])
def test_runs_after_a_burst_without_spans_have_all_their_joules(pause_s: int) -> None:
    """The burst alone is in no account of a request, and no debt of it is charged to whoever comes next."""
    burst, run = Phase("burst", 0, 0, 0, pause_s), Phase("spanned", 4, 0, 0, 12)
    played = play(list(traffic([burst, run, run], default_rng(1))), [], [])
    assert played.attributed_j == pytest.approx(played.true_j, rel=0.01)
    alone = play(list(traffic([burst], default_rng(1))), [], [])
    assert not alone.snapshots[0].accounts and alone.snapshots[0].unattributed_mj > 0
    assert alone.snapshots[0].coverage == 0.0
    assert alone.snapshots[0].foreign_tokens == pytest.approx(80 * 160, rel=0.1)
