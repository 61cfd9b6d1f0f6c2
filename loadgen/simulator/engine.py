"""Continuous batching, one discrete step at a time, in virtual time. No clock, no I/O.

As in vLLM's V1 scheduler: running sequences first, in order of arrival, then waiting ones, under one token budget;
prompts are prefilled in chunks beside decodes, and admitted when all of their tokens fit; the KV cache is counted in
blocks (kv_cache.py); when it is full the latest arrival is preempted, gives its blocks back, and later computes prompt
and answer again, but for what the prefix cache still has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

from numpy.random import Generator, default_rng

from loadgen.simulator.cost_model import CostLaw, CounterOptions, Gpu, Load, SimulatedCounter, StepCost, kv_cache_tokens
from loadgen.simulator.experts import Experts, Routing
from loadgen.simulator.kv_cache import KV_BLOCK_TOKENS, Block, BlockPool
from loadgen.simulator.speculation import Acceptance, Drafted, Speculation
from loadgen.units import NS_PER_MS

if TYPE_CHECKING:
    from loadgen.energy.series import EnergySample
    from loadgen.energy_model.hardware import Hardware, Model
    from loadgen.telemetry.engine_sample import EngineSample


@dataclass(frozen=True, slots=True)
class EngineOptions:
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    prefix_caching: bool = False
    kv_cache_tokens: int | None = None
    """Capacity of the KV cache; None: as much as fits beside the weights."""
    tensor_parallel: int = 1
    """GPUs that share every layer."""
    speculation: Speculation | None = None
    """A draft model; None: every decode step computes one token of a sequence."""
    routing: Routing = Routing()  # noqa: RUF009
    """Choices of a mixture of experts; a dense model has none."""
    max_model_len: int | None = None
    """Longest prompt and answer together; None: the model's context. The KV cache has to hold them in any case."""

    def __post_init__(self) -> None:
        sizes = (self.max_num_seqs, self.max_num_batched_tokens, self.tensor_parallel, self.max_model_len)
        if min(size for size in sizes if size is not None) < 1:
            raise ValueError(
                "max_num_seqs, max_num_batched_tokens, tensor_parallel and max_model_len must be at least 1"
            )
        if self.max_num_batched_tokens < self.width:
            raise ValueError("max_num_batched_tokens must hold the draft tokens of a sequence and one more")

    @property
    def width(self) -> int:
        """Tokens that a decode step computes of a sequence."""
        return 1 if self.speculation is None else self.speculation.tokens + 1


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the engine, and its cost share so far."""

    arrival_ns: int
    input_tokens: int
    output_tokens: int
    """Tokens that it emits before it finishes."""
    block_hashes: tuple[Hashable, ...] = ()
    """One hash per full block of the prompt, and of the answer where its tokens are known, each of all tokens up to the
    block's end. Used by prefix caching only."""
    pooled: bool = False
    """True if its answer is made from the prompt's states: the one token that ends it is none that is generated."""
    computed: int = 0
    """Tokens in the KV cache."""
    emitted: int = 0
    prefill_remaining: int = 0
    """Tokens to compute before a prefill emits the next token; 0 in decode."""
    cached_tokens: int = 0
    """Prompt tokens that the prefix cache had at the first admission."""
    evicted_tokens: int = 0
    """Prompt tokens behind them that the prefix cache once had, and had evicted by then."""
    preemptions: int = 0
    preempted_at: int = 0
    """Most tokens that it had in the KV cache when it was preempted."""
    repeated_tokens: int = 0
    """Tokens of prompt and answer that it had in the KV cache before a preemption, and computed after it."""
    started_ns: int | None = None
    private_blocks: int = 0
    cached_blocks: list[Block] = field(default_factory=list)
    """Its leading blocks, which the prefix cache has."""
    prefill_j: float = 0.0
    decode_j: float = 0.0
    rejected_j: float = 0.0
    """Part of decode_j that draft tokens which were rejected added: their own work, no share of what a step costs
    anyway."""
    acceptance: tuple[float, float] | None = None
    """S and D_t of `speculation`; None before its first draft is verified."""
    experts: int = -1
    """Choice of experts of its last token; below 0 before the first one, and of a model without experts."""

    @property
    def finished(self) -> bool:
        return self.emitted >= self.output_tokens

    @property
    def room(self) -> int:
        """Capacity of its blocks in tokens."""
        return (self.private_blocks + len(self.cached_blocks)) * KV_BLOCK_TOKENS


class Batch(NamedTuple):
    """Sequences of one step."""

    prefills: list[tuple[Sequence, int]]
    """Each with the number of tokens that it computes."""
    decodes: list[Sequence]
    preempted: list[Sequence]


class Scheduler:
    """Chooses the work of the next step. `running` and `waiting` are in order of arrival."""

    def __init__(self, options: EngineOptions, pool: BlockPool) -> None:
        self.options, self.pool = options, pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def schedule(self, now_ns: int) -> Batch:
        batch = Batch([], [], [])
        budget = self._continue(batch, self.options.max_num_batched_tokens)
        if not batch.preempted:
            self._admit(batch, budget, now_ns)
        return batch

    def remove(self, seq: Sequence) -> None:
        """Remove a sequence that finished or was aborted; no effect if it was removed before."""
        if seq in self.running:
            self.running.remove(seq)
        elif seq in self.waiting:
            self.waiting.remove(seq)
        self.pool.release(seq)

    def _continue(self, batch: Batch, budget: int) -> int:
        prefills, decodes, _ = batch
        width = self.options.width
        i = 0
        while i < len(self.running) and budget > 0:
            seq = self.running[i]
            tokens = min(seq.prefill_remaining, budget) or width
            if tokens > budget:
                break
            if seq.computed + tokens > seq.room and not self._make_room(seq, tokens, batch.preempted):
                break
            if seq.prefill_remaining:
                self.pool.publish(seq, seq.computed + tokens)
                prefills.append((seq, tokens))
            else:
                decodes.append(seq)
            budget -= tokens
            i += 1
        return budget

    def _admit(self, batch: Batch, budget: int, now_ns: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.options.max_num_seqs:
            seq = self.waiting[0]
            hits, evicted = self.pool.find(seq)
            remaining = seq.input_tokens + seq.emitted - hits * KV_BLOCK_TOKENS
            tokens = min(remaining, budget)
            if seq.arrival_ns > now_ns or not self.pool.admit(seq, hits, tokens):
                return
            self.running.append(self.waiting.popleft())
            seq.prefill_remaining = remaining
            if seq.started_ns is None:
                seq.started_ns = now_ns
                seq.cached_tokens, seq.evicted_tokens = hits * KV_BLOCK_TOKENS, evicted * KV_BLOCK_TOKENS
            self.pool.publish(seq, seq.computed + tokens)
            batch.prefills.append((seq, tokens))
            budget -= tokens

    def _make_room(self, seq: Sequence, tokens: int, preempted: list[Sequence]) -> bool:
        """Preempt from the end, where no sequence is in the batch yet, until there is room.

        Return False if `seq` itself was preempted.
        """
        while not self.pool.grow(seq, tokens):
            victim = self.running.pop()
            self.pool.release(victim)
            victim.preempted_at = max(victim.preempted_at, victim.computed)
            victim.computed = victim.prefill_remaining = 0
            victim.preemptions += 1
            self.waiting.appendleft(victim)
            preempted.append(victim)
            if victim is seq:
                return False
        return True


class Step(NamedTuple):
    """One iteration. At `end_ns` all of `emitted` have new tokens: `started` their first, `finished` their last.

    Without `drafted` each has one; with it, those of `decodes` have as many as were accepted and one more.
    """

    start_ns: int
    duration_ns: int
    joules: float
    prefills: list[tuple[Sequence, int]]
    decodes: list[Sequence]
    emitted: list[Sequence]
    started: list[Sequence]
    finished: list[Sequence]
    preempted: list[Sequence]
    drafted: Drafted | None = None

    @property
    def end_ns(self) -> int:
        return self.start_ns + self.duration_ns

    @property
    def decoded_tokens(self) -> int:
        """Tokens that `decodes` emit."""
        return len(self.decodes) if self.drafted is None else self.drafted.emitted

    @property
    def tokens(self) -> int:
        """Prompt tokens computed and tokens decoded in this step, without those that were rejected."""
        return self.decoded_tokens + sum(tokens for _, tokens in self.prefills)


class Engine:
    """A model on one simulated GPU, or on a tensor-parallel group.

    The caller owns time: it asks for the start of the next step, and takes the step.
    """

    def __init__(
        self,
        hardware: Hardware,
        model: Model,
        options: EngineOptions = EngineOptions(),
        counter: CounterOptions = CounterOptions(),  # noqa: B008
        start_ns: int = 0,
        rng: Generator | None = None,
    ) -> None:
        """rng: draws the counter's noise; a child of it draws experts, or which draft tokens are accepted. Raises
        LoadgenError if the models do not fit."""
        rng = rng or default_rng(0)
        law = CostLaw(hardware, model, options.tensor_parallel)
        speculation = options.speculation
        draft = () if speculation is None else (speculation.draft,)
        capacity = options.kv_cache_tokens or kv_cache_tokens(law.hardware, model, *draft)
        pool = BlockPool(max(1, capacity // KV_BLOCK_TOKENS), options.prefix_caching)
        context = options.max_model_len or model.context_tokens
        self.max_model_len = min(context, pool.blocks * KV_BLOCK_TOKENS) - (options.width - 1)
        self.scheduler = Scheduler(options, pool)
        self.gpu = Gpu(law, SimulatedCounter("gpu:0", start_ns, counter, rng), start_ns)
        self._drafting: _Drafting | None = None
        if speculation is not None:
            self._drafting = _Drafting(speculation, hardware, options.tensor_parallel, rng.spawn(1)[0])
        gpus, is_mixture = options.tensor_parallel, model.experts > 1
        self.experts = Experts(model, options.routing, gpus, rng.spawn(1)[0]) if is_mixture else None

    def add(self, seq: Sequence) -> None:
        """Queue a sequence; call in order of arrival. Raises ValueError if it can never fit."""
        if seq.input_tokens < 1 or seq.output_tokens < 1:
            raise ValueError("a sequence has at least one input and one output token")
        if seq.input_tokens + seq.output_tokens > self.max_model_len:
            raise ValueError(
                f"{seq.input_tokens} input + {seq.output_tokens} output tokens are more than {self.max_model_len}"
            )
        self.scheduler.waiting.append(seq)

    def abort(self, seq: Sequence) -> None:
        """Remove a sequence at once. It keeps its cost share so far, including that of a step in progress."""
        self.scheduler.remove(seq)

    def next_start_ns(self) -> int | None:
        """Return the start of the next step: the end of the previous one, or the next arrival; None without work."""
        if self.scheduler.running:
            return self.gpu.now_ns
        if self.scheduler.waiting:
            return max(self.gpu.now_ns, self.scheduler.waiting[0].arrival_ns)
        return None

    def step(self, now_ns: int) -> Step | None:
        """Idle until `now_ns`, then run one step from there; return None if there is no sequence to run.

        Everything is decided at the start: sequences already have the state that they have at its end.
        """
        if now_ns < self.gpu.now_ns:
            raise ValueError("the last step has not ended yet")
        self.gpu.idle_until(now_ns)
        prefills, decodes, preempted = self.scheduler.schedule(now_ns)
        if not prefills and not decodes:
            return None
        load = step_load(prefills, decodes, self.scheduler.options.width)
        joules_before = self.gpu.step_j
        cost = self.gpu.run(load) if self.experts is None else self._run_experts(self.experts, load, prefills, decodes)
        drafted = None
        if self._drafting is None:
            _decode(decodes, cost)
        else:
            token_j = self._drafting.propose(self.gpu, load, prefills, decodes)
            drafted = self._drafting.verify(decodes, cost, token_j)
        completed = [seq for seq, tokens in prefills if self._prefill(seq, tokens, cost)]
        started = [seq for seq in completed if seq.emitted == 1]
        emitted = decodes + completed
        finished = [seq for seq in emitted if seq.emitted >= seq.output_tokens]
        for seq in finished:
            self.scheduler.remove(seq)
        duration_ns, joules = self.gpu.now_ns - now_ns, self.gpu.step_j - joules_before
        return Step(now_ns, duration_ns, joules, prefills, decodes, emitted, started, finished, preempted, drafted)

    def _run_experts(
        self, experts: Experts, load: Load, prefills: list[tuple[Sequence, int]], decodes: list[Sequence]
    ) -> StepCost:
        """Run a step of a mixture of experts, and add each sequence's share of their reads to its account."""
        reads = experts.reads(prefills, decodes, self.scheduler.options.width)
        cost = self.gpu.run(load._replace(expert_bytes=reads.read_bytes, waited_expert_bytes=reads.waited_bytes))
        for (seq, _), share in zip(prefills, reads.shares[: len(prefills)], strict=True):
            seq.prefill_j += share * cost.experts_j
        for seq, share in zip(decodes, reads.shares[len(prefills) :], strict=True):
            seq.decode_j += share * cost.experts_j
        return cost

    def _prefill(self, seq: Sequence, tokens: int, cost: StepCost) -> bool:
        """Compute `tokens` of a prefill; return True if that completed it and so emitted a token."""
        seq.prefill_j += cost.share_j(tokens, seq.computed)
        seq.repeated_tokens += max(0, min(tokens, seq.preempted_at - seq.computed))
        seq.computed += tokens
        seq.prefill_remaining -= tokens
        seq.emitted += not seq.prefill_remaining
        return not seq.prefill_remaining


def step_load(prefills: list[tuple[Sequence, int]], decodes: list[Sequence], width: int = 1) -> Load:
    """Sum the work of a step before it runs: n, C, A and K of the cost law. A decode computes `width` tokens."""
    context = sum([seq.computed for seq in decodes])
    tokens = width * len(decodes)
    pairs, kv_tokens = width * context + (width + 1) * tokens // 2, context + 2 * tokens
    for seq, chunk in prefills:
        tokens += chunk
        pairs += chunk * seq.computed + chunk * (chunk + 1) // 2
        kv_tokens += seq.computed + 2 * chunk
    return Load(len(prefills) + len(decodes), tokens, pairs, kv_tokens)


def _decode(decodes: list[Sequence], cost: StepCost) -> None:
    """Decode one token of each sequence. The shares are `cost.share_j(1, computed)`, which is linear in the context.

    This is the hot loop of the simulator.
    """
    base_j = cost.share_j(1, 0)
    context_j = cost.pair_j + cost.kv_token_j
    for seq in decodes:
        seq.decode_j += base_j + context_j * seq.computed
        seq.computed += 1
        seq.emitted += 1


class _Drafting:
    """The draft model beside the served one: its passes, and the fate of what it proposes."""

    def __init__(self, options: Speculation, hardware: Hardware, gpus: int, rng: Generator) -> None:
        self._tokens = options.tokens
        self._law = CostLaw(hardware, options.draft, gpus)
        self._acceptance = Acceptance(options, rng)

    def propose(self, gpu: Gpu, load: Load, prefills: list[tuple[Sequence, int]], decodes: list[Sequence]) -> float:
        """Run the draft model's passes of one step, add their cost to the sequences, and return what one token of a
        draft added. Called before the sequences change.

        The first pass computes every token of the step, each later one a token of each sequence.
        """
        width = self._tokens + 1
        context = sum([seq.computed + tokens for seq, tokens in prefills])
        context += sum([seq.computed for seq in decodes]) + width * len(decodes)
        n = load.sequences
        passes = [gpu.run(load, self._law)]
        for later in range(self._tokens - 1):
            read = context + n * later
            passes.append(gpu.run(Load(n, n, read + n, read + 2 * n), self._law))
        for seq, tokens in prefills:
            seq.prefill_j += _passes_j(passes, tokens, seq.computed)
        for seq in decodes:
            seq.decode_j += _passes_j(passes, width, seq.computed)
        return passes[-1].share_j(1, context // n) - passes[-1].equal_j

    def verify(self, decodes: list[Sequence], cost: StepCost, draft_token_j: float) -> Drafted:
        """Decode the accepted tokens of each sequence and one more, up to the end of its answer."""
        if not decodes:
            return Drafted(0, (0,) * self._tokens, 0)
        effects = [seq.acceptance or self._acceptance.sequence() for seq in decodes]
        accepts, drifts = self._acceptance.draw(*zip(*effects, strict=True))
        width, emitted = self._tokens + 1, 0
        for seq, (own, _), drift, accepted in zip(decodes, effects, drifts, accepts.sum(axis=1).tolist(), strict=True):
            share_j = cost.share_j(width, seq.computed)
            seq.decode_j += share_j
            seq.rejected_j += share_j - cost.share_j(accepted + 1, seq.computed)
            seq.rejected_j += draft_token_j * (self._tokens - accepted)
            seq.acceptance = (own, drift)
            tokens = min(accepted + 1, seq.output_tokens - seq.emitted)
            seq.computed += tokens
            seq.emitted += tokens
            emitted += tokens
        return Drafted(len(decodes), tuple(accepts.sum(axis=0).tolist()), emitted)


def _passes_j(passes: list[StepCost], tokens: int, context: int) -> float:
    """Return a sequence's share of the draft model's passes: `tokens` of it in the first, one in each later one."""
    joules = passes[0].share_j(tokens, context)
    for later, cost in enumerate(passes[1:]):
        joules += cost.share_j(1, context + tokens + later)
    return joules


class SubmittedRequest(NamedTuple):
    arrival_ns: int
    input_tokens: int
    output_tokens: int
    block_hashes: tuple[Hashable, ...] = ()


class _Arrivals:
    """Sequences that have not arrived yet, in order of arrival, and those that follow the end of others."""

    def __init__(self, sequences: list[Sequence], after: Mapping[int, Iterable[int]]) -> None:
        self._sequences = sequences
        self._number = {id(seq): number for number, seq in enumerate(sequences)}
        self._parents = [len(set(after.get(number, ()))) for number in range(len(sequences))]
        self._followers: list[list[int]] = [[] for _ in sequences]
        for number, parents in after.items():
            for parent in set(parents):
                self._followers[parent].append(number)
        self._due = [(seq.arrival_ns, n) for n, seq in enumerate(sequences) if not self._parents[n]]
        heapify(self._due)

    @property
    def next_ns(self) -> int | None:
        """Instant of the next arrival; None if no more is known."""
        return self._due[0][0] if self._due else None

    def until(self, t_ns: int) -> Iterator[Sequence]:
        """Yield the sequences that arrive until t_ns."""
        while self._due and self._due[0][0] <= t_ns:
            yield self._sequences[heappop(self._due)[1]]

    def ended(self, seq: Sequence, end_ns: int) -> None:
        """Let the sequences arrive that waited for this one last."""
        for number in self._followers[self._number[id(seq)]]:
            self._parents[number] -= 1
            if not self._parents[number]:
                follower = self._sequences[number]
                follower.arrival_ns += end_ns
                heappush(self._due, (follower.arrival_ns, number))

    def check_all_arrived(self) -> None:
        """Raise ValueError if requests wait for one another."""
        if any(self._parents):
            raise ValueError("requests wait for one another")


class SimulatedRequest(NamedTuple):
    """True instants and cost of one request; requests are in the order of the arrivals passed in."""

    arrival_ns: int
    started_ns: int
    token_ns: list[int]
    """Ends of the steps in which it got tokens: one in each, several under speculative decoding."""
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    preemptions: int
    prefill_j: float
    decode_j: float
    rejected_j: float = 0.0
    evicted_tokens: int = 0
    repeated_tokens: int = 0


@dataclass(slots=True)
class Totals:
    """Running totals over steps, counted as vLLM counts: a whole prompt, cached part included, at its first token."""

    iterations: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    def add(self, step: Step) -> None:
        """Add a step that has ended."""
        self.iterations += 1
        prefilled = len(step.emitted) - len(step.decodes) - sum([seq.pooled for seq in step.started])
        self.generation_tokens += prefilled + step.decoded_tokens
        self.preemptions += len(step.preempted)
        self.prompt_tokens += sum(seq.input_tokens for seq in step.started)
        self.cached_tokens += sum(seq.cached_tokens for seq in step.started)
        if step.drafted is not None:
            self.drafts += step.drafted.drafts
            self.draft_tokens += step.drafted.tokens
            self.accepted_tokens += sum(step.drafted.accepted)


@dataclass(frozen=True)
class SimulatedRun:
    """A whole run in virtual time. `counter` is what a meter would read; everything else is true."""

    requests: list[SimulatedRequest]
    counter: list[EnergySample]
    engine: list[EngineSample]
    """Samples as of the engine's /metrics: totals of the steps that ended by then, and the queues."""
    end_ns: int
    step_j: float
    idle_j: float


@dataclass(slots=True)
class _Recorder:
    """Engine samples on a grid of `period_ns`."""

    period_ns: int
    next_ns: int
    totals: Totals = field(default_factory=Totals)
    samples: list[EngineSample] = field(default_factory=list)

    def until(self, t_ns: int, running: int, waiting: int) -> None:
        """Record the grid instants strictly before t_ns."""
        while self.next_ns < t_ns:
            self.samples.append({"t_ns": self.next_ns, **asdict(self.totals), "running": running, "waiting": waiting})
            self.next_ns += self.period_ns


def simulate(
    arrivals: Iterable[SubmittedRequest],
    hardware: Hardware,
    model: Model,
    options: EngineOptions = EngineOptions(),
    counter: CounterOptions = CounterOptions(),  # noqa: B008
    *,
    after: Mapping[int, Iterable[int]] | None = None,
    tail_ns: int = 0,
    engine_period_ns: int = 100 * NS_PER_MS,
    seed: int = 0,
) -> SimulatedRun:
    """Serve `arrivals` from virtual instant 0 until all are complete, then idle for `tail_ns`.

    after: number of a request -> numbers of those that must have ended before it; its `arrival_ns` is then the time
    from the end of the last of them.
    seed: of the counter's noise, the choice of experts and which draft tokens are accepted. Raises ValueError for an
    arrival that can never fit, and for arrivals that wait for one another.
    """
    engine = Engine(hardware, model, options, counter, rng=default_rng(seed))
    sequences = [Sequence(*arrival) for arrival in arrivals]
    token_ns: dict[int, list[int]] = {id(seq): [] for seq in sequences}
    recorder = _Recorder(engine_period_ns, 0)
    pending = _Arrivals(sequences, after or {})
    while True:
        start_ns = engine.next_start_ns()
        if start_ns is None:
            if pending.next_ns is None:
                break
            start_ns = max(pending.next_ns, engine.gpu.now_ns)
        for seq in pending.until(start_ns):
            engine.add(seq)
        recorder.until(start_ns, 0, 0)
        step = engine.step(start_ns)
        assert step is not None, "a sequence that arrived and fits can always run"
        end_ns = step.end_ns
        recorder.until(end_ns, len(step.decodes) + len(step.prefills), len(engine.scheduler.waiting))
        recorder.totals.add(step)
        for seq in step.emitted:
            token_ns[id(seq)].append(end_ns)
        for seq in step.finished:
            pending.ended(seq, end_ns)
    pending.check_all_arrived()
    engine.gpu.idle_until(engine.gpu.now_ns + tail_ns)
    recorder.until(engine.gpu.now_ns + 1, 0, 0)
    requests = [_simulated_request(seq, token_ns[id(seq)]) for seq in sequences]
    gpu = engine.gpu
    return SimulatedRun(requests, list(gpu.counter.samples), recorder.samples, gpu.now_ns, gpu.step_j, gpu.idle_j)


def _simulated_request(seq: Sequence, token_ns: list[int]) -> SimulatedRequest:
    assert seq.started_ns is not None
    return SimulatedRequest(
        seq.arrival_ns,
        seq.started_ns,
        token_ns,
        seq.input_tokens,
        seq.emitted,
        seq.cached_tokens,
        seq.preemptions,
        seq.prefill_j,
        seq.decode_j,
        seq.rejected_j,
        seq.evicted_tokens,
        seq.repeated_tokens,
    )
