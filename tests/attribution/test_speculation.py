"""Laws of what speculative decoding is to the attribution."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from loadgen.attribution.beside_others import SharedSteps
from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.cost_model import COLUMNS, cost_shares, feature_column, foreign_features
from loadgen.attribution.engine_steps import ForeignLoad, Speculation
from loadgen.attribution.shapley import attribute_energy
from loadgen.attribution.speculation import engine_speculation, rejected_energy, speculation_of
from loadgen.energy.series import series_by_domain
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.simulator.engine import EngineOptions, SimulatedRun, SubmittedRequest, simulate
from loadgen.simulator.speculation import Speculation as Drafting
from loadgen.units import NS_PER_MS, NS_PER_S
from support.attribution_runs import prices, request_ns, two_steps

BY_THREES = Speculation(3.0, 2.0, counted=True)


def drafts(*rows: tuple[float, float, float]) -> list[dict[str, float]]:
    names = ("drafts", "draft_tokens", "accepted_tokens")
    return [{"t_ns": i, **dict(zip(names, row, strict=True))} for i, row in enumerate(rows)]


def test_the_engines_counters_say_what_a_step_computed_and_emitted():
    assert engine_speculation(drafts((10, 40, 20), (30, 120, 50))) == Speculation(5.0, 2.5, counted=True)
    assert engine_speculation([{"t_ns": 0}, {"t_ns": 1}]) is None


@pytest.mark.parametrize(
    ("chunks", "tokens", "steps_between", "expected"),
    [
        ([30, 25, 2], [80, 90, 8], [30, 25, 2], Speculation(4.0, 178 / 57, counted=False)),
        ([30, 25, 2], [33, 27, 2], [30, 25, 2], None),  # a few tokens without text
        ([30, 25, 2], [80, 90, 8], [80, 88, 8], None),  # the streams were in steps without a chunk
        ([10, 20, 3], [40, 80, 11], [10, 20, 3], None),  # the server sends four tokens at a time
        ([0, 0], [0, 0], [0, 0], None),
    ],
)
def test_without_counters_the_chunks_decide(chunks, tokens, steps_between, expected):
    columns = np.array(chunks), np.array(tokens), np.array(steps_between)
    assert speculation_of([], *columns) == expected
    assert speculation_of(drafts((0, 0, 0), (0, 0, 0)), *columns) is None, "the engine counted no draft"


@pytest.mark.parametrize(
    ("per_chunk", "computed", "emitted"),
    [(2.5, 5.0, 2.5), (2.4, 5.0, 2.5), (1.6, 2.6, 1.6), (1.0, 1.0, 1.0), (3.0, 5.0, 2.5)],
)
def test_drafts_that_are_not_in_every_step_count_where_they_are(per_chunk, computed, emitted):
    """A draft of four tokens brings 1.5 more; ours got so many tokens in a chunk."""
    chunks = np.array([100, 100])
    told = speculation_of(drafts((0, 0, 0), (100, 400, 150)), chunks, (chunks * per_chunk).astype(int), chunks)
    assert told is not None and told.counted
    assert (told.computed, told.emitted) == (pytest.approx(computed), pytest.approx(emitted))


def test_a_verified_token_costs_the_same_whether_it_was_accepted_or_not():
    steps = two_steps()
    some = replace(steps, decode=steps.decode * 2.5, speculation=BY_THREES)
    all_of_them = replace(steps, decode=steps.decode * 3, speculation=BY_THREES)
    law = prices(1.0, 0.1, 0.0, 0.25, 0.01)
    assert cost_shares(some, law).tolist() == cost_shares(all_of_them, law).tolist()
    assert feature_column(some, "decode_token_j").tolist() == [0, 3, 0]


def test_other_clients_tokens_are_drafted_too():
    load = ForeignLoad(np.array([0, 2 * NS_PER_S]), *np.zeros((3, 1)), np.array([8.0]), context=10.0)
    steps = replace(two_steps(load), speculation=BY_THREES)
    [features] = foreign_features(steps, np.array([0, 2 * NS_PER_S]))
    assert features[COLUMNS.index("decode_token_j")] == 12.0, "3 computed for every 2 emitted"


def test_rejected_tokens_cost_their_price_and_no_share_of_the_step():
    steps = replace(two_steps(), decode=np.array([0, 2, 0], np.float32), speculation=BY_THREES)
    law, covariance = prices(1.0, 0.1, 0.0, 0.25, 0.01), np.diag([0, 0, 0, 0.01, 0])
    shares = cost_shares(steps, law)
    joules, error = rejected_energy(steps, shares, 2 * shares, 2, law, covariance) or (0.0, 0.0)
    assert joules == pytest.approx(2 * 0.25), "one token of three, where the counter counted twice the law's joules"
    assert error == pytest.approx(2 * 0.1)
    for unknown in (replace(steps, speculation=None), replace(steps, speculation=replace(BY_THREES, counted=False))):
        assert rejected_energy(unknown, shares, shares, 2, law, covariance) is None
    assert rejected_energy(steps, shares, shares, 2, prices(1.0, 0.1, 0.0, 0.0, 0.01), covariance) is None


@pytest.fixture(scope="module")
def run() -> SimulatedRun:
    rng = np.random.default_rng(5)
    instants = np.cumsum(rng.exponential(NS_PER_S / 5, 120)).astype(int) + NS_PER_S
    arrivals = [SubmittedRequest(int(t), int(rng.integers(10, 1500)), int(rng.integers(2, 200))) for t in instants]
    options = EngineOptions(speculation=Drafting(read_model("llama-3.2-1b"), (0.8, 0.6, 0.5)))
    return simulate(arrivals, read_hardware("h200"), read_model("llama-3.1-8b"), options, tail_ns=NS_PER_S)


@pytest.mark.parametrize("with_counters", [True, False])
def test_requests_of_a_speculating_engine_get_what_they_cost(run, with_counters):
    records = [
        msgspec.structs.replace(
            request_ns(i, r.arrival_ns, [t + NS_PER_MS // 2 for t in r.token_ns], r.input_tokens),
            output_tokens=r.output_tokens,
            token_source="usage",
        )
        for i, r in enumerate(run.requests)
    ]
    engine = run.engine if with_counters else []
    steps = engine_steps_of(records, engine)
    assert steps.speculation is not None and steps.speculation.computed == 4.0
    series = list(series_by_domain(run.counter).values())
    result = attribute_energy(series, records, NS_PER_S, run.end_ns, shared=SharedSteps(steps, ()))
    truth = np.array([r.prefill_j + r.decode_j for r in run.requests])
    errors = np.abs(np.array([share.joules for share in result.requests]) - truth) / truth
    assert np.median(errors) < 0.01 and np.percentile(errors, 90) < 0.03
    if not with_counters:
        assert result.rejected_joules is None
        return
    assert result.rejected_joules is not None
    rejected = sum(r.rejected_j for r in run.requests)
    assert 0.5 * rejected < result.rejected_joules < rejected, "the draft's contexts are not in it"
