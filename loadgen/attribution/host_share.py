"""The host's energy over the requests: a stated share, and no measurement.

A CPU package serves the engine's scheduler, the tokenizer and everything else on the machine, and its counter shows
none of them apart. No law of work is fitted to it. What it used while no request was in flight is idle; the rest is
shared among the requests by the time in flight or by tokens, and adds up to the counter to the millijoule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from loadgen.attribution.shapley import round_to_sum

if TYPE_CHECKING:
    from loadgen.energy.series import EnergySeries
    from loadgen.record import RequestRecord
    from loadgen.stats.arrays import Ints

ShareHost: TypeAlias = Literal["time", "tokens"]
"""time: at each instant, equal parts for the requests in flight. tokens: in proportion to prompt and output tokens."""
SHARE_HOST: tuple[ShareHost, ...] = get_args(ShareHost)


class HostAccounts(NamedTuple):
    """measured_mj == idle_mj + requests_mj.sum() + unattributed_mj, exactly. requests_mj: int64[n], by row."""

    measured_mj: int
    idle_mj: int
    unattributed_mj: int
    requests_mj: Ints


def sum_of_hosts(hosts: Sequence[HostAccounts]) -> HostAccounts:
    """Return the accounts of several hosts together."""
    measured, idle, unattributed = (sum(mj) for mj in zip(*(host[:3] for host in hosts), strict=True))
    return HostAccounts(measured, idle, unattributed, np.sum([host.requests_mj for host in hosts], axis=0))


def share_host_energy(
    series: Sequence[EnergySeries],
    records: Sequence[RequestRecord],
    start_ns: int,
    end_ns: int,
    *,
    share_by: ShareHost,
    own_share: float = 1.0,
) -> HostAccounts:
    """Share the energy of these domains between the updates around [start, end] among the requests.

    With E(t) the cumulative energy, between two updates by interpolation, and n(t) the requests in flight, request i
    gets the integral of dE / n over its time in flight; or by tokens its part of all energy of instants with n > 0.

    own_share: this client's share of the engine's tokens. The same share of the energy in flight is its requests', and
    the rest is unattributed.
    """
    clipped = [domain.clip(start_ns, end_ns) for domain in series]
    measured_mj = sum(domain.total_mj for domain in clipped)
    starts_ns = np.array([record.sent_ns or 0 for record in records], dtype=np.int64)
    ends_ns = np.array([record.finished_ns or 0 for record in records], dtype=np.int64)
    sent = np.array([record.sent_ns is not None for record in records], dtype=np.bool_) & (ends_ns > starts_ns)
    instants, edges = np.unique(np.concatenate([starts_ns[sent], ends_ns[sent]]), return_inverse=True)
    begins, ends = np.split(edges, 2)
    changes = np.bincount(begins, minlength=len(instants)) - np.bincount(ends, minlength=len(instants))
    in_flight = np.cumsum(changes)[:-1]
    flowed_mj = np.zeros(len(in_flight))
    for domain in clipped:
        flowed_mj += np.diff(np.interp(instants, domain.t_ns, domain.mj))
    busy = in_flight > 0
    busy_mj = float(flowed_mj[busy].sum())
    shares = np.zeros(len(records))
    if share_by == "time":
        each = np.divide(flowed_mj, in_flight, out=np.zeros(len(flowed_mj)), where=busy)
        until = np.concatenate(([0.0], np.cumsum(each)))
        shares[sent] = until[ends] - until[begins]
    else:
        tokens = np.array([(record.input_tokens or 0) + (record.output_tokens or 0) for record in records]) * sent
        shares = busy_mj * tokens / max(tokens.sum(), 1)
    shares *= own_share
    exact = np.concatenate(([measured_mj - busy_mj, busy_mj - shares.sum()], shares))
    rounded_mj = round_to_sum(np.maximum(exact, 0.0), measured_mj)
    return HostAccounts(measured_mj, int(rounded_mj[0]), int(rounded_mj[1]), rounded_mj[2:])
