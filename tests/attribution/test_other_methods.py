"""The attribution methods of other tools, on runs computed by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.attribution.other_methods import OtherMethod, request_shares_mj
from loadgen.attribution.shapley import METHODS, Method, attribute_energy
from loadgen.energy.series import EnergySeries
from loadgen.record import RequestRecord
from support.attribution_runs import MS, counter, request, runs


@given(runs(), st.sampled_from([method for method in METHODS if method != "whole-gpu"]))
def test_every_method_but_one_adds_up(run: tuple[list[EnergySeries], list[RequestRecord]], method: Method) -> None:
    series, records = run
    result = attribute_energy(series, records, 0, 4000 * MS, method=method)
    result.check()


def test_whole_gpu_counts_a_joule_once_for_everyone_in_flight() -> None:
    records = [request(i, 0, [500, 1000]) for i in range(4)]
    series = counter([i * 100.0 for i in range(12)], [30.0] * 11)
    result = attribute_energy([series], records, 0, 1000 * MS, method="whole-gpu")
    assert sum(share.joules for share in result.requests) == pytest.approx(4 * 300, rel=0.01)


def test_the_shares_of_other_methods_by_hand() -> None:
    """Two requests side by side for 100 J: 30 and 10 output tokens."""
    long = request(0, 0, [10.0 * k + 10 for k in range(30)])
    short = request(1, 0, [10.0 * k + 10 for k in range(10)])
    series = counter([0, 100, 200, 300, 400], [40.0, 30.0, 30.0, 0.0])
    shares = {
        method: [s.joules for s in attribute_energy([series], [long, short], 0, 400 * MS, method=method).requests]
        for method in METHODS
    }
    assert shares["output-tokens"] == [75, 25]
    assert shares["per-request"] == [50, 50]
    assert shares["residency"] == pytest.approx([80, 20], rel=0.01)


@pytest.mark.parametrize("method", ["output-tokens", "per-request"])
def test_nothing_is_shared_where_no_request_has_weight(method: OtherMethod) -> None:
    series = EnergySeries("gpu:0", np.array([0, 10]), np.array([0, 500]))
    assert request_shares_mj([series], [], method).tolist() == []
