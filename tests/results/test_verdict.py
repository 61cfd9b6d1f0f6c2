"""The verdict: all ten questions, the worst status, and the reasons."""

from typing import Any

import msgspec
import pytest

from loadgen.results.verdict import CHECKS, NOT_JUDGED, Check, Status, Verdict


def verdict(**statuses: Status) -> Verdict:
    return Verdict.of([Check(name=n, status=s, reason=s and f"{n} {s}") for n in CHECKS for s in [statuses.get(n)]])


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [
        ({}, None),
        ({"finished": "ok"}, "ok"),
        ({"finished": "ok", "energy": "warning"}, "warning"),
        ({"finished": "failed", "load": "warning", "energy": "ok"}, "failed"),
    ],
)
def test_a_verdict_is_its_worst_check(statuses: dict[str, Status], worst: Status | None) -> None:
    assert verdict(**statuses).status == worst


@pytest.mark.parametrize("names", [CHECKS[:-1], CHECKS[::-1], (*CHECKS, "energy")])
def test_every_question_is_answered_once_and_in_order(names: Any) -> None:
    with pytest.raises(AssertionError):
        Verdict.of([Check(name=name, status="ok") for name in names])


@pytest.mark.parametrize("name", CHECKS)
def test_a_run_stands_unless_it_did_not_finish_or_too_many_failed(name: str) -> None:
    assert verdict(**{name: "warning"}).stands
    assert verdict(**{name: "failed"}).stands is (name not in ("finished", "failures"))
    assert verdict(**{name: "failed"}).check(name).status == "failed"  # type: ignore[arg-type]


def test_reasons_are_those_of_the_checks_in_order() -> None:
    assert verdict(energy="warning", finished="failed").reasons == ["finished failed", "energy warning"]
    assert NOT_JUDGED.reasons == [] and NOT_JUDGED.status is None


def test_a_verdict_survives_json() -> None:
    made = verdict(load="warning")
    again = msgspec.json.decode(msgspec.json.encode(made), type=Verdict)
    assert msgspec.to_builtins(again) == msgspec.to_builtins(made)
