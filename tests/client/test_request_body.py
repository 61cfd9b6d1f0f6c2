"""A body is the payload of the request's prompt, and follows from the seed and the request alone."""

import json
from typing import Any

import pytest

from loadgen.client.openai_api import Dialect, payload
from loadgen.client.request_body import message_maker
from loadgen.record import Endpoint
from loadgen.workload.prompts import draws_of, estimate_vocabulary
from loadgen.workload.schedule import ScheduledRequest

WORDS = {"chat": estimate_vocabulary("chat", 0.25, 8), "code": estimate_vocabulary("code", 0.3, 8)}


def asked(index: int, workload: str = "chat", output: int = 7) -> ScheduledRequest:
    return ScheduledRequest(index=index, offset_ns=0, workload=workload, input_tokens=90, output_tokens=output)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("extra", [{}, {"temperature": 0, "messages": "mine", "prompt": "mine", "stop": ['"', "\n"]}])
@pytest.mark.parametrize("request_", [asked(0), asked(1, "code"), asked(2, output=8)], ids=["chat", "code", "longer"])
def test_it_is_the_payload(endpoint: Endpoint, extra: dict[str, Any], request_: ScheduledRequest) -> None:
    made = message_maker(5, WORDS, endpoint, 'a "model"', Dialect(), extra)(request_)  # type: ignore[arg-type]
    prompt = WORDS[request_.workload].prompt(90, draws_of(5, request_.index))
    assert json.loads(made.body) == json.loads(
        payload(endpoint, 'a "model"', prompt, request_.output_tokens, Dialect(), extra)
    )


def test_it_does_not_depend_on_what_was_made_before() -> None:
    first, second = (message_maker(5, WORDS, "chat", "m", Dialect(), {}) for _ in range(2))  # type: ignore[arg-type]
    forward = [first(asked(i)).body for i in range(5)]
    assert forward == [second(asked(i)).body for i in reversed(range(5))][::-1]
    assert len(set(forward)) == 5
