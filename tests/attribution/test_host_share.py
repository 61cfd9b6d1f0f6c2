"""The host's energy adds up to its counters, and is shared as stated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.attribution.host_share import SHARE_HOST, ShareHost, share_host_energy
from loadgen.energy.series import EnergySeries
from loadgen.record import RequestRecord
from loadgen.units import NS_PER_S


def record(index: int, sent_s: float | None, end_s: float | None, tokens: int | None = 10) -> RequestRecord:
    sent_ns, end_ns = (None if s is None else round(s * NS_PER_S) for s in (sent_s, end_s))
    return RequestRecord(
        index=index, workload="w", scheduled_ns=0, sent_ns=sent_ns, finished_ns=end_ns, input_tokens=tokens,
        output_tokens=tokens,
    )  # fmt: skip


def at_power(watts: float, end_s: int, domain: str = "cpu:package-0") -> EnergySeries:
    t_ns = np.arange(end_s + 1, dtype=np.int64) * NS_PER_S
    return EnergySeries(domain, t_ns, np.rint(t_ns / NS_PER_S * watts * 1000).astype(np.int64))


@pytest.mark.parametrize(
    ("share_by", "first_j", "second_j"),
    [
        ("time", 2 * 100 + 2 * 50, 2 * 50 + 2 * 100),  # alone for 2 s, together for 2 s, alone for 2 s
        ("tokens", 600 * 10 / 40, 600 * 30 / 40),
    ],
)
def test_energy_in_flight_is_shared_by_time_or_by_tokens_and_the_rest_is_idle(
    share_by: ShareHost, first_j: float, second_j: float
) -> None:
    records = [record(0, 2, 6, tokens=10), record(1, 4, 8, tokens=30)]
    accounts = share_host_energy([at_power(60, 10), at_power(40, 10, "dram:0")], records, 0, 10**10, share_by=share_by)
    assert accounts.requests_mj.tolist() == pytest.approx([first_j * 1000, second_j * 1000])
    assert (accounts.measured_mj, accounts.idle_mj, accounts.unattributed_mj) == (1_000_000, 400_000, 0)


@pytest.mark.parametrize("share_by", SHARE_HOST)
def test_the_part_of_other_clients_is_unattributed(share_by: ShareHost) -> None:
    accounts = share_host_energy([at_power(100, 10)], [record(0, 0, 5)], 0, 10**10, share_by=share_by, own_share=0.8)
    assert (int(accounts.requests_mj.sum()), accounts.idle_mj, accounts.unattributed_mj) == (400_000, 500_000, 100_000)


def test_without_counts_of_tokens_nothing_is_shared_by_tokens() -> None:
    accounts = share_host_energy([at_power(100, 10)], [record(0, 0, 5, None)], 0, 10**10, share_by="tokens")
    assert (int(accounts.requests_mj.sum()), accounts.unattributed_mj) == (0, 500_000)


def test_a_request_that_was_not_sent_has_no_share() -> None:
    records = [record(0, None, None), record(1, 1, 2), record(2, None, 3)]
    assert share_host_energy([at_power(100, 4)], records, 0, 4 * 10**9, share_by="time").requests_mj.tolist() == [
        0, 100_000, 0,
    ]  # fmt: skip
    assert share_host_energy([at_power(100, 4)], records[:1], 0, 4 * 10**9, share_by="time").idle_mj == 400_000
    assert share_host_energy([at_power(100, 4)], [], 0, 4 * 10**9, share_by="tokens").idle_mj == 400_000


spans = st.tuples(st.floats(0, 30), st.floats(0, 20), st.integers(0, 5000))


@given(
    flights=st.lists(spans, max_size=40),
    steps_mj=st.lists(st.lists(st.integers(0, 10**6), min_size=2, max_size=30), min_size=1, max_size=3),
    share_by=st.sampled_from(SHARE_HOST),
    own_share=st.floats(0, 1),
)
def test_the_accounts_add_up_to_the_counters_to_the_millijoule(
    flights: list[tuple[float, float, int]], steps_mj: list[list[int]], share_by: ShareHost, own_share: float
) -> None:
    records = [record(i, sent_s, sent_s + length_s, tokens) for i, (sent_s, length_s, tokens) in enumerate(flights)]
    series = [
        EnergySeries(f"cpu:package-{i}", np.arange(len(steps), dtype=np.int64) * NS_PER_S, np.cumsum(steps))
        for i, steps in enumerate(steps_mj)
    ]
    accounts = share_host_energy(series, records, 0, 60 * 10**9, share_by=share_by, own_share=own_share)
    assert accounts.measured_mj == sum(sum(steps[1:]) for steps in steps_mj)
    parts = [accounts.idle_mj, accounts.unattributed_mj, *accounts.requests_mj.tolist()]
    assert sum(parts) == accounts.measured_mj
    assert min(parts) >= 0
