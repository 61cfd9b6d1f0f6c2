"""Other clients are in our steps once, whether spans or counters tell of them."""

import numpy as np
import pytest

from loadgen.attribution.beside_others import steps_beside_others, steps_of_first
from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.shapley import attribute_energy
from loadgen.telemetry.engine_span import EngineSpan
from support.attribution_runs import MS, counter, engine_samples, request

OURS = request(0, 0, [10.0 * k for k in range(1, 101)], prompt=10)
THEIRS = EngineSpan(
    id="x", arrival_ns=0, prefill_ns=0, first_token_ns=10 * MS, end_ns=1000 * MS, input_tokens=10, output_tokens=100
)
SHARED = engine_samples((-1, 0, 0, 0), (500, 100, 20, 50), (1001, 200, 20, 100))
"""A stream of ours and another one, in the same 100 steps."""
ALONE = engine_samples((-1, 0, 0, 0), (500, 50, 10, 50), (1001, 100, 10, 100))


@pytest.mark.parametrize(
    ("engine", "spans", "foreign"),
    [((), (), 0), (ALONE, (), 0), (SHARED, (), 1), ((), (THEIRS,), 1), (SHARED, (THEIRS,), 1), (ALONE, (THEIRS,), 0)],
)
def test_a_request_of_another_client_is_there_once(
    engine: list[dict[str, float]], spans: tuple[EngineSpan, ...], foreign: int
) -> None:
    """A span of another id, of tokens that the engine did not count beyond ours, is of a request of ours."""
    shared = steps_beside_others([OURS], engine, spans, "run")
    tokens = sum(record.output_tokens or 0 for record in shared.foreign)
    assert tokens == pytest.approx(100 * foreign, abs=1)
    assert np.bincount(shared.steps.step).mean() == pytest.approx(1 + foreign, abs=0.02)


@pytest.mark.parametrize("spans", [(), (THEIRS,)])
def test_other_clients_joules_are_unattributed(spans: tuple[EngineSpan, ...]) -> None:
    """Half of the energy of the steps that two streams share."""
    series = counter([i * 100.0 for i in range(11)], [40.0] * 10)
    shared = steps_beside_others([OURS], SHARED, spans, "run")
    result = attribute_energy([series], [OURS], 0, 1000 * MS, shared=shared)
    assert result.measured_mj == 400_000
    assert result.attributed_mj == pytest.approx(200_000, rel=0.05)
    assert result.unattributed_mj == pytest.approx(200_000, rel=0.05)
    alone = attribute_energy([series], [OURS], 0, 1000 * MS, engine=ALONE)
    assert (alone.attributed_mj, alone.unattributed_mj) == (400_000, 0)


def test_the_steps_of_the_first_requests_are_those_without_the_others() -> None:
    others = request(1, 300, [330.0, 360.0, 1200.0, 1300.0])
    steps, ours = engine_steps_of([OURS, others]), engine_steps_of([OURS])
    first = steps_of_first(steps, 1)
    assert first.end_ns.tolist() == ours.end_ns.tolist()
    for column in ("step", "request", "prefilling", "decode", "context"):
        assert getattr(first, column).tolist() == getattr(ours, column).tolist()
