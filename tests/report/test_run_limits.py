"""Limits of latencies are lines, and name the workloads that they are of where these differ."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from loadgen.report.run_limits import latency_limits
from support import sample_runs

BOTH = {"goodput": {"ttft": 200.0, "e2el": 3_000.0}}


@pytest.mark.parametrize(
    ("config", "latency", "limits"),
    [
        (BOTH, "ttft", {0.2: "limit 200 ms"}),
        (BOTH, "e2e", {3.0: "limit 3.00 s"}),
        (BOTH, "tpot", {}),
        (BOTH, "itl", {}),
        ({}, "ttft", {}),
        (
            BOTH | {"streams": {"code": {"goodput": {"ttft": 50.0}}}},
            "ttft",
            {0.05: "limit 50.0 ms of code", 0.2: "limit 200 ms of chat"},
        ),
        ({"streams": {"code": {"goodput": {"ttft": 50.0}}}}, "ttft", {0.05: "limit 50.0 ms of code"}),
    ],
)
def test_a_limit_is_a_line_once(config: dict[str, Any], latency: str, limits: dict[float, str]) -> None:
    result = sample_runs.run(num_requests=20)
    result = replace(result, info=msgspec.structs.replace(result.info, config=config))
    assert {limit.value: limit.name for limit in latency_limits(result, latency, "x")} == limits
