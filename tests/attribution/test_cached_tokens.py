"""Cached tokens that the usage does not tell: by the engine's counters and the plan, or by the times of prefills."""

import msgspec
import numpy as np
import pytest

from loadgen.attribution.cached_tokens import _divided, with_cached_tokens
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.record import RequestRecord
from loadgen.simulator.engine import EngineOptions, SubmittedRequest, simulate
from loadgen.units import NS_PER_MS, NS_PER_S
from support.attribution_runs import request, request_ns

TOKEN_MS = 0.025
"""Time of a prompt token; a prefill takes 5 ms more."""


def untold(sent_ms: float, first_ms: float, prompt: int, usage: int | None = None) -> RequestRecord:
    return msgspec.structs.replace(request(0, sent_ms, [first_ms], prompt), cached_tokens=usage)


def counters(*rows: tuple[float, float, float]) -> list[dict[str, float]]:
    """Samples as (ms, prompt tokens, cached tokens)."""
    return [{"t_ns": ms * NS_PER_MS, "prompt_tokens": prompt, "cached_tokens": hits} for ms, prompt, hits in rows]


def cached(records: list[RequestRecord], plan: list[int | None], engine: list[dict[str, float]]) -> list[int | None]:
    return [record.cached_tokens for record in with_cached_tokens(records, plan, engine)]


@pytest.mark.parametrize(
    ("plan", "hits", "expected"),
    [
        ([800, 160], 960, [800, 160]),  # as planned
        ([800, None], 960, [800, 160]),  # the second one has the mean share, of what it may have
        ([800, 160], 1560, [900, 660]),  # more than planned: in proportion to the rest
        ([805, 170], 960, [800, 160]),  # whole blocks
        ([0, 0], 0, [0, 0]),
    ],
)
def test_requests_between_two_samples_share_what_was_counted_by_the_plan(
    plan: list[int | None], hits: float, expected: list[int]
) -> None:
    records = [untold(0, 100, 1000), untold(150, 200, 1160)]
    found = cached(records, plan, counters((0, 0, 0), (500, 2160, hits)))
    assert sum(tokens or 0 for tokens in found) == pytest.approx(hits, abs=1)
    if None not in plan:
        assert found == expected


def test_a_request_alone_between_two_samples_has_what_was_counted() -> None:
    records = [untold(0, 100, 1000), untold(600, 700, 2000), untold(1600, 1700, 500)]
    engine = counters((0, 500, 500), (500, 1500, 800), (1000, 3500, 2700))
    assert cached(records, [None, 0, 0], engine) == [300, 1900, None], "the last one came after the last sample"


def test_a_first_token_close_to_a_sample_is_on_the_side_that_its_tokens_are_on() -> None:
    records = [untold(0, 100, 1000), untold(300, 501, 2000)]
    engine = counters((0, 0, 0), (500, 3000, 1500), (1000, 3000, 1500))
    assert cached(records, [0, 1504], engine) == [0, 1500]


def test_other_clients_take_their_share_of_what_was_counted() -> None:
    assert cached([untold(0, 100, 1000)], [800], counters((0, 0, 0), (500, 4000, 2000))) == [500]


def prefills(prompts: list[int], computed: list[int]) -> list[RequestRecord]:
    """Prompts, one a second, of which so many tokens are computed."""
    return [
        untold(1000.0 * i, 1000.0 * i + 5 + TOKEN_MS * tokens, prompt)
        for i, (prompt, tokens) in enumerate(zip(prompts, computed, strict=True))
    ]


GROWING = [2_000 + 800 * turn + 300 * (turn % 3) for turn in range(40)]
PLAN = [0, *(tokens - tokens % 16 for tokens in GROWING[:-1])]


def test_times_show_whether_there_is_a_cache_and_which_prefixes_were_evicted() -> None:
    with_cache = [prompt - hits for prompt, hits in zip(GROWING, PLAN, strict=True)]
    assert cached(prefills(GROWING, with_cache), [*PLAN], []) == PLAN
    assert cached(prefills(GROWING, GROWING), [*PLAN], []) == [None] * 40
    with_cache[30] = GROWING[30]
    evicted = cached(prefills(GROWING, with_cache), [*PLAN], [])
    assert (evicted[30] or 0) < 0.02 * GROWING[30]
    assert evicted[:30] + evicted[31:] == PLAN[:30] + PLAN[31:]


def test_the_request_whose_prefill_took_longer_lacked_what_the_counters_miss() -> None:
    """Two sessions, whose turns come in pairs between two samples; in one pair the second one was evicted."""
    records, plan, engine, hits = [], [], counters((0, 0, 0)), 0
    for i, (prompt, known) in enumerate(zip(GROWING, PLAN, strict=True)):
        for lane in range(2):
            lacks = known if (i, lane) == (25, 1) else 0
            sent_ms = 2000.0 * i + 900 * lane + 100
            records.append(untold(sent_ms, sent_ms + 5 + TOKEN_MS * (prompt - known + lacks), prompt))
            plan.append(known)
            hits += known - lacks
        engine += counters((2000.0 * (i + 1), 2.0 * sum(GROWING[: i + 1]), hits))
    expected = list(plan)
    expected[51] = 0
    assert cached(records, plan, engine) == expected


@pytest.mark.parametrize(
    ("usage", "engine", "expected"),
    [
        ([300, 0], counters((0, 0, 0), (500, 2000, 1600)), [300, 0]),  # it is told
        ([0, 0], counters((0, 0, 0), (500, 2000, 1600)), [800, 800]),  # a gateway's zero is no count
        ([0, 0], [], [0, 0]),
        ([None, None], [], [None, None]),
        ([None, None], [{"t_ns": 0.0, "prompt_tokens": 0.0}, {"t_ns": 9.0, "prompt_tokens": 5.0}], [None, None]),
    ],
)
def test_what_the_server_tells_stands(
    usage: list[int | None], engine: list[dict[str, float]], expected: list[int | None]
) -> None:
    records = [untold(200 * i, 200 * i + 100, 1000, told) for i, told in enumerate(usage)]
    assert cached(records, [800, 800], engine) == expected


@pytest.mark.parametrize("counted", [True, False])
def test_sessions_of_a_simulated_server_have_what_its_cache_had(counted: bool) -> None:
    """Four sessions of 12 turns at a time, on contexts from 4,000 to 60,000 tokens."""
    rng, arrivals, after, plan = np.random.default_rng(3), [], {}, []
    for session in range(4):
        tokens, before = int(rng.integers(4_000, 8_000)), 0
        for turn in range(12):
            blocks = tuple((session, block) for block in range(tokens // 16))
            arrivals.append(SubmittedRequest(NS_PER_S + int(rng.integers(0, NS_PER_S)), tokens, 40, blocks))
            after |= {len(arrivals) - 1: (len(arrivals) - 2,)} if turn else {}
            plan.append(before)
            tokens, before = tokens + int(rng.integers(500, 6_000)), tokens
    options = EngineOptions(prefix_caching=True)
    run = simulate(arrivals, read_hardware("h200"), read_model("llama-3.1-8b"), options, after=after, tail_ns=NS_PER_S)
    records = [
        msgspec.structs.replace(
            request_ns(i, r.arrival_ns, [t_ns + NS_PER_MS // 2 for t_ns in r.token_ns], r.input_tokens),
            cached_tokens=None,
        )
        for i, r in enumerate(run.requests)
    ]
    engine = [dict(sample) for sample in run.engine[::5]] if counted else []
    assert cached(records, [*plan], engine) == [r.cached_tokens for r in run.requests]


def test_prompts_without_a_plan_may_be_cached_to_the_last_token() -> None:
    prompt = np.array([100.0, 50.0])
    assert _divided(150.0, prompt, np.array([np.nan, np.nan]), np.zeros(2)).tolist() == [100.0, 50.0]
