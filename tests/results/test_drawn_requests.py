"""Few requests of many are drawn: always the same ones, with all that stand out."""

from dataclasses import replace

import msgspec
import pytest

from loadgen.results.drawn_requests import drawn_requests
from support import sample_runs

RUN = sample_runs.run(num_requests=700, rps=50)


def test_all_requests_that_were_sent_are_drawn_where_they_are_few() -> None:
    records = [msgspec.structs.replace(r, sent_ns=None) if r.index == 3 else r for r in RUN.records]
    drawn = drawn_requests(replace(RUN, records=records))
    assert drawn.tolist() == [record.index for record in records if record.index != 3]


@pytest.mark.parametrize("limit", [50, 200, 699])
def test_the_highest_and_the_lowest_of_each_quantity_stay(limit: int) -> None:
    drawn = set(drawn_requests(RUN, limit).tolist())
    assert len(drawn) == limit
    assert RUN.attribution is not None
    for name in ("ttft_ns", "tpot_ns", "e2e_ns", "lag_ns"):
        known = [r for r in RUN.records if getattr(r, name) is not None]
        values = {record.index: getattr(record, name) for record in known}
        assert {min(values, key=values.__getitem__), max(values, key=values.__getitem__)} <= drawn
    assert max(RUN.attribution.requests, key=lambda share: share.joules or 0).index in drawn


def test_the_others_are_spread_evenly_over_the_run() -> None:
    drawn = drawn_requests(RUN, 350)
    halves = [(drawn < 350).sum(), (drawn >= 350).sum()]
    assert max(halves) - min(halves) < 40


def test_the_same_run_has_the_same_requests() -> None:
    assert drawn_requests(RUN, 100).tolist() == drawn_requests(RUN, 100).tolist()
