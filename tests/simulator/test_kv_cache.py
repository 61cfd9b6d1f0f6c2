"""Blocks of the KV cache: hits, eviction, and the truth about both."""

import random
from collections import OrderedDict
from collections.abc import Iterable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.simulator import kv_cache
from loadgen.simulator.engine import Engine, EngineOptions, Sequence, SubmittedRequest, simulate
from loadgen.simulator.kv_cache import KV_BLOCK_TOKENS, BlockPool, Found
from loadgen.simulator.tokens import block_hashes, tokenize
from loadgen.units import NS_PER_MS, NS_PER_S
from loadgen.workload.prompts import draws_of, estimate_vocabulary
from support.engine_steps import run

H200 = read_hardware("h200")
LLAMA = read_model("llama-3.1-8b")


def chain(name: str, blocks: int) -> tuple[str, ...]:
    return tuple(f"{name}{i}" for i in range(blocks))


@pytest.mark.parametrize(
    ("input_tokens", "cached"),
    [(16, 0), (17, 16), (31, 16), (32, 16), (33, 32), (48, 32), (49, 48), (64, 48), (65, 64), (80, 64)],
)
def test_a_prompt_reuses_the_full_blocks_before_its_last_token(input_tokens, cached):
    hashes = ("w", "x", "y", "z")
    pair = [
        SubmittedRequest(0, 64, 1, hashes),
        SubmittedRequest(NS_PER_S, input_tokens, 1, hashes[: input_tokens // 16]),
    ]
    result = simulate(pair, H200, LLAMA, EngineOptions(prefix_caching=True))
    assert result.requests[1].cached_tokens == cached


def test_a_pool_admits_up_to_exactly_its_blocks_and_a_refusal_changes_nothing():
    pool, seq = BlockPool(2, prefix_caching=False), Sequence(0, 32, 1)
    assert not pool.admit(Sequence(0, 33, 1), 0, 16), "all of a prompt must fit, not only its first chunk"
    assert (pool.free, pool.used, seq.private_blocks) == (2, 0, 0)
    assert pool.admit(seq, 0, 32)
    assert (pool.free, pool.used, seq.room) == (0, 2, 32)
    seq.computed = 32
    assert not pool.grow(seq, 1)
    assert pool.grow(seq, 0)
    pool.release(seq)
    assert (pool.free, pool.used, seq.room) == (2, 0, 0)


def test_the_least_recently_used_cached_block_is_evicted():
    pool = BlockPool(3, prefix_caching=True)
    for block in ("old", "new"):
        seq = Sequence(0, 16, 1, (block,))
        assert pool.admit(seq, 0, 16)
        seq.computed = 16
        pool.publish(seq, 16)
        pool.release(seq)
    assert (pool.free, pool.used) == (1, 0)
    assert pool.admit(Sequence(0, 32, 1), 0, 32)
    assert (pool.free, pool.used) == (0, 2)
    assert [pool.find(Sequence(0, 17, 1, (block,))) for block in ("old", "new")] == [Found(0, 1), Found(1, 0)]


def served(pool: BlockPool, seq: Sequence) -> Found:
    """Let a sequence compute its whole prompt and end; return what it found."""
    found = pool.find(seq)
    assert pool.admit(seq, found.hits, seq.input_tokens - found.hits * KV_BLOCK_TOKENS)
    seq.computed = seq.input_tokens
    pool.publish(seq, seq.computed)
    pool.release(seq)
    return found


def test_the_end_of_a_prompt_is_evicted_before_its_beginning_and_is_known_to_have_been_there():
    pool = BlockPool(6, prefix_caching=True)
    assert served(pool, Sequence(0, 64, 1, chain("a", 4))) == Found(0, 0)
    assert served(pool, Sequence(0, 64, 1, chain("b", 4))) == Found(0, 0)
    assert pool.find(Sequence(0, 65, 1, chain("a", 4))) == Found(2, 2)
    assert pool.find(Sequence(0, 65, 1, chain("a", 3) + chain("c", 1))) == Found(2, 1)
    assert pool.find(Sequence(0, 48, 1, chain("a", 3))) == Found(2, 0), "the last token is computed in any case"


def test_a_block_without_a_hash_is_used_before_one_that_is_cached():
    pool = BlockPool(4, prefix_caching=True)
    served(pool, Sequence(0, 32, 1, chain("a", 2)))
    served(pool, Sequence(0, 20, 1, chain("b", 1)))
    assert (pool.free, pool.used) == (1, 0)
    served(pool, Sequence(0, 10, 1))
    assert pool.find(Sequence(0, 33, 1, chain("a", 2))) == Found(2, 0)


def test_sequences_that_compute_the_same_blocks_at_once_keep_a_copy_each_and_cache_what_follows():
    pool = BlockPool(10, prefix_caching=True)
    both = [Sequence(0, 64, 1, chain("s", 2) + chain(name, 2)) for name in "ab"]
    for seq in both:
        assert pool.admit(seq, 0, 64)
    for seq in both:
        seq.computed = 64
        pool.publish(seq, 64)
    assert pool.used == 8
    for seq in both:
        pool.release(seq)
        assert pool.find(Sequence(0, 65, 1, seq.block_hashes)) == Found(4, 0)
    assert served(pool, Sequence(0, 64, 1, chain("x", 4))) == Found(0, 0)
    assert pool.find(Sequence(0, 65, 1, both[0].block_hashes)) == Found(2, 2), "the second copy of the common blocks"
    served(pool, Sequence(0, 128, 1, chain("y", 8)))
    assert pool.find(Sequence(0, 65, 1, both[1].block_hashes)) == Found(0, 4)


def test_evicted_blocks_are_forgotten_in_the_end(monkeypatch):
    monkeypatch.setattr(kv_cache, "MAX_EVICTED", 3)
    pool = BlockPool(2, prefix_caching=True)
    for name in "abcd":
        served(pool, Sequence(0, 32, 1, chain(name, 2)))
    found = {name: pool.find(Sequence(0, 33, 1, chain(name, 2))) for name in "abcd"}
    assert found == {"a": Found(0, 0), "b": Found(0, 1), "c": Found(0, 2), "d": Found(2, 0)}


def found_by_a_model(prompts: Iterable[tuple[str, ...]], capacity: int) -> list[Found]:
    """Return what each prompt finds that is served alone: one list of blocks, the least recently used first."""
    cached: OrderedDict[str, None] = OrderedDict()
    seen: set[str] = set()
    found = []
    for blocks in prompts:
        before = blocks[:-1]  # each prompt has one token more than its blocks, less than one block
        hits = next((i for i, block in enumerate(before) if block not in cached), len(before))
        known = next((i for i, block in enumerate(before) if block not in seen), len(before))
        found.append(Found(hits, known - hits))
        for block in before[:hits]:
            del cached[block]
        while len(cached) + len(blocks) > capacity:
            cached.popitem(last=False)
        cached.update(dict.fromkeys(reversed(before)))
        seen.update(before)
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(8, 24))
def test_prompts_one_after_another_find_what_a_plain_list_of_blocks_says(seed: int, capacity: int) -> None:
    rng = random.Random(seed)
    names = ["".join(rng.choices("ab", k=8)) for _ in range(6)]
    paths = [tuple(name[: i + 1] for i in range(8)) for name in names]
    prompts = [rng.choice(paths)[: rng.randint(1, 8)] for _ in range(40)]
    pool = BlockPool(capacity, prefix_caching=True)
    found = [served(pool, Sequence(0, 16 * len(b) - 15, 1, b[:-1])) for b in prompts]
    assert found == found_by_a_model(prompts, capacity)
    assert pool.used == 0


def test_a_prompt_finds_the_answer_before_it():
    """Its last token was never computed: 47 of the 48 tokens of prompt and answer are cached, which are two blocks."""
    pair = [SubmittedRequest(0, 20, 28, chain("a", 3)), SubmittedRequest(NS_PER_S, 60, 1, chain("a", 3))]
    requests = simulate(pair, H200, LLAMA, EngineOptions(prefix_caching=True)).requests
    assert requests[1].cached_tokens == 32


def test_a_prompt_finds_what_is_computed_in_the_same_step():
    pair = [SubmittedRequest(0, 100, 1, chain("a", 6))] * 2
    requests = simulate(pair, H200, LLAMA, EngineOptions(prefix_caching=True)).requests
    assert [request.cached_tokens for request in requests] == [0, 96]


requests = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 150), st.integers(1, 60), st.sampled_from("ab"), st.integers(0, 12)),
    min_size=2,
    max_size=14,
)


@settings(max_examples=80, deadline=None)
@given(requests, st.integers(224, 500), st.integers(16, 200), st.booleans())
def test_every_token_is_computed_once_or_was_cached_or_is_known_to_be_repeated(rows, capacity, budget, caching):
    engine = Engine(H200, LLAMA, EngineOptions(8, budget, caching, capacity))
    sequences = [
        Sequence(ms * NS_PER_MS, n, o, (chain(name, shared) + chain(f"{i} ", 14))[: (n + o) // 16])
        for i, (ms, n, o, name, shared) in enumerate(rows)
    ]
    computed = dict.fromkeys(map(id, sequences), 0)
    for step in run(engine, sequences):
        for seq, tokens in step.prefills:
            computed[id(seq)] += tokens
        for seq in step.decodes:
            computed[id(seq)] += 1
    pool = engine.scheduler.pool
    assert pool.used == 0
    for seq in sequences:
        rest = seq.input_tokens + seq.output_tokens - 1 - seq.cached_tokens
        if seq.preemptions:  # it may find more afterwards than it had computed by then
            assert computed[id(seq)] <= rest + seq.repeated_tokens
        else:
            assert (computed[id(seq)], seq.repeated_tokens) == (rest, 0)
        assert seq.cached_tokens + seq.evicted_tokens < seq.input_tokens


VOCABULARY = estimate_vocabulary("chat", 0.25, overhead=0)
SESSION_BLOCK = 64
"""Tokens of a block of a recorded session."""


def sessions(
    rng: random.Random, number: int, turns: int
) -> tuple[list[SubmittedRequest], dict[int, tuple[int, ...]], list[int]]:
    """Return requests of sessions, what each follows, and the prompt tokens that it shares with one that it follows.

    A turn repeats the prompt before it but for the tokens behind its last full block; now and then only its beginning.
    """
    submitted, after, shared = [], {}, []
    numbers = count()
    for _ in range(number):
        ids: list[int] = []
        for turn in range(turns):
            kept = len(ids) if rng.random() < 0.8 else rng.randint(0, len(ids))
            ids = ids[:kept] + [next(numbers) for _ in range(rng.randint(0 if kept else 1, 150))]
            tokens = len(ids) * SESSION_BLOCK + rng.randint(0, SESSION_BLOCK - 1)
            draws = draws_of(1, len(submitted))
            text = VOCABULARY.prompt(tokens, draws, ids, seed=1, block_tokens=SESSION_BLOCK)
            token_ids = tokenize(text)
            assert len(token_ids) == tokens
            if turn:
                after[len(submitted)] = (len(submitted) - 1,)
            shared.append(min(kept * SESSION_BLOCK, (tokens - 1) // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS))
            request = SubmittedRequest(
                rng.randint(0, 50) * NS_PER_MS, tokens, rng.randint(1, 40), block_hashes(token_ids)
            )
            submitted.append(request)
    return submitted, after, shared


@pytest.mark.parametrize("seed", range(3))
def test_while_nothing_is_evicted_a_turn_finds_exactly_the_full_blocks_of_the_turns_before(seed: int) -> None:
    submitted, after, shared = sessions(random.Random(seed), 6, turns=12)
    options = EngineOptions(prefix_caching=True)
    result = simulate(submitted, H200, LLAMA, options, after=after)
    assert max(request.input_tokens for request in submitted) > 30_000
    assert [request.cached_tokens for request in result.requests] == shared
    assert not any(request.evicted_tokens or request.repeated_tokens for request in result.requests)
    small = EngineOptions(prefix_caching=True, kv_cache_tokens=2 * max(request.input_tokens for request in submitted))
    evicting = simulate(submitted, H200, LLAMA, small, after=after).requests
    assert sum(request.evicted_tokens for request in evicting) > 100_000
    for request, tokens in zip(evicting, shared, strict=True):
        assert request.cached_tokens + request.evicted_tokens == tokens
