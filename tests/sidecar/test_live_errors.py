"""Standard errors of live requests, against the simulator's oracle."""

import numpy as np
import pytest
from numpy.random import default_rng

from loadgen.sidecar.accounts import OpenRequest
from loadgen.sidecar.ledger import Ledger, SettledEntry
from loadgen.simulator.engine import SubmittedRequest, simulate
from loadgen.units import MJ_PER_J, NS_PER_MS, NS_PER_S, ns_from_s
from sidecar.test_interleavings import GPU, H200, LLAMA, QUIET_S, Phase, span, traffic
from sidecar.test_ledger import span as ended


def settled_requests(phases: list[Phase], seed: int) -> list[tuple[SettledEntry, float]]:
    """Return the requests that a ledger settles, and their true joules."""
    sent = sorted(traffic(phases, default_rng(seed)))
    arrivals = [SubmittedRequest(ns_from_s(at_s), *tokens) for at_s, *tokens, _ in sent]
    run = simulate(arrivals, H200, LLAMA, tail_ns=QUIET_S * NS_PER_S, engine_period_ns=250 * NS_PER_MS)
    known = [(number, request) for number, request in enumerate(run.requests) if sent[number].late_s is not None]
    true_j = {f"r{number}": request.prefill_j + request.decode_j for number, request in known}
    ledger, made = Ledger([GPU]), []
    for second in range(1, int(run.end_ns / NS_PER_S) + 2):
        since_ns, now_ns = (second - 1) * NS_PER_S, second * NS_PER_S
        ledger.add_energy(sample for sample in run.counter if since_ns < sample.t_ns <= now_ns)
        for engine in (engine for engine in run.engine if since_ns < engine["t_ns"] <= now_ns):
            ledger.add_engine_sample(engine)
        for number, request in known:
            if since_ns < request.token_ns[-1] + ns_from_s(sent[number].late_s or 0.0) <= now_ns:
                ledger.add_span(span(number, request, "chat"), now_ns)
        ledger.commit(now_ns)
        made += [(settled, true_j[settled.entry.request.key]) for settled in ledger.settled]
    return made


SPAN = ended("a", 1, 2)
CASES = {
    "2/s": [Phase("spanned", 2, 0, 0, 8)] * 6,
    "8/s": [Phase("spanned", 8, 0, 0, 6)] * 6,
    "4/s, spans 3 s late": [Phase("spanned", 4, 3.0, 0, 8)] * 6,
    "beside as many without spans": [Phase("both", 4, 0, 0, 8)] * 6,
    "a tenth of the spans lost": [Phase("spanned", 8, 0, 0.1, 6)] * 5,
}


@pytest.mark.parametrize("name", CASES)
def test_almost_all_joules_are_within_two_standard_errors_of_the_true_ones(name: str) -> None:
    made = settled_requests(CASES[name], seed=0)
    known = [(settled.entry, true_j) for settled, true_j in made if settled.entry.se_mj is not None]
    assert len(known) >= 0.9 * len(made), "those before the first fit have none"
    attributed = np.array([entry.prefill_mj + entry.decode_mj for entry, _ in known]) / MJ_PER_J
    errors = np.array([entry.se_mj for entry, _ in known], dtype=float) / MJ_PER_J
    true_j = np.array([joules for _, joules in known])
    assert np.mean(np.abs(attributed - true_j) <= 1.96 * errors) >= 0.85
    assert np.median(errors / true_j) < 0.035, "an error that is always large holds everything"


@pytest.mark.parametrize(
    ("portions", "se_mj"),
    [
        ([], None),  # it was charged nothing
        ([(9.0, 0.0), (16.0, 0.0)], 5_000),  # variances add
        ([(0.0, 3.0), (0.0, 4.0)], 7_000),  # the law's errors add
        ([(9.0, 4.0)], 5_000),
        ([(None, 0.0), (9.0, 4.0)], None),  # charged before the first fit
    ],
)
def test_windows_are_independent_and_the_law_is_one(
    portions: list[tuple[float | None, float]], se_mj: int | None
) -> None:
    entry = OpenRequest(SPAN, charged=bool(portions))
    for windows_j2, law_j in portions:
        entry.add_errors(windows_j2, law_j)
    assert entry.se_mj == se_mj


def test_a_part_of_the_prefills_energy_is_uncertain_whatever_the_windows_show() -> None:
    entry = OpenRequest(SPAN, prefill_mj=100_000, decode_mj=900_000, charged=True)
    entry.add_errors(0.0, 0.0)
    assert entry.se_mj == 5_000
