"""The laws of attribution. Most are properties: they hold for any run, not for the ones we thought of."""

from dataclasses import replace
from itertools import permutations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.cost_model import Coefficients, member_features
from loadgen.attribution.engine_steps import ForeignLoad
from loadgen.attribution.shapley import (
    Method,
    RequestEnergy,
    RunAttribution,
    attribute_energy,
    beyond_law,
    round_to_sum,
    split_energy,
)
from loadgen.energy.series import EnergySeries
from loadgen.record import RequestRecord
from loadgen.units import NS_PER_S
from support.attribution_runs import MS, counter, request, runs, two_steps, with_tail

NO_PRICES = Coefficients(step_j=0, prefill_token_j=0, prefill_context_j=0, decode_token_j=0, decode_context_j=0,
                         idle_w=None, r_squared=None)  # fmt: skip


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
    instants = ("sent_ns", "first_token_ns", "last_token_ns", "finished_ns")
    later_records = [
        msgspec.structs.replace(
            r,
            chunk_ns=[t_ns + shift_ms * MS for t_ns in r.chunk_ns],
            **{name: getattr(r, name) + shift_ms * MS for name in instants if getattr(r, name) is not None},
        )
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


def test_tokens_without_a_chunk_take_the_energy_of_their_time() -> None:
    """A second idle at 100 W, a second at 500 W of which chunks came in the first half only, a second idle."""
    series = counter([i * 100.0 for i in range(31)], [10.0] * 10 + [50.0] * 10 + [10.0] * 10)
    half = with_tail(request(0, 1000, [1000 + 20 * i for i in range(1, 26)]), tokens=25, tail_ms=500)
    result = attribute_energy([series], [half], 0, 3000 * MS)
    assert result.requests[0].joules == pytest.approx(500)
    assert result.idle_mj == pytest.approx(200_000)
    assert result.coefficients[0].idle_w == pytest.approx(100)


def test_no_energy_of_a_request_in_flight_is_idle_beyond_the_idle_power_beside_it() -> None:
    """The body stays open for 0.5 s at 300 W after the last token: unattributed. In a window that it shares with idle
    time, the idle power explains the idle part."""
    series = counter([i * 100.0 for i in range(31)], [10.0] * 10 + [50.0] * 10 + [30.0] * 5 + [10.0] * 5)
    still_open = with_tail(request(0, 1000, [1000 + 20 * i for i in range(1, 51)]), tokens=0, tail_ms=0, open_ms=450)
    result = attribute_energy([series], [still_open], 0, 3000 * MS)
    assert result.requests[0].joules == pytest.approx(500)
    assert result.idle_mj == pytest.approx(150_000 + 5_000, rel=1e-3)
    assert result.unattributed_mj == pytest.approx(120_000 + 25_000, rel=1e-3)


def test_in_a_window_with_a_step_the_time_in_flight_beside_it_is_unattributed() -> None:
    series = counter([0, 100], [30.0])
    steps = replace(two_steps(), start_ns=np.array([0, 10]) * MS, end_ns=np.array([10, 20]) * MS)
    shares, watts = np.array([4.0, 4.0, 4.0]), 100.0  # 12 J of members, 8 J of 80 ms that no step covers
    members, idle, lost = split_energy(series, steps, shares, watts)
    assert (members.sum(), idle, lost) == pytest.approx((18_000, 12_000, 0), abs=1e-6)
    steps = replace(steps, unseen_ns=np.array([[20, 40]]) * MS)
    assert split_energy(series, steps, shares, watts)[1:] == pytest.approx((9_000, 3_000))


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


def test_energy_beside_a_request_that_got_no_chunk_is_unattributed() -> None:
    failed = request(0, 100, [])
    series = counter([0, 100, 200, 300], [10, 10, 10])
    result = attribute_energy([series], [failed], 0, 300 * MS)
    assert (result.idle_mj, result.unattributed_mj, result.attributed_mj) == (20_000, 10_000, 0)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.integers(-3, 3))
def test_round_to_sum(values: list[float], off: int) -> None:
    total = max(0, round(sum(values)) + off)
    whole = round_to_sum(np.array(values), total)
    assert whole.sum() == total
    if abs(sum(values) - total) < 1:
        assert np.abs(whole - np.array(values)).max() < 2


@pytest.mark.parametrize(
    ("values", "total", "whole"),
    [
        ([1.2, 2.9, 3.5], 7, [1, 3, 3]),
        ([1.2, 2.9, 3.5], 8, [1, 3, 4]),
        ([1.2, 2.9, 3.5], 6, [1, 2, 3]),
        ([1.2, 2.9, 3.5], 5, [0, 2, 3]),  # the smallest remainders are rounded down
        ([1.2, 2.9, 3.5], 4, [0, 2, 2]),
        ([1.2, 2.9], 7, [3, 4]),
        ([1.0, 2.0], 3, [1, 2]),
    ],
)
def test_the_largest_remainders_are_rounded_up_first(values: list[float], total: int, whole: list[int]) -> None:
    assert round_to_sum(np.array(values), total).tolist() == whole


def test_where_nothing_can_be_fitted_a_step_costs_the_mean_power_over_its_time() -> None:
    """A second idle at 100 W, then one of 300 J in which a step ran for half of it: at the mean of 200 W that step is
    100 J beside 50 J of idle time."""
    only = request(0, 1000, [1500])
    result = attribute_energy([counter([0, 1000, 2000], [100.0, 300.0])], [only], 0, 2000 * MS)
    assert (result.attributed_mj, result.idle_mj, result.unattributed_mj) == (200_000, 200_000, 0)
    # The mean power of 200 W, over the counter's period of 1 s, times sqrt(2/3) of the 0.5 ms that chunks are late by.
    assert result.requests[0].se_joules == pytest.approx(200 * 0.0005 * (2 / 3) ** 0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("method", "joules", "idle_mj"),
    [
        ("residency", [76.667, 6.667, 16.667], 10_000),
        ("per-request", [36.667, 36.667, 36.666], 0),
        ("output-tokens", [50.769, 42.308, 16.923], 0),
        ("whole-gpu", [100.0, 20.0, 40.0], 0),  # more than there is
    ],
)
def test_what_another_method_leaves_over_is_idle(method: Method, joules: list[float], idle_mj: int) -> None:
    """Windows of 100 ms: 20 J with three requests in flight, 20 J with two of them, 60 J with one, 10 J with none."""
    ends = ([100.0, 200.0, 300.0], [100.0], [100.0, 200.0])
    records = [
        msgspec.structs.replace(request(i, 0, ms), finished_ns=round(ms[-1] * MS), output_tokens=tokens)
        for i, (ms, tokens) in enumerate(zip(ends, (6, 5, 2), strict=True))
    ]
    result = attribute_energy(
        [counter([0, 100, 200, 300, 400], [20.0, 20.0, 60.0, 10.0])], records, 0, 400 * MS, method=method
    )
    assert [share.joules for share in result.requests] == pytest.approx(joules, abs=0.0011)
    assert (result.measured_mj, result.idle_mj, result.unattributed_mj) == (110_000, idle_mj, 0)
    assert result.attributed_mj == (160_000 if method == "whole-gpu" else 110_000 - idle_mj)


@pytest.mark.parametrize(("idle_w", "whole_w"), [([], None), ([5.0], 5.0), ([5.0, 7.0], 12.0), ([5.0, None], None)])
def test_idle_power_that_is_unknown_of_one_domain_is_unknown_of_all(
    idle_w: list[float | None], whole_w: float | None
) -> None:
    fits = [msgspec.structs.replace(NO_PRICES, idle_w=watts) for watts in idle_w]
    assert RunAttribution(
        method="shapley", start_ns=0, end_ns=1, measured_mj=0, idle_mj=0, attributed_mj=0, unattributed_mj=0,
        requests=[], coefficients=fits,
    ).idle_w == whole_w  # fmt: skip


@pytest.mark.parametrize(("idle_mj", "attributed_mj", "share"), [(401, 600, 0.6), (399, 600, 0.6), (400, 600, 0.601)])
def test_a_millijoule_too_many_or_too_few_is_an_error(idle_mj: int, attributed_mj: int, share: float) -> None:
    requests = [RequestEnergy(index=0, prefill_joules=None, decode_joules=None, joules=share)]
    result = RunAttribution(
        method="shapley",
        start_ns=0,
        end_ns=1,
        measured_mj=1000,
        idle_mj=idle_mj,
        attributed_mj=attributed_mj,
        unattributed_mj=0,
        requests=requests,
    )
    in_accounts = f"{idle_mj + attributed_mj} in accounts, {share * 1000:.0f} of requests"
    with pytest.raises(AssertionError, match=f"^energy is not conserved: 1000 mJ, {in_accounts}$"):
        result.check()


def test_idle_time_in_a_window_takes_the_idle_power_s_share() -> None:
    """One window of 4 s and 100 J: shares of 60 J, and 2 s without a step at 10 W."""
    series = EnergySeries("gpu:0", np.array([0, 4 * NS_PER_S]), np.array([0, 100_000]))
    members, idle, unattributed = split_energy(series, two_steps(), np.array([40.0, 6.0, 14.0]), 10.0)
    assert members.tolist() == pytest.approx([50_000, 7_500, 17_500])
    assert (idle, unattributed) == (pytest.approx(25_000), pytest.approx(0, abs=1e-6))
    members, idle, unattributed = split_energy(series, two_steps(), np.array([40.0, 6.0, 14.0]), 10.0, np.array([20.0]))
    assert members.tolist() == pytest.approx([40_000, 6_000, 14_000])
    assert (idle, unattributed) == (pytest.approx(20_000), pytest.approx(20_000))


def test_no_time_is_idle_where_other_clients_steps_are() -> None:
    """The same window, all of it covered by other clients: no idle power in it, and 20 J of 80 are theirs."""
    one = np.ones(1)
    foreign = ForeignLoad(np.array([0, 4 * NS_PER_S]), one, one, 0 * one, 0 * one, context=0.0)
    series = EnergySeries("gpu:0", np.array([0, 4 * NS_PER_S]), np.array([0, 100_000]))
    shares = np.array([40.0, 6.0, 14.0])
    members, idle, unattributed = split_energy(series, two_steps(foreign), shares, 10.0, np.array([20.0]))
    assert members.tolist() == pytest.approx([50_000, 7_500, 17_500])
    assert (idle, unattributed) == (0, pytest.approx(25_000))


@pytest.mark.parametrize(
    ("joules", "beyond", "ours", "unattributed"),
    [
        (100.0, 20.0, 46.0, 34.0),  # by the law 14 J are another's and 20 J idle; the rest is the other's too
        (70.0, -10.0, 46.0, 4.0),  # the other used less than was guessed
        (33.0, -14.0, 23.0, 0.0),  # less than what ours and idle time cost by the law: both are reduced
    ],
)
def test_where_the_work_of_others_is_guessed_the_law_is_trusted_for_ours(
    joules: float, beyond: float, ours: float, unattributed: float
) -> None:
    """One window of 4 s, 2 of them without a step at 10 W."""
    series = counter([0, 4000], [joules])
    steps = replace(two_steps(), guessed_ns=np.array([[0, NS_PER_S]]), request=np.array([0, 0, 1], dtype=np.int32))
    shares = np.array([40.0, 6.0, 14.0])
    foreign_j = beyond_law(series, steps, shares, 10.0, own=1)
    assert foreign_j.tolist() == pytest.approx([beyond])
    member_mj, idle_mj, unattributed_mj = split_energy(series, steps, shares, 10.0, foreign_j)
    assert member_mj[:2].sum() == pytest.approx(1000 * ours)
    assert unattributed_mj + member_mj[2] == pytest.approx(1000 * unattributed, abs=1e-6)
    assert member_mj.sum() + idle_mj + unattributed_mj == pytest.approx(1000 * joules)


def test_where_nothing_is_guessed_others_have_their_cost_shares() -> None:
    assert beyond_law(counter([0, 4000], [100]), two_steps(), np.array([40.0, 6.0, 14.0]), 10.0, own=1).tolist() == [0]
