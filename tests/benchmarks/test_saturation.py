"""The benchmark of saturation simulates loads below and above the capacity that it measures."""

import numpy as np
import pytest

from benchmarks.accuracy.saturation import TRACES, capacity_rps, served, verdict
from loadgen.workload.arrivals import offsets
from loadgen.workload.trace import read_trace


@pytest.mark.parametrize(("load", "saturated"), [(0.7, False), (2.0, True)])
def test_an_engine_is_saturated_above_its_capacity_and_not_below(load: float, saturated: bool) -> None:
    trace = read_trace(TRACES / "code.jsonl")
    sent_s = offsets("poisson", load * capacity_rps(trace, 16), np.random.default_rng(1), duration_s=15)
    begun_s, ended_s = served(trace, 16, sent_s, 1)
    assert np.all(begun_s > sent_s) and np.all(ended_s >= begun_s)
    assert (verdict(sent_s, begun_s, ended_s) is not None) is saturated
