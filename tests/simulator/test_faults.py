"""Which fault a request gets, and which texts describe one."""

from typing import Any

import numpy as np
import pytest

from loadgen.errors import LoadgenError
from loadgen.simulator.faults import MEANING, Fault, Faults, parse_faults


class FixedDraws:
    """A generator whose next draws are fixed: one per kind of fault."""

    def __init__(self, **draws: float) -> None:
        self.draws = [draws.get(kind, 0.99) for kind in MEANING]

    def random(self, count: int) -> Any:
        assert count == len(self.draws)
        return np.array(self.draws)


DRAWS: list[tuple[str, dict[Fault, float], dict[str, float], Fault | None]] = [
    ("a draw below the probability", {"stall": 0.5}, {"stall": 0.4999}, "stall"),
    ("a draw of exactly the probability", {"stall": 0.5}, {"stall": 0.5}, None),
    ("probability 0 never applies", {"stall": 0.0}, {"stall": 0.0}, None),
    ("the draw of another kind", {"stall": 0.5}, {"truncate": 0.1}, None),
    ("the earliest of two", {"disconnect": 1.0, "http_500": 1.0}, {}, "http_500"),
    ("the later one if the earlier does not apply", {"disconnect": 1.0, "http_500": 0.1}, {}, "disconnect"),
]


@pytest.mark.parametrize(("rule", "probability", "draws", "expected"), DRAWS, ids=[row[0] for row in DRAWS])
def test_the_fault_of_a_request(
    rule: str, probability: dict[Fault, float], draws: dict[str, float], expected: Fault | None
) -> None:
    rng: Any = FixedDraws(**draws)
    assert Faults(probability).draw(rng) == expected


def test_without_faults_nothing_is_drawn() -> None:
    nothing: Any = None
    assert Faults({}).draw(nothing) is None


def test_probabilities_from_0_to_1_are_accepted_and_the_later_text_wins() -> None:
    assert parse_faults(("stall:0", "truncate:1", "stall:0.25")).probability == {"stall": 0.25, "truncate": 1.0}


@pytest.mark.parametrize(
    "text", ["stall", "stall:", "stall:x", "stall:-0.1", "stall:1.01", "stall:nan", "fire:0.5", ":1"]
)
def test_a_text_that_describes_no_fault_is_refused(text: str) -> None:
    with pytest.raises(LoadgenError, match="expected KIND:P with P from 0 to 1"):
        parse_faults((text,))
