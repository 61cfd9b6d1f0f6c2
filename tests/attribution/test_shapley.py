"""The laws of attribution. Most are properties: they hold for any run, not for the ones we thought of."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.cost_model import (
    COLUMNS,
    align_phase,
    fit_coefficients,
    member_features,
    overlap,
)
from loadgen.attribution.engine_steps import EngineSteps
from loadgen.attribution.shapley import METHODS, Method, attribute_energy, round_to_sum, split_energy
from loadgen.energy.series import EnergySeries
from loadgen.record import RequestRecord
from loadgen.units import NS_PER_MS

MS = NS_PER_MS


def request(index: int, sent_ms: float, chunk_ms: list[float], prompt: int = 100, cached: int = 0) -> RequestRecord:
    chunks = [round(at * MS) for at in chunk_ms]
    return RequestRecord(
        index=index,
        workload="chat",
        scheduled_ns=round(sent_ms * MS),
        sent_ns=round(sent_ms * MS),
        first_token_ns=chunks[0] if chunks else None,
        last_token_ns=chunks[-1] if chunks else None,
        finished_ns=chunks[-1] + 1 if chunks else round(sent_ms * MS) + 50 * MS,
        chunk_ns=chunks,
        input_tokens=prompt,
        output_tokens=len(chunks),
        cached_tokens=cached,
        error=None if chunks else "http",
    )


def counter(edges_ms: list[float], joules: list[float], name: str = "gpu:0") -> EnergySeries:
    cumulative = np.rint(np.concatenate(([0.0], np.cumsum(joules))) * 1000).astype(np.int64)
    return EnergySeries(name, np.rint(np.array(edges_ms) * MS).astype(np.int64), cumulative)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[EnergySeries], list[RequestRecord]]:
    """A few requests at any instants, one or two counters with any energies."""
    records = []
    for index in range(draw(st.integers(0, 6))):
        sent = draw(st.integers(0, 2000))
        gaps = draw(st.lists(st.integers(0, 200), max_size=8))
        chunks = [sent + 1 + sum(gaps[: i + 1]) for i in range(len(gaps))]
        records.append(request(index, sent, [float(c) for c in chunks], draw(st.integers(1, 5000))))
    series = []
    for gpu in range(draw(st.integers(1, 2))):
        joules = draw(st.lists(st.floats(0, 70), min_size=2, max_size=40))
        series.append(counter([i * 100.0 for i in range(len(joules) + 1)], joules, f"gpu:{gpu}"))
    return series, records


@given(runs())
def test_every_millijoule_lands_in_exactly_one_account(run: tuple[list[EnergySeries], list[RequestRecord]]) -> None:
    series, records = run
    result = attribute_energy(series, records, 0, 4000 * MS)
    assert result.measured_mj == sum(one.clip(0, 4000 * MS).total_mj for one in series)
    assert result.measured_mj == result.idle_mj + result.attributed_mj + result.unattributed_mj
    assert sum(round(share.joules * 1000) for share in result.requests) == result.attributed_mj
    assert all((share.prefill_joules or 0) >= 0 and (share.decode_joules or 0) >= 0 for share in result.requests)
    assert result.idle_mj >= 0
    assert result.unattributed_mj >= 0


@given(runs(), st.floats(0.01, 100))
def test_windows_conserve_each_for_itself(run: tuple[list[EnergySeries], list[RequestRecord]], skew: float) -> None:
    """Whatever the model says a member owes, a window's joules stay in the window's accounts."""
    (series, *_), records = run
    work = engine_steps_of(records)
    owed = member_features(work) @ (np.array([3.0, 0.01, 0.0, 0.02, 0.001]) * skew)
    for i in range(len(series) - 1):
        window = EnergySeries("gpu:0", series.t_ns[i : i + 2], series.mj[i : i + 2])
        members, idle, lost = split_energy(window, work, owed, 100.0)
        assert members.sum() + idle + lost == pytest.approx(window.total_mj)
        assert min(members.min(initial=0), idle) >= 0
        assert lost >= -1e-6


@given(runs())
def test_a_request_that_did_nothing_owes_nothing(run: tuple[list[EnergySeries], list[RequestRecord]]) -> None:
    series, records = run
    for share, record in zip(attribute_energy(series, records, 0, 4000 * MS).requests, records, strict=True):
        if not record.chunk_ns:
            assert share.joules == 0


@given(runs(), st.randoms(use_true_random=False))
def test_names_and_order_do_not_matter(run: tuple[list[EnergySeries], list[RequestRecord]], random) -> None:  # type: ignore[no-untyped-def]
    series, records = run
    before = {share.index: share for share in attribute_energy(series, records, 0, 4000 * MS).requests}
    shuffled = list(records)
    random.shuffle(shuffled)
    for share in attribute_energy(series, shuffled, 0, 4000 * MS).requests:
        assert share.joules == pytest.approx(before[share.index].joules, abs=0.002)


@given(runs(), st.integers(1, 10**9))
def test_when_does_not_matter(run: tuple[list[EnergySeries], list[RequestRecord]], shift_ms: int) -> None:
    series, records = run
    later_records = [
        request(r.index, (r.sent_ns or 0) / MS + shift_ms, [t / MS + shift_ms for t in r.chunk_ns], r.input_tokens or 0)
        for r in records
    ]
    later_series = [EnergySeries(one.domain, one.t_ns + shift_ms * MS, one.mj) for one in series]
    before = attribute_energy(series, records, 0, 4000 * MS)
    after = attribute_energy(later_series, later_records, shift_ms * MS, (4000 + shift_ms) * MS)
    assert [s.joules for s in after.requests] == pytest.approx([s.joules for s in before.requests], abs=0.002)


@given(runs(), st.integers(2, 9))
def test_twice_the_energy_is_twice_the_joules(run: tuple[list[EnergySeries], list[RequestRecord]], times: int) -> None:
    series, records = run
    more = [EnergySeries(one.domain, one.t_ns, one.mj * times) for one in series]
    before, after = attribute_energy(series, records, 0, 4000 * MS), attribute_energy(more, records, 0, 4000 * MS)
    for share, larger in zip(before.requests, after.requests, strict=True):
        assert larger.joules == pytest.approx(share.joules * times, rel=0.01, abs=0.005 * times + 0.01)


@given(runs())
def test_gpus_add(run: tuple[list[EnergySeries], list[RequestRecord]]) -> None:
    """A group's joules are the sum of its GPUs' joules, request by request."""
    series, records = run
    together = attribute_energy(series, records, 0, 4000 * MS)
    alone = [attribute_energy([one], records, 0, 4000 * MS) for one in series]
    assert together.measured_mj == sum(one.measured_mj for one in alone)
    for i, share in enumerate(together.requests):
        assert share.joules == pytest.approx(sum(one.requests[i].joules for one in alone), abs=0.003)


def test_one_token_more_never_costs_less() -> None:
    """Monotone: in the same windows, a request with more prompt tokens owes no less."""
    joules = []
    for prompt in (10, 100, 1000, 5000):
        pair = [
            request(0, 0, [60.0 + 6 * k for k in range(30)], prompt),
            request(1, 0, [60.0 + 6 * k for k in range(30)], 100),
        ]
        work = engine_steps_of(pair)
        owed = member_features(work) @ np.array([2.0, 0.02, 1e-6, 0.01, 1e-5])
        members, _, _ = split_energy(counter([0, 100, 200, 300], [40.0, 40.0, 40.0]), work, owed, None)
        joules.append(float(members[work.request == 0].sum()))
    assert joules == sorted(joules)


def test_a_solo_request_takes_all_active_energy() -> None:
    """One second idle at 100 W, then one second alone: 0.1 s windows of 50 J, all its own."""
    edges = [i * 100.0 for i in range(21)]
    series = counter(edges, [10.0] * 10 + [50.0] * 10)
    only = request(0, 1000, [1000 + 20 * i for i in range(1, 51)])
    result = attribute_energy([series], [only], 0, 2000 * MS)
    assert result.requests[0].joules == pytest.approx(500)
    assert result.idle_mj == pytest.approx(100_000)


def test_identical_requests_owe_the_same() -> None:
    times = [float(30 + 20 * i) for i in range(40)]
    records = [request(i, 0, [t + 0.01 * i for t in times]) for i in range(5)]
    result = attribute_energy([counter([i * 100.0 for i in range(9)], [40.0] * 8)], records, 0, 800 * MS)
    assert max(s.joules for s in result.requests) - min(s.joules for s in result.requests) <= 0.002
    assert sum(s.joules for s in result.requests) == pytest.approx(320)


@given(
    st.integers(2, 6),
    st.floats(0.1, 5),
    st.lists(st.tuples(st.integers(1, 3000), st.booleans()), min_size=6, max_size=6),
)
def test_shares_are_the_shapley_value(size: int, step_j: float, members: list[tuple[int, bool]]) -> None:
    """c/|B| + a_i against the definition: the mean marginal cost over every order of arrival in one step."""
    records = []
    for i, (prompt, prefilling) in enumerate(members[:size]):
        chunks = [100.0] if prefilling else [50.0, 100.0]
        records.append(request(i, 0, chunks, prompt))
    work = engine_steps_of(records)
    coefficients = np.array([step_j, 0.02, 1e-6, 0.015, 2e-5])
    owed = member_features(work) @ coefficients
    last = work.step == work.count - 1
    own = {
        int(r): float(f[1:] @ coefficients[1:])
        for r, f in zip(work.request[last], member_features(work)[last], strict=True)
    }

    def cost(players: tuple[int, ...]) -> float:
        return step_j + sum(own[p] for p in players) if players else 0.0

    orders = list(permutations(own))
    for row in np.flatnonzero(last):
        player = int(work.request[row])
        marginals = [cost(o[: o.index(player) + 1]) - cost(o[: o.index(player)]) for o in orders]
        assert owed[row] == pytest.approx(np.mean(marginals))


@pytest.mark.parametrize("jitter_ms", [0.0, 0.2])
def test_steps_are_found_from_the_chunks(jitter_ms: float) -> None:
    """Three streams in lockstep every 6 ms, a fourth joins; each step has every stream that was in it."""
    streams = [request(i, 0, [10 + 6 * k + jitter_ms * i for k in range(20)]) for i in range(3)]
    joined = request(3, 50, [10 + 6 * k + jitter_ms * 3 for k in range(10, 20)])
    work = engine_steps_of([*streams, joined])
    assert work.count == 20
    assert np.bincount(work.step).tolist() == [3] * 10 + [4] * 10
    assert work.prefilling.sum() == 4


def test_a_late_reader_sees_several_steps_at_once() -> None:
    """The client slept for four steps: each stream's chunks come with one time stamp, and are still four steps."""
    streams = [
        request(i, 0, [10, 16, 40 + 0.03 * i, 40 + 0.03 * i, 40 + 0.03 * i, 40 + 0.03 * i, 46]) for i in range(3)
    ]
    assert np.bincount(engine_steps_of(streams).step).tolist() == [3] * 7


@pytest.mark.parametrize("slice_of", [128, 300])
def test_a_server_hands_on_the_outputs_of_a_step_in_slices(slice_of: int) -> None:
    """300 streams, 4 ms between the slices of a step."""
    work = engine_steps_of([request(i, 0, [10 + 40 * k + 4 * (i // slice_of) for k in range(12)]) for i in range(300)])
    assert np.bincount(work.step).tolist() == [300] * 12


def test_small_bursts_are_steps_of_their_own() -> None:
    assert (
        engine_steps_of([request(i, 0, [10 + 80 * k + 4 * (i // 20) for k in range(12)]) for i in range(300)]).count
        == 180
    )


@pytest.mark.parametrize("budget", [8192, 2048, 512])
def test_no_prompt_token_is_made_or_lost(budget: int) -> None:
    """400 prompts at once, each computed under a budget that the tokens of its step give away, or refute."""
    rng = np.random.default_rng(budget)
    prompts = rng.integers(50, 3000, 400)
    ends = np.ceil(np.cumsum(prompts) / budget)
    waves = [
        request(i, 0, [200 * e + 7 * k for k in range(30)], prompt=int(p))
        for i, (e, p) in enumerate(zip(ends, prompts, strict=True))
    ]
    work = engine_steps_of(waves)
    assert work.prefill.sum() == pytest.approx(prompts.sum())
    assert work.prefill.min() >= 0


def test_a_step_starts_when_the_one_before_ends_or_when_its_first_newcomer_came() -> None:
    work = engine_steps_of([request(0, 5, [30, 36]), request(1, 100, [120, 126])])
    assert (work.start_ns / MS).tolist() == [5, 30, 100, 120]
    assert (work.end_ns / MS).tolist() == [30, 36, 120, 126]


def test_cached_prompt_tokens_are_no_prefill_work() -> None:
    work = engine_steps_of([request(0, 0, [10, 16], prompt=1000, cached=960)])
    assert work.prefill.tolist() == [40, 0]
    assert work.context.tolist() == [980, 1000]


def test_several_tokens_in_a_chunk() -> None:
    """Speculative decoding: 4 chunks after the first for 12 tokens are 3 tokens each."""
    record = request(0, 0, [10, 16, 22, 28, 34])
    many = RequestRecord(**{f: getattr(record, f) for f in record.__struct_fields__} | {"output_tokens": 13})
    assert engine_steps_of([many]).decode.tolist() == [0, 3, 3, 3, 3]


def lawful(truth: list[float], every_ms: float, longest: int) -> tuple[EngineSteps, EnergySeries]:
    """Random requests, and exact windows of 100 ms under a law of five coefficients and 127 W of idle power."""
    rng = np.random.default_rng(0)
    records, at = [], 2000.0
    for index in range(200):
        at += rng.exponential(every_ms)
        first = at + rng.uniform(20, 60)
        chunks = [first + 6 * k for k in range(int(rng.integers(1, longest)))]
        records.append(request(index, at, chunks, int(rng.integers(10, 6000))))
    work = engine_steps_of(records)
    edges = np.arange(0, int(work.end_ns[-1]) + 200 * MS, 100 * MS)
    step, window, share = overlap(edges, work.start_ns, work.end_ns)
    cost = np.bincount(work.step, member_features(work) @ np.array(truth), minlength=work.count)
    busy_ns = np.bincount(window, share * (work.end_ns - work.start_ns)[step], minlength=len(edges) - 1)
    joules = np.bincount(window, share * cost[step], minlength=len(edges) - 1) + 127 * (100 * MS - busy_ns) / 1e9
    mj = np.concatenate(([0], np.cumsum(np.rint(joules * 1000)))).astype(np.int64)
    return work, EnergySeries("gpu:0", edges, mj)


def test_the_fit_finds_the_law_that_made_the_windows() -> None:
    truth = [2.5, 0.018, 1e-6, 0.015, 2e-5]
    work, series = lawful(truth, every_ms=120, longest=60)
    found = fit_coefficients(series, work)
    assert [getattr(found, column) for column in COLUMNS] == pytest.approx(truth, rel=0.02)
    assert found.idle_w == pytest.approx(127, rel=0.001)
    assert found.r_squared == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("late_ms", [-15, 0, 12, 21])
def test_a_polled_counters_phase_is_found_from_the_work(late_ms: int) -> None:
    """A counter that is seen late_ms late: shifted back, its windows follow from the work again."""
    work, exact = lawful([2.5, 0.018, 0.0, 0.015, 0.0], every_ms=300, longest=40)
    seen = EnergySeries("gpu:0", exact.t_ns + late_ms * MS, exact.mj, np.full(len(exact), 2 * MS))
    assert abs(int(align_phase(seen, work).t_ns[0]) - int(exact.t_ns[0])) <= 3 * MS
    assert align_phase(exact, work) is exact


def test_without_idle_time_the_idle_power_is_unknown() -> None:
    busy = request(0, 0, [float(10 + 10 * k) for k in range(100)])
    assert fit_coefficients(counter([0, 200, 400, 600, 800], [50.0] * 4), engine_steps_of([busy])).idle_w is None


def test_energy_beside_a_request_that_got_no_chunk_is_nobodys() -> None:
    failed = request(0, 100, [])
    series = counter([0, 100, 200, 300], [10, 10, 10])
    result = attribute_energy([series], [failed], 0, 300 * MS)
    assert (result.idle_mj, result.unattributed_mj, result.attributed_mj) == (20_000, 10_000, 0)


# -- chunked prefill, preemption, other clients ------------------------------------------------------------------------


def test_prompts_that_exceed_the_budget_are_spread_over_the_steps_they_took() -> None:
    """Pairs of prompts that come together; an engine that computes 8,192 tokens a step, in 6 ms and 36 us a token. The
    second prompt fills up the first one's step and ends in the next: only that budget explains the steps' lengths."""
    rng = np.random.default_rng(0)
    records, overhang = [], []
    for pair in range(30):
        at, first, second = pair * 1000.0, int(rng.integers(5000, 8000)), int(rng.integers(3500, 8000))
        rest = first + second - 8192
        one = at + 6 + 0.036 * 8192
        two = one + 6 + 0.036 * rest
        records.append(request(2 * pair, at, [one, two, two + 6], prompt=first))
        records.append(request(2 * pair + 1, at, [two, two + 6], prompt=second))
        overhang.append(rest)
    work = engine_steps_of(records)
    for pair, rest in enumerate(overhang):
        rows = work.prefilling & (work.request == 2 * pair + 1)
        order = np.argsort(work.step[rows])
        prompt = records[2 * pair + 1].input_tokens or 0
        assert work.prefill[rows][order].tolist() == [prompt - rest, rest]
        assert work.context[rows][order].tolist() == [(prompt - rest) / 2, prompt - rest / 2]
    assert work.prefill.sum() == sum(record.input_tokens or 0 for record in records)


def test_a_stream_left_out_of_many_steps_was_preempted_and_computes_its_context_again() -> None:
    steady = request(0, 0, [10 + 6 * k for k in range(30)], prompt=50)
    paused = request(1, 0, [10, 16, 22, *(22 + 6 * k for k in range(10, 14))], prompt=500)
    work = engine_steps_of([steady, paused])
    again = work.prefilling & (work.request == 1) & (work.step > 0)
    assert work.prefill[again].tolist() == [502]
    assert work.decode[again].tolist() == [0]
    says_none = [{"t_ns": 0.0, "preemptions": 3.0}, {"t_ns": 1e9, "preemptions": 3.0}]
    assert engine_steps_of([steady, paused], says_none).prefilling.sum() == 2


def engine(*rows: tuple[float, float, float, float]) -> list[dict[str, float]]:
    names = ("t_ns", "generation_tokens", "prompt_tokens", "iterations")
    return [dict(zip(names, (row[0] * MS, *row[1:]), strict=True)) for row in rows]


def test_other_clients_joules_are_nobodys() -> None:
    """One stream of ours, one of somebody else, in the same 100 steps: half of the energy is unattributed."""
    ours = request(0, 0, [10.0 * k for k in range(1, 101)], prompt=10)
    series = counter([i * 100.0 for i in range(11)], [40.0] * 10)
    counters = engine((-1, 0, 0, 0), (500, 100, 20, 50), (1001, 200, 20, 100))
    result = attribute_energy([series], [ours], 0, 1000 * MS, engine=counters)
    assert result.measured_mj == 400_000
    assert result.attributed_mj == pytest.approx(200_000, rel=0.05)
    assert result.unattributed_mj == pytest.approx(200_000, rel=0.05)
    alone = attribute_energy([series], [ours], 0, 1000 * MS, engine=engine((-1, 0, 0, 0), (1001, 100, 10, 100)))
    assert (alone.attributed_mj, alone.unattributed_mj) == (400_000, 0)


def test_the_engine_says_how_much_of_the_prompts_was_cached() -> None:
    record = request(0, 0, [10, 16], prompt=1000)
    unsaid = RequestRecord(**{f: getattr(record, f) for f in record.__struct_fields__} | {"cached_tokens": None})
    counters = engine((-1, 0, 0, 0), (100, 2, 1000, 2))
    counters = [sample | {"cached_tokens": cached} for sample, cached in zip(counters, (0.0, 800.0), strict=True)]
    assert engine_steps_of([unsaid], counters).prefill.tolist() == [200, 0]


# -- the other methods, and errors -------------------------------------------------------------------------------------


@given(runs(), st.sampled_from([method for method in METHODS if method != "whole-gpu"]))
def test_every_method_but_one_adds_up(run: tuple[list[EnergySeries], list[RequestRecord]], method: Method) -> None:
    series, records = run
    result = attribute_energy(series, records, 0, 4000 * MS, method=method)
    result.check()


def test_whole_gpu_counts_a_joule_once_for_everyone_in_flight() -> None:
    records = [request(i, 0, [500, 1000]) for i in range(4)]
    series = counter([i * 100.0 for i in range(12)], [30.0] * 11)
    result = attribute_energy([series], records, 0, 1000 * MS, method="whole-gpu")
    assert sum(share.joules for share in result.requests) == pytest.approx(4 * 300, rel=0.01)


def test_what_the_other_methods_say() -> None:
    """Two requests side by side for 100 J: 30 and 10 output tokens."""
    long = request(0, 0, [10.0 * k + 10 for k in range(30)])
    short = request(1, 0, [10.0 * k + 10 for k in range(10)])
    series = counter([0, 100, 200, 300, 400], [40.0, 30.0, 30.0, 0.0])
    said = {
        method: [s.joules for s in attribute_energy([series], [long, short], 0, 400 * MS, method=method).requests]
        for method in METHODS
    }
    assert said["output-tokens"] == [75, 25]
    assert said["per-request"] == [50, 50]
    assert said["residency"] == pytest.approx([80, 20], rel=0.01)


def test_standard_errors_grow_with_what_is_unknown() -> None:
    """Alone on an exact counter only the way to the client is uncertain; a coarser counter says so."""
    only = request(0, 1000, [1000 + 20 * i for i in range(1, 51)])
    edges = [i * 100.0 for i in range(21)]
    exact = counter(edges, [10.0] * 10 + [50.0] * 10)
    coarse = EnergySeries("gpu:0", exact.t_ns, exact.mj, np.full(21, 10 * MS))
    errors = [attribute_energy([one], [only], 0, 2000 * MS).requests[0].se_joules or 0 for one in (exact, coarse)]
    assert 0 < errors[0] < 1
    assert errors[1] > 5 * errors[0]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.integers(-3, 3))
def test_round_to_sum(values: list[float], off: int) -> None:
    total = max(0, round(sum(values)) + off)
    whole = round_to_sum(np.array(values), total)
    assert whole.sum() == total
    if abs(sum(values) - total) < 1:
        assert np.abs(whole - np.array(values)).max() < 2


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=10),
    st.lists(st.tuples(st.integers(-20, 300), st.integers(0, 80)), max_size=10),
)
def test_overlap_is_the_length_in_common(lengths: list[int], spans: list[tuple[int, int]]) -> None:
    edges = np.concatenate(([0], np.cumsum(lengths)))
    starts = np.array([start for start, _ in spans], dtype=np.int64)
    ends = starts + np.array([length for _, length in spans], dtype=np.int64)
    interval, _, share = overlap(edges, starts, ends)
    for i, (start, length) in enumerate(spans):
        if length:
            common = max(0, min(start + length, int(edges[-1])) - max(start, 0))
            assert share[interval == i].sum() * length == pytest.approx(common)
    assert ((share >= 0) & (share <= 1)).all()
