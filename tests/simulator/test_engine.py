"""The engine in virtual time: scheduling laws, and an oracle whose joules add up."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.simulator.cost_model import CounterOptions
from loadgen.simulator.engine import (
    Engine,
    EngineOptions,
    Sequence,
    SubmittedRequest,
    Totals,
    simulate,
    step_load,
)
from loadgen.units import NS_PER_MS, NS_PER_S
from support.engine_steps import run

H200 = read_hardware("h200")
LLAMA = read_model("llama-3.1-8b")
MOE = read_model("qwen3-30b-a3b")


def flush(engine: Engine) -> None:
    """Idle to the counter's next move, so that it shows everything."""
    period_ns = engine.gpu.counter.options.period_ns
    engine.gpu.idle_until(-(-engine.gpu.now_ns // period_ns) * period_ns)


arrivals = st.lists(
    st.builds(
        SubmittedRequest,
        arrival_ns=st.integers(0, 300 * NS_PER_MS),
        input_tokens=st.integers(1, 150),
        output_tokens=st.integers(1, 60),
        block_hashes=st.integers(0, 9).map(lambda n: tuple(f"prefix-{i}" for i in range(n))),
    ),
    min_size=1,
    max_size=14,
)
options = st.builds(
    EngineOptions,
    max_num_seqs=st.integers(1, 8),
    max_num_batched_tokens=st.integers(8, 256),
    prefix_caching=st.booleans(),
    kv_cache_tokens=st.integers(224, 900),
)


@settings(max_examples=80, deadline=None)
@given(arrivals, options, st.sampled_from([LLAMA, MOE]))
def test_every_joule_is_owed_once_and_the_counter_shows_all_of_them(arrivals, options, model):
    engine = Engine(H200, model, options)
    sequences = [Sequence(*arrival) for arrival in arrivals]
    steps = run(engine, sequences)
    flush(engine)
    owed_j = sum(seq.prefill_j + seq.decode_j for seq in sequences)
    assert math.isclose(owed_j, sum(step.joules for step in steps), rel_tol=1e-9)
    true_j = owed_j + engine.gpu.idle_j
    assert true_j - 0.0015 <= engine.gpu.counter.samples[-1].joules <= true_j + 1e-6


@settings(max_examples=80, deadline=None)
@given(arrivals, options)
def test_every_step_keeps_the_limits(arrivals, options):
    engine = Engine(H200, LLAMA, options)
    pool, scheduler = engine.scheduler.pool, engine.scheduler
    for arrival in sorted(arrivals):
        engine.add(Sequence(*arrival))
    while (start_ns := engine.next_start_ns()) is not None:
        step = engine.step(start_ns)
        assert step is not None
        batch = [*step.decodes, *(seq for seq, _ in step.prefills)]
        assert 1 <= len(set(batch)) == len(batch) <= options.max_num_seqs
        assert step.tokens <= options.max_num_batched_tokens
        assert 0 <= pool.used <= pool.blocks
        assert all(seq.computed <= seq.room for seq in scheduler.running)
        assert sum(seq.computed for seq in scheduler.running if not options.prefix_caching) <= pool.used * 16
        assert [s.arrival_ns for s in scheduler.running] == sorted(s.arrival_ns for s in scheduler.running)
    assert pool.used == 0, "all blocks came back"


@settings(max_examples=60, deadline=None)
@given(arrivals, options)
def test_everyone_gets_exactly_the_tokens_asked_for_and_none_before_arriving(arrivals, options):
    result = simulate(arrivals, H200, LLAMA, options, tail_ns=100 * NS_PER_MS)
    for arrival, request in zip(arrivals, result.requests, strict=True):
        assert len(request.token_ns) == request.output_tokens == arrival.output_tokens
        assert arrival.arrival_ns <= request.started_ns < request.token_ns[0]
        assert request.token_ns == sorted(set(request.token_ns))
        assert request.prefill_j > 0
        if request.preemptions == 0:  # else a second token may come out of a repeated prefill
            assert (request.decode_j > 0) == (arrival.output_tokens > 1)
    last = result.engine[-1]
    assert last["generation_tokens"] == sum(a.output_tokens for a in arrivals)
    assert last["prompt_tokens"] == sum(a.input_tokens for a in arrivals)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 300), st.integers(1, 40))
def test_equals_owe_equally(count, input_tokens, output_tokens):
    requests = simulate([SubmittedRequest(0, input_tokens, output_tokens)] * count, H200, LLAMA).requests
    for request in requests:
        assert math.isclose(request.prefill_j, requests[0].prefill_j, rel_tol=1e-9)
        assert math.isclose(request.decode_j, requests[0].decode_j, rel_tol=1e-9, abs_tol=1e-12)


def test_the_order_in_which_arrivals_are_listed_does_not_matter():
    some = [SubmittedRequest(i * 7 * NS_PER_MS, 50 + 30 * i, 10 + i) for i in range(9)]
    forward, backward = simulate(some, H200, LLAMA), simulate(some[::-1], H200, LLAMA)
    assert forward.requests == backward.requests[::-1]
    assert forward.counter == backward.counter


def test_who_is_alone_owes_all():
    result = simulate([SubmittedRequest(0, 700, 20)], H200, LLAMA)
    (only,) = result.requests
    assert math.isclose(only.prefill_j + only.decode_j, result.step_j, rel_tol=1e-12)


def test_waiting_costs_nothing_and_what_was_used_stays_owed():
    engine = Engine(H200, LLAMA, EngineOptions(max_num_seqs=1))
    first, queued = Sequence(0, 100, 50), Sequence(0, 100, 50)
    engine.add(first)
    engine.add(queued)
    for _ in range(5):
        engine.step(engine.gpu.now_ns)
    engine.abort(queued)
    owed_j = first.prefill_j + first.decode_j
    engine.abort(first)
    assert (queued.prefill_j, queued.decode_j) == (0, 0)
    assert engine.next_start_ns() is None
    engine.gpu.idle_until(engine.gpu.now_ns + NS_PER_S)
    assert owed_j == first.prefill_j + first.decode_j > 0
    assert math.isclose(owed_j, engine.gpu.step_j)
    assert engine.scheduler.pool.used == 0


def test_a_finished_request_owes_nothing_for_later_steps():
    short, long = Sequence(0, 64, 3), Sequence(0, 64, 200)
    engine = Engine(H200, LLAMA)
    engine.add(short)
    engine.add(long)
    while not short.finished:
        engine.step(engine.gpu.now_ns)
    owed_j = short.prefill_j + short.decode_j
    run(engine, [])
    assert long.finished
    assert short.prefill_j + short.decode_j == owed_j


def test_preemption_takes_the_latest_arrival_which_pays_its_prefill_again():
    both = [SubmittedRequest(0, 96, 60), SubmittedRequest(1, 96, 60)]
    tight = simulate(both, H200, LLAMA, EngineOptions(kv_cache_tokens=240), tail_ns=NS_PER_S)
    roomy = simulate(both, H200, LLAMA)
    assert [r.preemptions for r in roomy.requests] == [0, 0]
    assert [r.preemptions for r in tight.requests] == [0, 1]
    assert tight.requests[1].prefill_j > 1.5 * roomy.requests[1].prefill_j
    assert tight.requests[0].token_ns[-1] < tight.requests[1].token_ns[-1]
    assert tight.engine[-1]["preemptions"] == 1
    assert tight.engine[-1]["prompt_tokens"] == 192, "a prompt counts once, however often it is computed"


def test_a_preempted_sequence_computes_prompt_and_answer_again():
    engine = Engine(H200, LLAMA, EngineOptions(kv_cache_tokens=240))
    sequences = [Sequence(0, 96, 60), Sequence(1, 96, 60)]
    steps = run(engine, sequences)
    victim = sequences[1]
    prefilled = [(i, tokens) for i, step in enumerate(steps) for seq, tokens in step.prefills if seq is victim]
    at = next(i for i, step in enumerate(steps) if victim in step.preempted)
    emitted_before = sum(victim in step.emitted for step in steps[:at])
    assert sum(tokens for i, tokens in prefilled if i < at) == 96
    assert sum(tokens for i, tokens in prefilled if i > at) == 96 + emitted_before


def test_long_prompts_are_prefilled_in_chunks_beside_decodes():
    engine = Engine(H200, LLAMA, EngineOptions(max_num_batched_tokens=512))
    talker, reader = Sequence(0, 10, 30), Sequence(1, 2000, 2)
    steps = run(engine, [talker, reader])
    chunks = [tokens for step in steps for seq, tokens in step.prefills if seq is reader]
    assert chunks == [511, 511, 511, 467]
    mixed = [step for step in steps if step.decodes and step.prefills]
    assert len(mixed) == 4
    assert all(talker in step.emitted for step in mixed)


def test_prefix_caching_skips_whole_blocks_but_never_the_last_token():
    prefix = tuple(f"block-{i}" for i in range(6))
    pair = [
        SubmittedRequest(0, 96, 4, prefix),
        SubmittedRequest(NS_PER_S, 96, 4, prefix),
        SubmittedRequest(2 * NS_PER_S, 120, 4, prefix),
    ]
    cold = simulate(pair, H200, LLAMA)
    warm = simulate(pair, H200, LLAMA, EngineOptions(prefix_caching=True), tail_ns=NS_PER_S)
    assert [r.cached_tokens for r in cold.requests] == [0, 0, 0]
    assert [r.cached_tokens for r in warm.requests] == [0, 80, 96]
    assert warm.requests[1].prefill_j < cold.requests[1].prefill_j
    assert warm.engine[-1]["cached_tokens"] == 176


def test_cached_prefixes_make_room_when_it_is_needed():
    crowd = [SubmittedRequest(i * NS_PER_S, 160, 4, tuple(f"{i}-{b}" for b in range(10))) for i in range(5)]
    result = simulate(crowd, H200, LLAMA, EngineOptions(prefix_caching=True, kv_cache_tokens=256))
    assert [r.preemptions for r in result.requests] == [0] * 5


def test_what_can_never_fit_is_refused():
    engine = Engine(H200, LLAMA, EngineOptions(kv_cache_tokens=160))
    with pytest.raises(ValueError, match="more than 160"):
        engine.add(Sequence(0, 150, 11))
    with pytest.raises(ValueError, match="at least one"):
        engine.add(Sequence(0, 0, 1))


@pytest.mark.parametrize(
    ("options", "longest"),
    [
        (EngineOptions(), 131_072),
        (EngineOptions(max_model_len=200_000), 200_000),
        (EngineOptions(max_model_len=1000), 1000),
        (EngineOptions(max_model_len=1000, kv_cache_tokens=100), 96),
    ],
)
def test_the_context_is_the_models_unless_another_is_asked_for_and_never_more_than_the_cache(options, longest):
    assert Engine(H200, LLAMA, options).max_model_len == longest


def test_time_does_not_run_backwards():
    engine = Engine(H200, LLAMA)
    engine.add(Sequence(0, 10, 3))
    engine.step(0)
    with pytest.raises(ValueError, match="not ended"):
        engine.step(1)


def test_nothing_starts_before_it_arrives():
    engine = Engine(H200, LLAMA)
    engine.add(Sequence(5 * NS_PER_S, 10, 1))
    assert engine.next_start_ns() == 5 * NS_PER_S
    assert engine.step(4 * NS_PER_S) is None
    assert engine.step(5 * NS_PER_S) is not None


@pytest.mark.parametrize(
    ("prefills", "decodes", "load"),
    [
        ([], [10], (1, 1, 11, 12)),  # one query over 10 cached keys and itself; 10 tokens read, one written and read
        ([(0, 4)], [], (1, 4, 10, 8)),  # 1 + 2 + 3 + 4 pairs
        ([(6, 4)], [], (1, 4, 34, 14)),  # the same chunk after 6 tokens: 4 x 6 pairs more, 6 tokens read
        ([(0, 4), (6, 4)], [10, 0], (4, 10, 56, 36)),
    ],
)
def test_the_load_of_a_step_is_that_of_its_sequences(prefills, decodes, load):
    chunks = [(Sequence(0, 100, 9, computed=context), tokens) for context, tokens in prefills]
    assert step_load(chunks, [Sequence(0, 100, 9, computed=context) for context in decodes])[:4] == load


def test_a_follower_arrives_a_while_after_the_last_of_its_parents_has_ended():
    """Request 3 waits for both 1 and 2, which follow 0; each of them thinks first."""
    think_ns = [0, 40 * NS_PER_MS, 90 * NS_PER_MS, 7 * NS_PER_MS]
    arrivals = [SubmittedRequest(t_ns, 100, tokens) for t_ns, tokens in zip(think_ns, (5, 30, 10, 5), strict=True)]
    requests = simulate(arrivals, H200, LLAMA, after={1: (0,), 2: (0,), 3: (1, 2)}).requests
    end_ns = [request.token_ns[-1] for request in requests]
    for number, parents in ((1, (0,)), (2, (0,)), (3, (1, 2))):
        assert requests[number].arrival_ns == max(end_ns[parent] for parent in parents) + think_ns[number]
        assert requests[number].started_ns >= requests[number].arrival_ns


def test_requests_that_wait_for_one_another_are_refused():
    with pytest.raises(ValueError, match="wait for one another"):
        simulate([SubmittedRequest(0, 10, 5)] * 3, H200, LLAMA, after={1: (2,), 2: (1,)})


def test_engine_samples_are_the_totals_of_the_steps_that_ended_by_then():
    some = [SubmittedRequest(i * 40 * NS_PER_MS, 80, 30) for i in range(6)]
    result = simulate(some, H200, LLAMA, tail_ns=NS_PER_S)
    engine = Engine(H200, LLAMA)
    steps = run(engine, [Sequence(*arrival) for arrival in some])
    assert [sample["t_ns"] for sample in result.engine] == [i * 100 * NS_PER_MS for i in range(len(result.engine))]
    for sample in result.engine:
        totals = Totals()
        for step in steps:
            if step.end_ns <= sample["t_ns"]:
                totals.add(step)
        assert (sample["iterations"], sample["generation_tokens"]) == (totals.iterations, totals.generation_tokens)
        assert sample["prompt_tokens"] == totals.prompt_tokens


def test_a_simulation_is_the_same_every_time_and_its_seed_moves_only_the_noise():
    some = [SubmittedRequest(i * 30 * NS_PER_MS, 100, 20) for i in range(10)]
    noisy = CounterOptions(noise=0.02)
    one, again, other = (simulate(some, H200, LLAMA, counter=noisy, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.requests == other.requests
    assert one.counter != other.counter


STEPS = [
    (
        "a prompt fills the budget, its rest shares a step with the next prompt",
        EngineOptions(max_num_batched_tokens=8),
        {"a": (0, 10, 2), "b": (0, 5, 1)},
        ["a8 | | ", "a2 b5 | | a b", " | a | a"],
    ),
    (
        "a prompt of exactly the budget leaves none for the next",
        EngineOptions(max_num_batched_tokens=8),
        {"a": (0, 8, 1), "b": (0, 1, 1)},
        ["a8 | | a", "b1 | | b"],
    ),
    (
        "a prompt one token longer than the budget needs two steps",
        EngineOptions(max_num_batched_tokens=8),
        {"a": (0, 9, 1)},
        ["a8 | | ", "a1 | | a"],
    ),
    (
        "a full batch admits none until a sequence finishes",
        EngineOptions(max_num_seqs=1),
        {"a": (0, 3, 2), "b": (0, 3, 1)},
        ["a3 | | a", " | a | a", "b3 | | b"],
    ),
    (
        "decodes use the budget before waiting prompts do",
        EngineOptions(max_num_batched_tokens=2),
        {"a": (0, 1, 3), "b": (0, 1, 3), "c": (0, 1, 1)},
        ["a1 b1 | | a b", " | a b | a b", " | a b | a b", "c1 | | c"],
    ),
    (
        "a prompt is chunked beside decodes of earlier and admission of later sequences",
        EngineOptions(max_num_batched_tokens=4),
        {"a": (0, 2, 4), "b": (0, 7, 1), "c": (0, 2, 1), "d": (0, 1, 1)},
        ["a2 b2 | | a", "b3 | a | a", "b2 c1 | a | a b", "c1 d1 | a | a c d"],
    ),
    (
        "without a free block the latest arrival is preempted, and computes prompt and answer again",
        EngineOptions(kv_cache_tokens=64),
        {"a": (0, 32, 5), "b": (1, 16, 2)},
        ["a32 | | a", "b16 | a | a b", " | a | a -b", " | a | a", " | a | a", "b17 | | b"],
    ),
]


@pytest.mark.parametrize(("rule", "options", "requests", "expected"), STEPS, ids=[row[0] for row in STEPS])
def test_steps_prefills_decodes_and_emitted(rule, options, requests, expected):
    """Each row is `prefills with tokens | decodes | emitted`; a minus marks a preempted sequence."""
    named = {name: Sequence(*lengths) for name, lengths in requests.items()}
    name_of = {id(seq): name for name, seq in named.items()}
    rows = []
    for step in run(Engine(H200, LLAMA, options), list(named.values())):
        prefills = " ".join(f"{name_of[id(seq)]}{tokens}" for seq, tokens in step.prefills)
        emitted = [name_of[id(seq)] for seq in step.emitted] + [f"-{name_of[id(seq)]}" for seq in step.preempted]
        rows.append(f"{prefills} | {' '.join(name_of[id(seq)] for seq in step.decodes)} | {' '.join(emitted)}")
    assert [row.replace("|  |", "| |") for row in rows] == expected


@pytest.mark.parametrize("field", ["max_num_seqs", "max_num_batched_tokens", "tensor_parallel", "max_model_len"])
def test_engine_options_start_at_one(field):
    EngineOptions(**{field: 1})
    with pytest.raises(ValueError, match="must be at least 1"):
        EngineOptions(**{field: 0})
