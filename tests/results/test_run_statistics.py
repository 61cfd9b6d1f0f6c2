from dataclasses import replace
from functools import reduce
from typing import Any

import msgspec
import numpy as np
import pytest

from loadgen.results.run_statistics import limits_of, over_requests, per_second
from loadgen.results.summarize import analyse_run
from support import sample_runs

MADE = sample_runs.run(400, failing=0.05)
CONFIG = MADE.info.config | {"goodput": {"ttft": 50.0}, "streams": {"code": {"goodput": {"ttft": 100.0}}}}
RUN = analyse_run(replace(MADE, info=msgspec.structs.replace(MADE.info, config=CONFIG)))


def summary_value(path: str) -> float:
    value: Any = reduce(getattr, path.split("."), RUN.summary)
    return float(value)


@pytest.mark.parametrize("over", [over_requests, per_second])
def test_equal_weights_give_the_numbers_of_the_summary(over: Any) -> None:
    found = over(RUN)
    for paths, part in found.parts.items():
        (values,) = part.statistic(np.ones((1, found.n)))
        for path, value in zip(paths, values, strict=True):
            close = 1e-5 if path.endswith("mean") or "goodput" in path or "output_token" in path else 0.05
            assert value == pytest.approx(summary_value(path), rel=close), path


def test_elements_are_requests_in_the_order_of_the_schedule_and_seconds_of_the_run() -> None:
    of_requests, of_time = over_requests(RUN), per_second(RUN)
    assert of_requests.n == len(RUN.records) == len(of_requests.parts["goodput.ratio",].series)
    assert RUN.summary is not None and of_time is not None
    assert of_time.n == np.ceil(RUN.summary.duration_s)
    shuffled = replace(RUN, records=RUN.records[::-1])
    for paths, part in over_requests(shuffled).parts.items():
        assert np.array_equal(part.series, of_requests.parts[paths].series)


def test_each_workload_has_its_own_limits() -> None:
    assert limits_of(RUN) == {"chat": {"ttft": 50.0}, "code": {"ttft": 100.0}}


def test_nothing_sent_has_no_rates() -> None:
    records = [msgspec.structs.replace(r, sent_ns=None, error="not_sent") for r in RUN.records]
    assert per_second(replace(RUN, records=records, energy=[], attribution=None)) is None
