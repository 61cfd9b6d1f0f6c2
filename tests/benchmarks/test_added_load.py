"""What a class of requests added: parts that can be compared, and numbers that are those of the committed replays."""

import json
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.accuracy.added_load import MIX, ORDER, Plan, added, make_trace, measured_j, within
from loadgen.energy.series import EnergySeries
from loadgen.units import NS_PER_S
from loadgen.workload.trace import read_trace

COMMITTED = Path(__file__).parents[2] / "docs/results/h200-2026/added-load"


def test_parts_with_a_class_have_the_same_requests_at_the_same_instants_in_every_turn(tmp_path: Path) -> None:
    make_trace(tmp_path, load=2.0, seconds=3.0, gap=1.0, repeats=2)
    plan = msgspec.json.decode((tmp_path / "plan.json").read_bytes(), type=Plan)
    assert plan.parts == ["warm-up", *ORDER, *ORDER[::-1]]
    *requests, end = read_trace(tmp_path / "trace.jsonl").requests
    assert end.arrival_s == len(plan.parts) * plan.period_s

    def of(part: int, kind: str) -> list[tuple[float, int | None, int | None]]:
        return [
            (round(request.arrival_s - part * plan.period_s, 6), request.input_tokens, request.output_tokens)
            for request in requests
            if request.arrival_s // plan.period_s == part and request.workload == kind
        ]

    for kind in ("chat", "code"):
        planned = of(0, kind)
        assert planned
        for part, name in enumerate(plan.parts):
            assert of(part, kind) == (planned if name in (kind, MIX, "warm-up") else []), name


def test_the_law_knows_the_time_before_the_first_part_and_the_parts_of_the_mix_alone() -> None:
    t_ns = np.arange(-3, 15) * NS_PER_S // 2
    series = EnergySeries("gpu:0", t_ns, np.arange(len(t_ns)) * 1000)
    edges_ns = np.array([0, 2, 4, 6]) * NS_PER_S
    known = within(series, edges_ns, ["warm-up", MIX, "chat"])
    assert known.gap is not None
    windows = [((a, b), not gap) for (a, b), gap in zip(pairwise(t_ns / NS_PER_S), known.gap[1:], strict=True)]
    for (begin, end), is_known in windows:
        assert is_known == (end < 0 or 2 <= end < 4), (begin, end)
    assert measured_j(series, edges_ns).tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize(("name", "late"), [("draft-1", 0), ("draft-2", 10), ("tp2-1", 0)])
def test_the_committed_numbers_are_those_of_the_replays(name: str, late: int) -> None:
    answers = json.loads(COMMITTED.with_suffix(".json").read_text())[name]
    for answer, again in zip(answers, added(COMMITTED / name), strict=True):
        assert again.late == answer["late"] == late
        assert (again.counter_j, again.counter_se_j) == pytest.approx((answer["counter_j"], answer["counter_se_j"]))
        assert again.law_j == pytest.approx(answer["law_j"], abs=answer["law_se_j"]), (
            "the law has changed: analyse again"
        )
