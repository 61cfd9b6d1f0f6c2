"""Accounts per model and workload: what a closed request adds to each total."""

import pytest
from msgspec.structs import replace as changed

from loadgen.errors import LoadgenError
from loadgen.sidecar.accounts import (
    DURATION_BOUNDS_S,
    ENERGY_BOUNDS_J,
    MAX_LABELS,
    MAX_ROWS,
    TTFT_BOUNDS_S,
    Accounts,
    OpenRequest,
    parse_accounts,
)
from loadgen.telemetry.histogram import Exemplar
from loadgen.telemetry.otlp_parse import RequestSpan
from loadgen.units import NS_PER_S

REQUEST = RequestSpan(
    key="a", request_id="run-1", client=False, start_ns=10 * NS_PER_S, prefill_ns=10 * NS_PER_S,
    first_token_ns=10 * NS_PER_S + NS_PER_S // 5, end_ns=13 * NS_PER_S, input_tokens=100, output_tokens=50,
    cached_tokens=None, model="m", workload="chat", ok=True,
)  # fmt: skip


def in_bucket(bounds: tuple[float, ...], bound: float) -> list[int]:
    counts = [0] * (len(bounds) + 1)
    counts[bounds.index(bound)] = 1
    return counts


def test_the_buckets_that_dashboards_query_stay_where_they_are() -> None:
    assert (
        pytest.approx((0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5), rel=1e-12)
        == ENERGY_BOUNDS_J
    )
    assert TTFT_BOUNDS_S == (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60)
    assert DURATION_BOUNDS_S == (0.1, 0.25, 0.5, 1, 2, 3.5, 5, 7.5, 10, 15, 30, 60, 120, 300, 600)


def test_a_closed_request_adds_its_energy_tokens_and_times() -> None:
    accounts, entry = Accounts(), OpenRequest(REQUEST)
    accounts.charge(entry, 300, 1100)
    accounts.charge(entry, 100, 500)
    account = accounts.of(REQUEST)
    assert (account.prefill_mj, account.decode_mj, account.energy_mj, account.completed) == (400, 1600, 0, 0)
    account.close(entry)
    assert (account.energy_mj, account.energy.sum) == (2000, 2.0)
    assert account.energy.counts == in_bucket(ENERGY_BOUNDS_J, 2.0)
    assert account.ttft.counts == in_bucket(TTFT_BOUNDS_S, 0.2)
    assert account.duration.counts == in_bucket(DURATION_BOUNDS_S, 3.5)
    assert (account.completed, account.failed, account.input_tokens, account.output_tokens) == (1, 0, 100, 50)
    assert account.ttft.exemplars[TTFT_BOUNDS_S.index(0.2)] == Exemplar("run-1", 0.2)


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "totals", "without"),
    [(None, 50, (0, 50), (1, 0)), (100, None, (100, 0), (0, 1)), (0, 0, (0, 0), (0, 0)), (None, None, (0, 0), (1, 1))],
)
def test_requests_whose_tokens_no_span_tells_are_counted_apart(
    input_tokens: int | None, output_tokens: int | None, totals: tuple[int, int], without: tuple[int, int]
) -> None:
    account = Accounts().of(REQUEST)
    account.close(OpenRequest(changed(REQUEST, input_tokens=input_tokens, output_tokens=output_tokens)))
    assert (account.input_tokens, account.output_tokens) == totals
    assert (account.without_input_tokens, account.without_output_tokens) == without


def test_a_failed_request_costs_energy_and_has_no_times() -> None:
    accounts, entry = Accounts(), OpenRequest(changed(REQUEST, ok=False, output_tokens=None))
    accounts.charge(entry, 5, 0)
    account = accounts.of(REQUEST)
    account.close(entry)
    assert (account.completed, account.failed, account.input_tokens, account.output_tokens) == (0, 1, 100, 0)
    assert sum(account.energy.counts) == 1
    assert sum(account.ttft.counts) == sum(account.duration.counts) == 0


def test_a_request_that_no_commit_included_has_unknown_energy_not_zero() -> None:
    accounts = Accounts()
    accounts.of(REQUEST).close(OpenRequest(changed(REQUEST, first_token_ns=None)))
    account = accounts.of(REQUEST)
    assert (account.completed, sum(account.energy.counts)) == (1, 0)
    assert (sum(account.ttft.counts), sum(account.duration.counts)) == (0, 1)
    accounts.charge(entry := OpenRequest(REQUEST), 0, 0)
    account.close(entry)
    assert account.energy.counts == in_bucket(ENERGY_BOUNDS_J, 0.1), "0 J of a request that was included is known"
    accounts.charge(entry := OpenRequest(REQUEST, whole=False), 7, 0)
    account.close(entry)
    assert (account.completed, sum(account.energy.counts), account.energy_mj) == (3, 1, 0), "a part is no energy"


@pytest.mark.parametrize(
    ("model", "workload", "default", "key"),
    [
        ("m", "chat", "d", ("m", "chat")),
        (None, "chat", "d", ("d", "chat")),
        (None, "chat", None, ("unknown", "chat")),
        ("m", None, None, ("m", "unlabelled")),
    ],
)
def test_a_span_without_labels_has_an_account_too(
    model: str | None, workload: str | None, default: str | None, key: tuple[str, str]
) -> None:
    accounts = Accounts(default)
    accounts.of(changed(REQUEST, model=model, workload=workload))
    assert list(accounts.freeze()) == [key]


def test_pairs_beyond_the_limit_share_one_account_and_earlier_ones_keep_theirs() -> None:
    accounts = Accounts()
    requests = [changed(REQUEST, workload=f"w{k}") for k in range(MAX_LABELS + 2)]
    for request in requests:
        accounts.charge(OpenRequest(request), 1, 2)
    accounts.charge(OpenRequest(requests[0]), 1, 2)
    frozen = accounts.freeze()
    assert len(frozen) == MAX_LABELS + 1
    assert (frozen["other", "other"].prefill_mj, frozen["other", "other"].decode_mj) == (2, 4)
    assert frozen["m", "w0"].prefill_mj == 2


def test_a_stated_pair_has_its_series_from_the_beginning_whoever_names_others_first() -> None:
    accounts = Accounts("m", labels=["tenant"], stated=[("m", "mine"), ("m", "unlabelled")])
    assert list(accounts.freeze()) == [("m", "mine"), ("m", "unlabelled")]
    flood = [changed(REQUEST, workload=f"w{k}", labels={"tenant": str(k % 40)}) for k in range(3 * MAX_ROWS)]
    own = [changed(REQUEST, workload=workload, labels={"tenant": "acme"}) for workload in ("mine", None)]
    for request in (*flood, *own):
        accounts.charge(OpenRequest(request), 1, 2)
    frozen = accounts.freeze()
    assert len(frozen) == 2 + MAX_LABELS + 1
    assert [frozen["m", workload].by_labels["acme",].prefill_mj for workload in ("mine", "unlabelled")] == [1, 1]
    assert sum(account.prefill_mj for account in frozen.values()) == len(flood) + 2, "no joule is lost"


def test_the_labels_of_stated_pairs_have_rows_of_their_own() -> None:
    accounts = Accounts(labels=["tenant", "user"], label_values=2 * MAX_ROWS, stated=[("m", "mine")])
    for k in range(MAX_ROWS + 1):
        accounts.open(changed(REQUEST, labels={"tenant": str(k), "user": "u"}))
    accounts.open(changed(REQUEST, workload="mine", labels={"tenant": "acme", "user": "u"}))
    accounts.open(changed(REQUEST, labels={"tenant": "acme", "user": "u"}))
    frozen = accounts.freeze()
    assert list(frozen["m", "mine"].by_labels) == [("acme", "u")]
    assert len(frozen["m", "chat"].by_labels) == MAX_ROWS + 1 and ("other", "other") in frozen["m", "chat"].by_labels


@pytest.mark.parametrize(
    ("texts", "keys"),
    [
        (["m"], [("m", "unlabelled")]),
        (["org/m:8b=chat, code", "n"], [("org/m:8b", "chat"), ("org/m:8b", "code"), ("n", "unlabelled")]),
        (["a=b=chat", "a=b=chat"], [("a=b", "chat")]),
        ([], []),
    ],
)
def test_accounts_are_stated_by_model_and_workloads(texts: list[str], keys: list[tuple[str, str]]) -> None:
    assert list(parse_accounts(texts)) == keys


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([""], "expected MODEL=WORKLOAD"), (["=chat"], "expected MODEL"), (["m="], "expected MODEL"),
        (["m=a,,b"], "expected MODEL"), (["m\x1b[2J"], "expected MODEL"), (["m" * 129], "at most 128 characters"),
        (["m=" + ",".join(map(str, range(201)))], "201 accounts, of which at most 200"),
    ],
)  # fmt: skip
def test_an_account_that_no_span_can_have_is_refused_in_one_line(texts: list[str], message: str) -> None:
    with pytest.raises(LoadgenError, match=message) as refused:
        parse_accounts(texts)
    assert str(refused.value).isprintable()


def test_a_frozen_account_does_not_change() -> None:
    accounts, entry = Accounts(), OpenRequest(REQUEST)
    accounts.charge(entry, 1, 2)
    frozen = accounts.freeze()["m", "chat"]
    accounts.of(REQUEST).close(entry)
    assert sum(frozen.energy.counts) == sum(frozen.ttft.counts) == sum(frozen.duration.counts) == 0
    assert frozen.energy.exemplars == [None] * (len(ENERGY_BOUNDS_J) + 1)
    assert (frozen.completed, accounts.freeze()["m", "chat"].completed) == (0, 1)


def test_a_request_is_its_own_only_part_until_others_join() -> None:
    assert OpenRequest(REQUEST).parts == (REQUEST,)
    other = changed(REQUEST, key="b")
    assert OpenRequest(REQUEST, parts=(REQUEST, other)).parts == (REQUEST, other)


def test_a_closed_request_counts_in_its_session_too() -> None:
    accounts, entry = Accounts(), OpenRequest(changed(REQUEST, session="a"))
    accounts.charge(entry, 300, 1700)
    accounts.close(entry)
    accounts.end_sessions(REQUEST.end_ns + 3_600 * NS_PER_S)
    account = accounts.of(REQUEST)
    assert (account.energy_mj, account.completed_sessions_mj) == (2000, 2000)
