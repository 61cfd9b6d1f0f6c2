"""Draw sessions of coding agents: a graph of turns with contexts that grow, tools between, sub-agents, compactions.

Medians and spreads are about those of recorded sessions of coding agents; the sessions are drawn, none is a recording.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from loadgen.simulator.engine import KV_BLOCK_TOKENS, SubmittedRequest
from loadgen.units import NS_PER_S

MAX_TOKENS = 128_000
"""Longest prompt and answer together."""


@dataclass(frozen=True)
class AgentLoad:
    """Sessions, of which so many run at a time: on each lane one follows another."""

    sessions: int = 16
    at_a_time: int = 4
    turns: float = 40.0
    """Median turns of a session, sub-agents' not counted."""
    think_s: float = 3.0
    """Median time between an answer and the next turn: a tool's run."""
    system_tokens: tuple[int, int] = (1_000, 60_000)
    """Range of the tokens that a session begins with: tools and instructions, by the logarithm uniform."""


@dataclass(frozen=True)
class AgentTurn:
    """One request. session, task: numbers; task 0 is the session's main thread. after: rows of its parents."""

    session: int
    task: int
    think_ns: int
    after: tuple[int, ...]
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]

    @property
    def submitted(self) -> SubmittedRequest:
        return SubmittedRequest(self.think_ns, self.input_tokens, self.output_tokens, self.blocks)


@dataclass
class _Context:
    """A thread's text so far, by blocks. limit: tokens at which it is compacted to its first `kept` tokens."""

    tokens: int
    blocks: list[int]
    kept: int
    limit: int


@dataclass
class _Draft:
    """The turns drawn so far."""

    load: AgentLoad
    rng: np.random.Generator
    turns: list[AgentTurn] = field(default_factory=list)
    ids: "count[int]" = field(default_factory=count)

    def session(self, number: int, after: tuple[int, ...], think_ns: int) -> tuple[int, ...]:
        """Draw a session, and return the rows of its last turns."""
        low, high = np.log(self.load.system_tokens)
        thread = self._thread(int(np.exp(self.rng.uniform(low, high))), [])
        tasks = count(1)
        for turn in range(max(2, self._about(self.load.turns, 0.7))):
            self._grow(thread, self._about(800, 1.2) if turn else self._about(2_000, 0.8))
            after = (self._add(number, 0, thread, after, think_ns),)
            think_ns = round(NS_PER_S * self.rng.lognormal(np.log(self.load.think_s), 1.0))
            if self.rng.random() < 0.03:
                agents = [self._sub_agent(number, next(tasks), thread, after) for _ in range(self.rng.integers(1, 4))]
                after, think_ns = tuple(agents), NS_PER_S // 10
        return after

    def _sub_agent(self, session: int, task: int, parent: _Context, after: tuple[int, ...]) -> int:
        """Draw a sub-agent, and return the row of its last turn. It has the tools of its session, and its own text."""
        thread = self._thread(parent.kept, parent.blocks[: parent.kept // KV_BLOCK_TOKENS])
        think_ns = NS_PER_S // 10
        row = after[0]
        for _turn in range(max(2, self._about(7, 0.5))):
            self._grow(thread, self._about(600, 1.0))
            row = self._add(session, task, thread, (row,), think_ns)
            think_ns = round(NS_PER_S * self.rng.lognormal(np.log(self.load.think_s), 1.0))
        return row

    def _thread(self, kept: int, blocks: list[int]) -> _Context:
        thread = _Context(0, list(blocks), kept, int(self.rng.uniform(50_000, MAX_TOKENS - 5_000)))
        self._grow(thread, kept)
        return thread

    def _grow(self, thread: _Context, tokens: int) -> None:
        """Add text to a thread, now and then a long file; compact a thread that has become too long."""
        if thread.tokens and self.rng.random() < 0.04:
            tokens += self._about(8_000, 0.7)
        if thread.tokens + tokens > thread.limit:
            thread.tokens = thread.kept
            del thread.blocks[thread.kept // KV_BLOCK_TOKENS :]
            tokens = self._about(4_000, 0.5)
        self._lengthen(thread, min(thread.tokens + tokens, MAX_TOKENS - 5_000))

    def _add(self, session: int, task: int, thread: _Context, after: tuple[int, ...], think_ns: int) -> int:
        """Add a turn, and its answer to the thread; return its row."""
        output_tokens = min(max(self._about(235, 0.75), 8), 4_000)
        blocks = tuple(thread.blocks[: thread.tokens // KV_BLOCK_TOKENS])
        self.turns.append(AgentTurn(session, task, think_ns, after, thread.tokens, output_tokens, blocks))
        self._lengthen(thread, thread.tokens + output_tokens)
        return len(self.turns) - 1

    def _lengthen(self, thread: _Context, tokens: int) -> None:
        """Set the length of a thread, and give it the blocks that it lacks."""
        thread.tokens = tokens
        missing = tokens // KV_BLOCK_TOKENS + 1 - len(thread.blocks)
        thread.blocks += [next(self.ids) for _ in range(missing)]

    def _about(self, median: float, spread: float) -> int:
        return int(self.rng.lognormal(np.log(median), spread)) + 1


def agent_turns(load: AgentLoad, start_ns: int, seed: int) -> list[AgentTurn]:
    """Draw the turns of a load; those of a lane's first session begin within half a minute of `start_ns`."""
    draft = _Draft(load, np.random.default_rng(seed))
    lanes: list[tuple[int, ...]] = [()] * load.at_a_time
    for number in range(load.sessions):
        lane = number % load.at_a_time
        begin_ns = start_ns if not lanes[lane] else 0
        lanes[lane] = draft.session(number, lanes[lane], begin_ns + int(draft.rng.uniform(0, 30 * NS_PER_S)))
    return draft.turns


def parents(turns: Sequence[AgentTurn]) -> dict[int, tuple[int, ...]]:
    """Return the rows of the parents of each turn that has any."""
    return {row: turn.after for row, turn in enumerate(turns) if turn.after}
