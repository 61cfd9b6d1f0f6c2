"""Labels of the user's choosing in the accounts: bounded, and equal in sum to the accounts without them."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from loadgen.sidecar import accounts as books
from loadgen.sidecar import label_sets
from loadgen.sidecar.accounts import Accounts, OpenRequest, Totals
from loadgen.sidecar.label_sets import MAX_SPANS, LabelSets
from loadgen.telemetry.otlp_parse import SpanLabels
from loadgen.units import NS_PER_S
from sidecar.test_accounts import REQUEST


def test_the_first_values_are_shown_and_stay_so() -> None:
    sets = LabelSets(["tenant"], max_values=2)
    shown = [sets.bounded({"tenant": value})["tenant"] for value in ("a", "other", "b", "c", "a", "d", "b")]
    assert shown == ["a", "other", "b", "other", "a", "other", "b"]


def test_values_that_are_stated_are_shown_however_many_others_come_first() -> None:
    sets = LabelSets(["tenant", "team"], max_values=2, shown={"tenant": frozenset(("a", "b", "c"))})
    made_up = [sets.bounded({"tenant": f"made-up-{k}"})["tenant"] for k in range(100)]
    assert set(made_up) == {"other"}
    assert [sets.bounded({"tenant": value})["tenant"] for value in "abc"] == ["a", "b", "c"]
    assert [sets.bounded({"team": value})["team"] for value in "xyz"] == ["x", "y", "other"]


def test_labels_that_were_not_chosen_are_left_out() -> None:
    sets = LabelSets(["tenant", "user"], 50)
    assert sets.bounded({"tenant": "a", "evil": "b"}) == {"tenant": "a"}
    assert sets.row({"tenant": "a"}) == ("a", "")


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.dictionaries(st.sampled_from(["tenant", "user"]), st.sampled_from("xyz")),
            st.integers(0, 1000), st.booleans(),
        ),
        max_size=40,
    )
)  # fmt: skip
def test_totals_by_labels_sum_to_those_of_their_account(
    requests: list[tuple[str, dict[str, str], int, bool]],
) -> None:
    accounts = Accounts(labels=["tenant", "user"])
    for workload, labels, energy_mj, ok in requests:
        entry = OpenRequest(changed(REQUEST, workload=workload, labels=labels, ok=ok))
        accounts.open(entry.request)
        accounts.charge(entry, energy_mj, 2 * energy_mj)
        accounts.close(entry)
    for account in accounts.freeze().values():
        for total in (field.name for field in fields(Totals)):
            assert sum(getattr(row, total) for row in account.by_labels.values()) == getattr(account, total)


def around(tenant: str, start_s: float = 9, end_s: float = 14, trace_id: bytes = b"t" * 16) -> SpanLabels:
    """The labels of an HTTP server's span; REQUEST runs from 10 s to 13 s."""
    return SpanLabels(trace_id, round(start_s * NS_PER_S), round(end_s * NS_PER_S), {"tenant": tenant})


@pytest.mark.parametrize(
    ("own", "spans", "tenant"),
    [
        ({}, [around("a")], "a"),
        ({}, [around("a"), around("a", 10, 13)], "a"),
        ({}, [around("a", 1, 5), around("b"), around("c", 14, 20)], "b"),
        ({"tenant": "own"}, [around("a")], "other"),
        ({"tenant": "own"}, [around("own"), around("a", 1, 5)], "own"),
        ({}, [around("a"), around("b")], "other"),
        ({}, [around("a", 1, 5)], ""),
        ({}, [around("a", trace_id=b"u" * 16)], ""),
        ({}, [around("a")] * (MAX_SPANS + 1), ""),
        ({}, [], ""),
    ],
)
def test_a_request_has_the_labels_of_the_spans_of_its_trace_around_it(
    own: dict[str, str], spans: list[SpanLabels], tenant: str
) -> None:
    for early in (True, False):
        accounts = Accounts(labels=["tenant"])
        entry = OpenRequest(changed(REQUEST, trace_id=b"t" * 16, labels=own))
        for span in spans if early else ():
            accounts.labels.add(span)
        accounts.open(entry.request)
        for span in () if early else spans:
            accounts.labels.add(span)
        accounts.charge(entry, 1, 2)
        accounts.labels.add(around("late"))
        accounts.charge(entry, 3, 4)
        accounts.close(entry)
        (account,) = accounts.freeze().values()
        assert account.by_labels[tenant,].prefill_mj == 4
        assert sum(totals.completed for totals in account.by_labels.values()) == 1
        assert entry.request.labels == ({"tenant": tenant} if tenant else {})


def test_traces_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_sets, "MAX_TRACES", 3)
    sets = LabelSets(["tenant"], 50)
    for k in range(10):
        sets.add(around(f"t{k}", trace_id=bytes([k + 1]) * 16))
    shown = [sets.of(changed(REQUEST, trace_id=bytes([k + 1]) * 16)).get("tenant") for k in range(10)]
    assert shown == [None] * 7 + ["t7", "t8", "t9"]


def test_rows_are_bounded_in_number_and_further_ones_are_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "MAX_ROWS", 3)
    accounts = Accounts(labels=["tenant", "user"])
    for k in range(10):
        accounts.close(OpenRequest(changed(REQUEST, labels={"tenant": f"t{k % 5}", "user": f"u{k}"})))
    (account,) = accounts.freeze().values()
    rows = {labels: totals.completed for labels, totals in account.by_labels.items()}
    assert rows == {("t0", "u0"): 1, ("t1", "u1"): 1, ("t2", "u2"): 1, ("other", "other"): 7}


def test_a_frozen_account_does_not_change() -> None:
    accounts = Accounts(labels=["tenant"])
    accounts.open(REQUEST)
    (frozen,) = accounts.freeze().values()
    accounts.charge(OpenRequest(REQUEST), 1, 2)
    assert frozen.by_labels["",] == Totals()
