"""Looking up a settled request: by any of its ids, the newest of them, for a bounded time and number."""

import msgspec
import pytest

from loadgen.results.ledger_lines import SettledRequest
from loadgen.sidecar.request_lookup import NamedRequest, RequestLookup, is_request_id, request_json


def settled(name: str, settled_ns: int = 100, whole: bool = True, se_mj: int | None = 40) -> SettledRequest:
    return SettledRequest(
        id=name, model="m", workload="chat", engine="localhost:8000", ok=True, begin_unix_ns=10, first_token_unix_ns=20,
        end_unix_ns=90, settled_unix_ns=settled_ns, input_tokens=7, output_tokens=None, cached_tokens=None,
        prefill_mj=1_500, decode_mj=2_000, se_mj=se_mj, whole=whole,
    )  # fmt: skip


def named(name: str, *names: str, settled_ns: int = 100) -> NamedRequest:
    return NamedRequest(settled(name, settled_ns), names or (name,))


@pytest.mark.parametrize(
    ("name", "found"),
    [("run-7", True), ("chatcmpl-run-7", True), ("cmpl-run-7-0", True), ("engine-1", True), ("run-8", False)],
)
def test_a_request_is_found_by_each_id_that_it_has(name: str, found: bool) -> None:
    lookup = RequestLookup(kept=10, kept_ns=10**9)
    lookup.add([named("run-7", "run-7", "engine-1")])
    assert (lookup.find(name) is not None) is found


def test_of_requests_with_one_id_the_newest_is_found() -> None:
    lookup = RequestLookup(kept=10, kept_ns=10**9)
    lookup.add([named("a", settled_ns=1), named("a", settled_ns=2)])
    assert lookup.find("a") == settled("a", settled_ns=2)


def test_the_names_of_an_earlier_request_with_the_same_id_are_forgotten_with_it() -> None:
    lookup = RequestLookup(kept=2, kept_ns=50)
    lookup.add([named("a", "a", f"engine-{number}") for number in range(5)])
    assert lookup.find("engine-3") is None, "the joules of the newest are not its own"
    assert lookup.find("engine-4") == settled("a")
    lookup.add([named("b"), named("c")])
    assert [lookup.find(name) for name in ("a", "engine-3", "engine-4")] == [None] * 3
    assert len(lookup._ids) == 2


def test_the_oldest_are_forgotten_by_number_and_by_time() -> None:
    lookup = RequestLookup(kept=2, kept_ns=50)
    lookup.add([named("a", "a", "x", settled_ns=10), named("b", settled_ns=20), named("c", settled_ns=60)])
    assert [lookup.find(name) is not None for name in "axbc"] == [False, False, True, True]
    lookup.forget(70)
    assert lookup.find("b") is not None, "fifty nanoseconds old"
    lookup.forget(71)
    assert (lookup.find("b"), len(lookup), len(lookup._ids)) == (None, 1, 1)


def test_a_name_that_a_newer_request_took_over_stays_its() -> None:
    lookup = RequestLookup(kept=1, kept_ns=50)
    lookup.add([named("a", "shared"), named("b", "shared")])
    assert lookup.find("shared") == settled("b")


@pytest.mark.parametrize(
    ("text", "valid"),
    [("run-7", True), ("é" * 128, True), ("x" * 129, False), ("", False), ("a\nb", False), ("\x1b[2J", False)],
)
def test_an_id_is_printable_and_short(text: str, valid: bool) -> None:
    assert is_request_id(text) is valid


def test_a_page_has_joules_and_those_of_a_request_that_was_not_measured_whole_are_unknown() -> None:
    page = request_json(settled("a"))
    energy = ("joules", "se_joules", "prefill_joules", "decode_joules", "measured_joules")
    assert [page[name] for name in energy] == [3.5, 0.04, 1.5, 2.0, 3.5]
    assert (page["state"], page["engine"], page["output_tokens"]) == ("settled", "localhost:8000", None)
    partly = request_json(msgspec.structs.replace(settled("a"), whole=False))
    assert [partly[name] for name in energy] == [None, None, None, None, 3.5]
    assert request_json(settled("a", se_mj=None))["se_joules"] is None
