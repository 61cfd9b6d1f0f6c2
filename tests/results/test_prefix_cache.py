"""How much of the prompts a prefix cache knew: from usage, else from the engine's counters, else not known."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from loadgen.record import RequestRecord
from loadgen.results.prefix_cache import CachedTokens, cached_tokens, prefix_cache, shareable_tokens
from loadgen.results.run_folder import RunResult
from loadgen.workload.schedule import ScheduledRequest
from loadgen.workload.words import WordsRef
from support import sample_runs


def record(cached: int | None, prompt: int | None = 100, **fields: Any) -> RequestRecord:
    return RequestRecord(**{"index": 0, "workload": "chat", "scheduled_ns": 0, "sent_ns": 0, "input_tokens": prompt,
                            "output_tokens": 5, "cached_tokens": cached, "status": 200, **fields})  # fmt: skip


def request(**fields: Any) -> ScheduledRequest:
    return ScheduledRequest(**{"index": 0, "offset_ns": 0, "workload": "chat", "input_tokens": 100,
                               "output_tokens": 5, **fields})  # fmt: skip


def counters(prompt: float, cached: float | None) -> list[dict[str, float]]:
    """Samples of an engine that had counted 1,000 prompt tokens, 600 of them cached, before the run."""
    start = {"t_ns": 0.0, "prompt_tokens": 1000.0, "cached_tokens": 600.0}
    end = {"t_ns": 1.0, "prompt_tokens": 1000.0 + prompt, "cached_tokens": 600.0 + (cached or 0)}
    return [start, end] if cached is not None else [{"t_ns": 0.0, "prompt_tokens": 1000.0}, {**start, "t_ns": 1.0}]


def run(usage: list[int | None], engine: list[dict[str, float]], common: int | None = None, **fields: Any) -> RunResult:
    made = sample_runs.run(num_requests=2)
    info = msgspec.structs.replace(made.info, server={"common_prompt_tokens": common})
    records = [record(cached) for cached in usage]
    return replace(made, info=info, schedule=[request(**fields) for _ in usage], records=records, engine=engine)


NOTHING: list[dict[str, float]] = []


@pytest.mark.parametrize(
    ("usage", "engine", "common", "status", "says"),
    [
        ([90, 90], NOTHING, None, "warning", "90% of the prompt tokens came from the server's prefix cache, although"),
        ([2, 2], NOTHING, None, "ok", None),
        ([3, 2], NOTHING, None, "warning", "2% of"),
        ([20, 20], NOTHING, 20, "ok", None),  # the chat template: the same in every prompt
        ([21, 20], NOTHING, 20, "warning", "20% of"),
        ([90, None], NOTHING, None, "warning", "45% of"),  # vLLM leaves the count out where it is 0
        ([0, 0], NOTHING, None, "ok", None),
        ([None, None], NOTHING, None, None, "not known whether prompts came from"),
        # vLLM and SGLang as they start without options: usage says nothing, the counters do
        ([None, None], counters(200, 180), None, "warning", "90% of the prompt tokens came from the server's prefix "
         "cache by its own counters, although no prompt shares a prefix: an earlier run with this --seed filled it"),
        ([None, None], counters(200, 0), None, "ok", None),
        ([None, None], counters(200, None), None, None, "not known whether"),
        ([None, None], counters(0, 0), None, None, "not known whether"),
        # a gateway's zero is no count
        ([0, 0], counters(200, 180), None, "warning", "90% of"),
        ([0, 0], counters(2000, 180), None, "ok", None),
        # other clients are counted too: at least 180 - 100 of the cached tokens are ours, or it is not known
        ([None, None], counters(300, 180), None, "warning", "60% of"),
        ([None, None], counters(2000, 180), None, None, "not known how many of these prompts came from the server's "
         "prefix cache: its own counters say 9%, with 1,800 prompt tokens of other clients"),
    ],
)  # fmt: skip
def test_a_warm_cache_is_a_warning_and_what_is_not_counted_is_not_known(
    usage: list[int | None], engine: list[dict[str, float]], common: int | None, status: str | None, says: str | None
) -> None:
    check = prefix_cache(run(usage, engine, common))
    assert check.status == status
    assert check.reason is None if says is None else (check.reason or "").startswith(says)
    assert list(check.rows) == (["ttft_s", "energy.prefill_joules"] if status == "warning" else [])


def test_prompts_of_ones_own_may_share_what_the_cache_knew() -> None:
    words = WordsRef(line=1, sha256="", offset=0, size=2)
    check = prefix_cache(run([90, 90], NOTHING, words=words))
    assert (check.status, list(check.rows)) == (None, [])
    assert "90% of the prompt tokens" in (check.reason or "") and "--seed" not in (check.reason or "")
    assert prefix_cache(run([0, 0], NOTHING, words=words)).status == "ok"


@pytest.mark.parametrize(("engine", "status"), [(counters(200, 180), "warning"), (counters(200, 0), "ok")])
def test_prompts_that_usage_does_not_count_are_not_those_of_other_clients(
    engine: list[dict[str, float]], status: str
) -> None:
    made = run([None, None], engine)
    uncounted = replace(made, records=[msgspec.structs.replace(r, input_tokens=None) for r in made.records])
    assert prefix_cache(uncounted).status == status


def test_a_run_without_an_answer_has_no_prompts_to_judge() -> None:
    failed = replace(run([None], NOTHING), records=[record(None, None, error="http")])
    assert (prefix_cache(failed).status, prefix_cache(failed).reason) == (None, None)


def test_prompts_that_the_trace_declares_as_shared_may_be_cached_and_no_more() -> None:
    shared = {"text_id": 1, "text_tokens": 60}
    assert prefix_cache(run([0, 60], NOTHING, **shared)).status == "ok"
    warm = prefix_cache(run([60, 60], NOTHING, **shared))
    assert warm.status == "warning" and "although the trace shares 30% at most" in (warm.reason or "")


@pytest.mark.parametrize(
    ("schedule", "shared"),
    [
        ([request(), request()], 0),
        ([request(text_id=1, text_tokens=40), request(text_id=1, text_tokens=60), request(text_id=2, text_tokens=9)],
         40),
        ([request(text_id=1, text_tokens=60), request(text_id=1, text_tokens=40)], 40),
        ([request(prefix_ids=(1, 2), input_tokens=1200), request(prefix_ids=(1, 3), input_tokens=1200)], 512),
        ([request(prefix_ids=(1, 2), input_tokens=600)] * 2, 600),
        ([request(prefix_ids=(2,), input_tokens=600), request(prefix_ids=(1, 2), input_tokens=1200)], 0),
    ],
)  # fmt: skip
def test_what_prompts_share_is_what_an_earlier_one_begins_with(schedule: list[ScheduledRequest], shared: int) -> None:
    assert shareable_tokens(schedule) == shared


def test_usage_counts_the_prompts_that_it_names_and_nothing_is_divided_by_zero() -> None:
    assert cached_tokens([record(50), record(None), record(9, None)], []) == CachedTokens(100.0, 50.0, "usage")
    assert cached_tokens([], []) is None
    assert CachedTokens(0.0, 0.0, "usage").share == 0.0
    assert CachedTokens(10.0, 100.0, "usage").share == 1.0


def test_what_was_sent_before_the_run_is_expected_in_the_cache() -> None:
    made = run([60, 60], NOTHING, prefix_ids=(1, 2), block_size=30)
    assert prefix_cache(replace(made, schedule=made.schedule[:1], records=made.records[:1])).status == "warning"
    warmed = made.schedule[:1]
    known = replace(made, schedule=made.schedule[:1], records=made.records[:1], warmed=warmed)
    assert prefix_cache(known).status == "ok"
    unknown = replace(known, warmed=[msgspec.structs.replace(warmed[0], prefix_ids=(3, 4))] * 3)
    assert prefix_cache(unknown).status == "warning", "what those share with one another is not the run's"
