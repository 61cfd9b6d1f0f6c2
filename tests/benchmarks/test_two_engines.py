"""Two simulated engines on one GPU: their accounts are the counter's, and the joint law finds them."""

import pytest

from benchmarks.accuracy.two_engines import AT_ONCE, SLICES, EngineLoad, Scenario, played, rows_of
from loadgen.simulator.engine import EngineOptions

HALF = EngineOptions(kv_cache_tokens=300_000)
CHAT, CODE = (EngineLoad("llama-3.1-8b", {kind: 3.0}, HALF) for kind in ("chat", "code"))


@pytest.mark.parametrize("speed", [SLICES, AT_ONCE, 1.0])
def test_what_requests_cost_is_what_the_gpu_drew_in_steps(speed: float) -> None:
    _, _, run = played(Scenario("", (CHAT, CODE), speed), 20, 5)
    assert run.busy_both > 0.3
    joules = sum(request.joules for requests in run.requests for request in requests)
    assert joules == pytest.approx(run.step_j, rel=1e-3)


def test_a_step_beside_another_takes_longer_in_turns_than_at_once() -> None:
    ends = [
        max(request.token_ns[-1] for requests in played(Scenario("", (CHAT, CODE), speed), 20, 5)[2].requests
            for request in requests)
        for speed in (SLICES, AT_ONCE, 1.0)
    ]  # fmt: skip
    assert ends[0] > ends[1] > ends[2]


@pytest.mark.parametrize("speed", [SLICES, AT_ONCE])
def test_two_laws_tell_the_engines_apart_and_one_does_not(speed: float) -> None:
    scores = rows_of(Scenario("", (CHAT, CODE), speed), 60, 101)
    assert scores["joint"]["median"] < 0.015 and scores["joint"]["p90"] < 0.04
    assert max(abs(of) for of in scores["joint"]["engines"]) < 0.01
    assert max(abs(of) for of in scores["one law"]["engines"]) > 0.1
