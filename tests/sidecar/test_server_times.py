"""Times of requests by OpenTelemetry's conventions for model servers: only what the engine itself reported."""

import pytest
from msgspec.structs import replace as changed

from loadgen.sidecar.server_times import DURATION_BOUNDS_S, FIRST_TOKEN_BOUNDS_S, PER_TOKEN_BOUNDS_S, ServerTimes
from loadgen.telemetry.otlp_parse import RequestSpan
from loadgen.units import NS_PER_S
from sidecar.test_accounts import REQUEST

CLIENT = changed(REQUEST, client=True, start_ns=9 * NS_PER_S)
FAILED = changed(REQUEST, ok=False)
SILENT = changed(REQUEST, first_token_ns=None)
"""An engine's span that does not say when the first token came."""


def test_buckets_are_those_that_the_conventions_recommend() -> None:
    assert (
        pytest.approx((0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92))
        == DURATION_BOUNDS_S
    )
    assert FIRST_TOKEN_BOUNDS_S == (
        0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0
    )  # fmt: skip
    assert PER_TOKEN_BOUNDS_S == (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


@pytest.mark.parametrize(
    ("parts", "sums"),
    [
        ([REQUEST], (3.0, 0.0, 0.2, 2.8 / 49)),
        ([CLIENT, REQUEST], (3.0, 0.0, 0.2, 2.8 / 49)),
        ([CLIENT], (0.0, 0.0, 0.0, 0.0)),
        ([CLIENT, SILENT], (3.0, 0.0, 0.0, 0.0)),
        ([changed(CLIENT, ok=False), REQUEST], (3.0, 0.0, 0.2, 2.8 / 49)),
        ([FAILED], (0.0, 3.0, 0.0, 0.0)),
        ([REQUEST, changed(REQUEST, key="choice")], (3.0, 0.0, 0.2, 0.0)),
    ],
    ids=["engine", "both", "client", "no first token", "client gave up", "failed", "two choices"],
)
def test_a_request_counts_by_the_spans_of_the_engine_alone(
    parts: list[RequestSpan], sums: tuple[float, float, float, float]
) -> None:
    """The client's own first token would hold the network; choices that were decoded at once have no time per token."""
    times = ServerTimes()
    times.observe(REQUEST, parts)
    histograms = (times.completed, times.failed, times.first_token, times.per_token)
    assert [histogram.sum for histogram in histograms] == pytest.approx(list(sums))
    assert [sum(histogram.counts) for histogram in histograms] == [int(total > 0) for total in sums]


@pytest.mark.parametrize(("tokens", "count"), [(None, 0), (0, 0), (1, 0), (2, 1)])
def test_there_is_no_time_per_token_after_a_single_one(tokens: int | None, count: int) -> None:
    times = ServerTimes()
    times.observe(changed(REQUEST, output_tokens=tokens), [REQUEST])
    assert sum(times.per_token.counts) == count


def test_a_copy_does_not_change_with_what_comes_later() -> None:
    times = ServerTimes()
    frozen = times.copy()
    times.observe(REQUEST, [REQUEST])
    assert sum(frozen.completed.counts) == 0 and sum(times.completed.counts) == 1
