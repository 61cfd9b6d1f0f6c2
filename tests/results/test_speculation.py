"""Speculative decoding in the summary: what was counted, and null for what is not known."""

import pytest

from loadgen.attribution.shapley import RunAttribution
from loadgen.results.speculation import speculation_summary

ATTRIBUTION = RunAttribution(
    method="shapley",
    start_ns=0,
    end_ns=1,
    measured_mj=5_000,
    idle_mj=1_000,
    attributed_mj=4_000,
    unattributed_mj=0,
    requests=[],
    rejected_joules=0.5,
    rejected_se_joules=0.1,
)


def samples(*drafts: float) -> list[dict[str, float]]:
    return [
        {"t_ns": i, "drafts": count, "draft_tokens": 4 * count, "accepted_tokens": 3 * count}
        for i, count in enumerate(drafts)
    ]


def test_counts_are_of_the_time_between_the_first_and_the_last_sample():
    counted = speculation_summary(samples(100, 120, 200), ATTRIBUTION)
    assert counted is not None
    assert (counted.drafts, counted.draft_tokens, counted.accepted_tokens) == (100, 400, 300)
    assert (counted.acceptance, counted.tokens_per_step) == (0.75, 4.0)
    assert (counted.rejected_joules, counted.rejected_se_joules, counted.rejected_share) == (0.5, 0.1, 0.125)


def test_joules_are_unknown_without_energy_and_counts_are_not():
    counted = speculation_summary(samples(0, 10), None)
    assert counted is not None and counted.acceptance == 0.75
    assert counted.rejected_joules is counted.rejected_se_joules is counted.rejected_share is None


@pytest.mark.parametrize("engine", [[], samples(5), samples(5, 5), [{"t_ns": 0}, {"t_ns": 1}], samples(9, 5)])
def test_without_counted_drafts_there_is_no_speculation(engine):
    assert speculation_summary(engine, ATTRIBUTION) is None
