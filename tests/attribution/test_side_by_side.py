"""Two engines on one GPU: a law for each, one price of the GPU's time, and a counter that is divided among both."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.attribution.beside_others import SharedSteps, steps_beside_others
from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.cost_model import busy_spans, columns_of, free_time, member_features, step_features
from loadgen.attribution.shapley import JointAttribution, attribute_jointly
from loadgen.attribution.side_by_side import side_by_side
from loadgen.attribution.step_time import with_pace
from loadgen.attribution.window_fit import fit_windows
from loadgen.energy.series import EnergySeries
from loadgen.record import RequestRecord
from loadgen.units import NS_PER_S
from support.attribution_runs import MS, counter, request, runs

WATTS = 250.0
IDLE_W = 100.0
PRICES = ((2.0, 0.02, 0.0, 0.05, 0.0001), (9.0, 0.2, 0.0, 0.3, 0.0002))
"""The work of each engine: its step, prompt token, prompt context, decoded token, decoded context."""


def of_engine(records: list[RequestRecord], engine: int) -> list[RequestRecord]:
    """The records as engine 0 or 1 sees them, which serves the even or the odd ones."""
    return [
        record
        if record.index % 2 == engine
        else RequestRecord(index=record.index, workload=record.workload, scheduled_ns=record.scheduled_ns)
        for record in records
    ]


def together(records: list[RequestRecord], *engines: int) -> SharedSteps:
    """The steps of engines 0 and 1, or in another order."""
    return side_by_side([steps_beside_others(of_engine(records, engine)) for engine in engines or (0, 1)], len(records))


def two_streams(seed: int = 0, requests: int = 120) -> list[RequestRecord]:
    """Requests to both engines in turn; each engine decodes at a pace of its own."""
    rng = np.random.default_rng(seed)
    records = []
    for index in range(requests):
        pace = (7.0, 23.0)[index % 2]
        sent = 600 + 150.0 * index
        first = (np.floor(sent / pace) + 2) * pace
        chunks = [float(first + pace * k) for k in range(int(rng.integers(4, 40)))]
        records.append(request(index, sent, chunks, int(rng.integers(50, 3000))))
    return records


def priced(records: list[RequestRecord]) -> tuple[EnergySeries, np.ndarray]:
    """A counter that shows what both laws say, in windows of 100 ms, and the joules of each request."""
    steps = together(records).steps
    parts = [part._replace(steps=with_pace(part.steps, step_features(part.steps))) for part in steps.parts]
    steps = replace(steps, parts=tuple(parts))
    joules = member_features(steps) @ np.array([*PRICES[0], *PRICES[1], WATTS])
    edges_ms = np.arange(0, steps.end_ns.max() / MS + 1000, 100.0)
    edges_ns = (edges_ms * MS).astype(np.int64)
    energy_j = IDLE_W * free_time(steps, edges_ns) / NS_PER_S
    for start_ns, end_ns, step_j in zip(
        steps.start_ns, steps.end_ns, np.bincount(steps.step, joules, minlength=steps.count), strict=True
    ):
        inside = np.minimum(end_ns, edges_ns[1:]) - np.maximum(start_ns, edges_ns[:-1])
        energy_j += step_j * np.maximum(inside, 0) / (end_ns - start_ns)
    return counter(edges_ms.tolist(), energy_j.tolist()), np.bincount(steps.request, joules, minlength=len(records))


def attributed(series: list[EnergySeries], records: list[RequestRecord]) -> JointAttribution:
    return attribute_jointly(series, records, 0, int(series[0].t_ns[-1]), shared=together(records))


@given(runs())
def test_every_millijoule_lands_in_one_account_of_one_engine_or_in_none(
    run: tuple[list[EnergySeries], list[RequestRecord]],
) -> None:
    series, records = run
    result = attribute_jointly(series, records, 0, 4000 * MS, shared=together(records))
    assert result.measured_mj == sum(one.clip(0, 4000 * MS).total_mj for one in series)
    of_engines = sum(engine.attributed_mj + engine.unattributed_mj for engine in result.engines)
    assert result.measured_mj == result.idle_mj + result.unattributed_mj + of_engines
    assert min(result.idle_mj, result.unattributed_mj) >= 0
    for number, engine in enumerate(result.engines):
        assert all(share.joules == 0 for share in engine.requests if share.index % 2 != number)
        assert all((share.prefill_joules or 0) >= 0 and (share.decode_joules or 0) >= 0 for share in engine.requests)


def test_what_two_laws_made_comes_back_request_by_request() -> None:
    records = two_streams()
    series, truth = priced(records)
    result = attributed([series], records)
    joules = [result.engines[record.index % 2].requests[record.index].joules for record in records]
    assert joules == pytest.approx(truth.tolist(), rel=0.01)
    assert [engine.coefficients[0].idle_w for engine in result.engines] == pytest.approx([IDLE_W] * 2, rel=0.001)
    assert [engine.coefficients[0].step_j for engine in result.engines] == pytest.approx([2.0, 9.0], rel=0.05)
    first, second = (engine.coefficients[0].busy_w for engine in result.engines)
    assert first == second == pytest.approx(WATTS, rel=0.05)


def test_windows_at_the_power_limit_are_no_evidence() -> None:
    """Ten windows of every forty show 700 W, whatever was done in them."""
    records = two_streams(4)
    series, _ = priced(records)
    block = (np.arange(len(series) - 1) + 20) % 40
    energy_mj = np.where((block > 0) & (block < 9), 70_000, np.diff(series.mj))
    limited = replace(
        series,
        mj=np.concatenate(([0], np.cumsum(energy_mj))),
        capped_ns=np.concatenate(([0], np.cumsum(np.where(block < 10, 100 * MS, 0)))),
        limit_w=700.0,
    )
    result = attributed([limited], records)
    assert [engine.coefficients[0].step_j for engine in result.engines] == pytest.approx([2.0, 9.0], rel=0.05)
    assert result.engines[0].coefficients[0].outliers == 0


def test_which_engine_comes_first_does_not_matter() -> None:
    records = two_streams(1)
    series, _ = priced(records)
    result = attributed([series], records)
    reversed_result = attribute_jointly([series], records, 0, int(series.t_ns[-1]), shared=together(records, 1, 0))
    for before, after in zip(result.engines, reversed(reversed_result.engines), strict=True):
        assert [share.joules for share in after.requests] == pytest.approx(
            [share.joules for share in before.requests], abs=0.003
        )


def test_an_engine_has_standard_errors_for_its_own_requests_and_sums() -> None:
    records = two_streams(2)
    series, _ = priced(records)
    noisy = replace(series, mj=series.mj + np.random.default_rng(0).integers(-900, 900, len(series.mj)))
    sums = {"all": np.arange(len(records))}
    result = attribute_jointly([noisy], records, 0, int(series.t_ns[-1]), shared=together(records), sums=sums)
    for number, engine in enumerate(result.engines):
        assert all(((share.se_joules or 0) > 0) == (share.index % 2 == number) for share in engine.requests)
        assert 0 < engine.sums["all"].attributed_se_joules < 0.1 * engine.attributed_mj / 1000
        assert set(engine.fits[0].se) <= set(engine.coefficients[0].columns)


def test_what_one_engine_gains_the_other_loses_so_their_sum_is_surer_than_independent_errors() -> None:
    """Over noisy counters, the error of both engines' joules together is that of the joint fit."""
    records = two_streams(2)
    series, truth = priced(records)
    rows = np.arange(len(records))
    sums = {"all": rows, "first": rows[::2], "second": rows[1::2]}
    off, joint, independent = [], [], []
    for seed in range(12):
        noise = 1 + 0.03 * np.random.default_rng(seed).standard_normal(len(series) - 1)
        mj = np.concatenate(([0], np.cumsum(np.rint(np.diff(series.mj) * noise)))).astype(np.int64)
        noisy, end_ns = replace(series, mj=mj), int(series.t_ns[-1])
        result = attribute_jointly([noisy], records, 0, end_ns, shared=together(records), sums=sums)
        off.append(sum(engine.attributed_mj for engine in result.engines) / 1000 - truth.sum())
        errors = [engine.sums["all"].attributed_se_joules for engine in result.engines]
        joint.append(result.sums["all"].attributed_se_joules)
        independent.append(float(np.hypot(*errors)))
        assert joint[-1] <= sum(errors)
        for engine, name in zip(result.engines, ("first", "second"), strict=True):
            own = engine.sums[name].attributed_se_joules
            assert result.sums[name].attributed_se_joules == pytest.approx(own) and own > 0
    rms = float(np.sqrt(np.mean(np.square(off))))
    assert np.mean(joint) < 0.8 * np.mean(independent)
    assert 0.5 < rms / np.mean(joint) < 2


def test_reasoning_is_part_of_the_decode_on_either_engine() -> None:
    records = two_streams(3)
    series, _ = priced(records)
    kinds = [
        msgspec.structs.replace(record, kinds=[("reasoning", 2), ("answer", len(record.chunk_ns) - 2)])
        for record in records
    ]
    result = attributed([series], kinds)
    for record in kinds:
        share = result.engines[record.index % 2].requests[record.index]
        assert share.reasoning_joules is not None and share.decode_joules is not None
        assert 0 < share.reasoning_joules < share.decode_joules


def test_the_requests_of_others_are_their_engines_own() -> None:
    """Two records are ours; each engine has one more of another client, and the last one is only inferred."""
    records = [request(0, 0, [10.0, 20.0]), request(1, 0, [15.0, 25.0])]
    known, inferred = request(7, 0, [12.0, 22.0]), request(8, 0, [17.0, 27.0])
    first = SharedSteps(engine_steps_of([*of_engine(records, 0), inferred]), [inferred], 1)
    second = SharedSteps(engine_steps_of([*of_engine(records, 1), known]), [known])
    shared = side_by_side([first, second], 2)
    steps, foreign, last = shared
    assert ([record.index for record in foreign], last) == ([7, 8], 1)
    assert [sorted(set(part.steps.request.tolist())) for part in steps.parts] == [[0, 3], [1, 2]]
    series = counter([0.0, 30.0, 60.0], [10.0, 0.0])
    result = attribute_jointly([series], records, 0, 60 * MS, shared=shared)
    assert all(engine.unattributed_mj > 0 and engine.attributed_mj > 0 for engine in result.engines)


@pytest.mark.parametrize(
    ("first", "second", "spans", "gpu_ms"),
    [
        ((0, [10, 20]), (30, [40, 50]), [(0, 20), (30, 50)], [[10, 10], [10, 10]]),
        ((0, [10, 20]), (0, [40]), [(0, 40)], [[5, 5], [30]]),
        ((0, [40]), (10, [30]), [(0, 40)], [[30], [10]]),
        ((0, [40]), (0, []), [(0, 40)], [[40], []]),
    ],
    ids=["apart", "steps within a step", "a step within a step", "one engine without steps"],
)
def test_an_instant_counts_once_however_many_engines_run(
    first: tuple[float, list[float]],
    second: tuple[float, list[float]],
    spans: list[tuple[float, float]],
    gpu_ms: list[list[float]],
) -> None:
    """Each engine has a request that is sent and gets its tokens at these instants, in ms."""
    steps = together([request(0, *first), request(1, *second)]).steps
    assert [(start / MS, end / MS) for start, end in zip(*busy_spans(steps), strict=True)] == spans
    assert [(part.steps.seconds * 1e3).tolist() for part in steps.parts] == [
        pytest.approx(of, abs=1e-6) for of in gpu_ms
    ]


@given(st.integers(0, 2**32 - 1))
def test_the_prices_of_engines_have_columns_of_their_own(seed: int) -> None:
    records = two_streams(seed % 50, 20)
    steps = together(records).steps
    features = step_features(steps)
    for (engine, _, place), block in zip(steps.members_of_engines, np.hsplit(features, 2), strict=True):
        assert block[place].tolist() == step_features(engine).tolist()
        assert not np.delete(block, np.r_[place], axis=0).any()
    assert len(columns_of(steps)) == features.shape[1] == len(fit_windows(priced(records)[0], steps).values)
