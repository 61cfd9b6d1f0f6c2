"""Deliberate failures of the simulated server, so that clients can be tested against them."""

from dataclasses import dataclass
from typing import Literal, get_args

from numpy.random import Generator

from loadgen.errors import LoadgenError

Fault = Literal[
    "http_500",
    "http_503",
    "http_429",
    "stall",
    "truncate",
    "bad_json",
    "no_done",
    "no_usage",
    "error_event",
    "disconnect",
    "abort",
    "done_early",
    "event_error",
    "textless",
    "open_body",
]

MEANING: dict[Fault, str] = {
    "http_500": "refuse with status 500",
    "http_503": "refuse with status 503",
    "http_429": "refuse with status 429",
    "stall": "after half of the tokens send nothing more, and keep the connection open",
    "truncate": "after half of the tokens end the body, with no finish_reason, usage or [DONE]",
    "bad_json": "after half of the tokens send one event that is not JSON, then go on",
    "no_done": "leave out [DONE]",
    "no_usage": "leave out usage",
    "error_event": "after half of the tokens send an error event, then [DONE]",
    "disconnect": "after half of the tokens reset the connection",
    "abort": "after half of the tokens of a stream send finish_reason abort, then [DONE]",
    "done_early": "after half of the tokens of a stream send [DONE], with no finish_reason or usage",
    "event_error": "after half of the tokens of a stream send an event named error with a comment, then [DONE]",
    "textless": "send the second half of the tokens of a stream without text, as special tokens are",
    "open_body": "keep the body of a stream open after [DONE]",
}


@dataclass(frozen=True)
class Faults:
    """Probability of each kind, per request. At most one applies: the earliest in the order of `MEANING`."""

    probability: dict[Fault, float]

    def draw(self, rng: Generator) -> Fault | None:
        """Draw the fault of one request; no faults, no draws."""
        if not self.probability:
            return None
        draws = rng.random(len(MEANING))
        return next((kind for kind, u in zip(MEANING, draws, strict=True) if u < self.probability.get(kind, 0)), None)


def parse_faults(texts: tuple[str, ...]) -> Faults:
    """Parse texts of the form `KIND:P`. Raises LoadgenError."""
    probability: dict[Fault, float] = {}
    for text in texts:
        name, _, p = text.partition(":")
        kind = next((kind for kind in get_args(Fault) if kind == name), None)
        try:
            value = float(p)
        except ValueError:
            value = -1.0
        if kind is None or not 0 <= value <= 1:
            raise LoadgenError(
                f"--fault {text}: expected KIND:P with P from 0 to 1 and KIND one of {', '.join(MEANING)}"
            )
        probability[kind] = value
    return Faults(probability)
