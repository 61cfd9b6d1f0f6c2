"""A table of the engine's steps: when each one ran, which requests were in it, and how many tokens each computed.

`chunk_steps` builds it from a client's records, `span_steps` from the spans of a server.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadgen.units import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from loadgen.attribution.expert_reads import ExpertReads
    from loadgen.stats.arrays import Floats, Ints

Bools = NDArray[np.bool_]
Memberships = NDArray[np.int32]
Narrow = NDArray[np.float32]


class Members(NamedTuple):
    """The membership columns of EngineSteps, under the same names."""

    step: Memberships
    request: Memberships
    prefilling: Bools
    prefill: Narrow
    decode: Narrow
    context: Narrow


BURST_GAP_NS = 1 * NS_PER_MS
"""Chunks closer than this can be of one step: a server writes its streams one after another when a step ends."""


@dataclass(frozen=True)
class ForeignLoad:
    """Work of other clients, in K intervals between two reads of the engine's counters.

    edges_ns: int64[K+1]. members: float64[K], their streams in an average step. steps: float64[K], steps without any of
    our requests. prefill, decode: float64[K], tokens at no known instant. context: mean context of a decoded token,
    assumed to be the same as ours.
    alone_ns: float64[K], time in which only they ran; None: all time, where they worked, that no step of ours covers.
    """

    edges_ns: Ints
    members: Floats
    steps: Floats
    prefill: Floats
    decode: Floats
    context: float
    alone_ns: Floats | None = None


@dataclass(frozen=True)
class Speculation:
    """Speculative decoding: what a decode step does for a stream, on average over the run."""

    computed: float
    """Tokens that the step verifies, whatever becomes of them: those of the draft and one more."""
    emitted: float
    """Tokens that the stream gets from it."""
    counted: bool
    """True if the engine counted both; False if they are what a client's chunks suggest."""


@dataclass(frozen=True)
class EngineSteps:
    """S steps and M memberships (one request in one step).

    start_ns, end_ns: int64[S], in time order, not overlapping. iterations: float64[S], engine iterations in the step:
    more than one where prefill chunks ran that no stream got anything from.
    step, request: int32[M], rows of steps and of records. prefilling: bool[M]. prefill, decode: float32[M], tokens
    computed (cached prompt tokens are none; under speculative decoding `decode` are those emitted). context:
    float32[M], mean number of tokens before those. M is as large as the run's output, so these are the narrow types,
    and nothing of M rows is kept that can be computed again.
    unseen_ns: int64[k, 2], when a request was in flight whose work is unknown: it may have cost something.
    experts: the experts that these steps read; None for a dense model, in which every step reads all weights.
    """

    start_ns: Ints
    end_ns: Ints
    iterations: Floats
    step: Memberships
    request: Memberships
    prefilling: Bools
    prefill: Narrow
    decode: Narrow
    context: Narrow
    unseen_ns: Ints
    foreign: ForeignLoad | None = None
    guessed_ns: Ints = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """int64[k, 2]: when only other clients' requests ran, of which no more than counters is known: the steps there are
    guessed."""
    speculation: Speculation | None = None
    """Speculative decoding; None where a decode step computes as many tokens as it emits."""
    experts: ExpertReads | None = None
    pace: tuple[float, ...] | None = None
    """Seconds of each unit of a step's features, where the time that steps take has a price of its own; None where all
    energy follows from the work."""

    budget: int | None = None
    """Tokens that a step may compute, by the durations of the steps; None where too few prompts tell."""
    gpu_s: Floats | None = None
    """float64[S], seconds of the GPU that a step of one of several engines had: an instant in which steps of n engines
    run counts as 1/n of it for each. None: all of its duration."""
    parts: tuple[Part, ...] = ()
    """The engines that share a GPU, if these are the steps of several: not in time order then, and overlapping. Each
    engine has prices of its own."""

    @property
    def count(self) -> int:
        """S, the number of steps."""
        return len(self.start_ns)

    @property
    def seconds(self) -> Floats:
        """Return float64[S]: time of the GPU that each step took."""
        return (self.end_ns - self.start_ns) / NS_PER_S if self.gpu_s is None else self.gpu_s

    @property
    def engines(self) -> tuple[EngineSteps, ...]:
        """The steps of each engine."""
        return tuple(part.steps for part in self.parts) or (self,)

    @property
    def members_of_engines(self) -> list[tuple[EngineSteps, Ints | slice, slice]]:
        """The steps of each engine, the rows of their memberships, and their own places among all."""
        parts: list[tuple[EngineSteps, Ints | slice, slice]]
        parts = [(part.steps, part.rows, slice(part.first, part.first + part.steps.count)) for part in self.parts]
        return parts or [(self, slice(None), slice(None))]


class Part(NamedTuple):
    """The steps of one of several engines, and their places among those of all.

    rows: int64[m], of its memberships. first: its first step, which its other ones follow.
    """

    steps: EngineSteps
    rows: Ints
    first: int


def decoded_tokens(emitted: Narrow, speculation: Speculation | None) -> Narrow:
    """Return the tokens that decodes computed, float32[M], from those that they emitted."""
    return emitted if speculation is None else np.where(emitted > 0, np.float32(speculation.computed), np.float32(0))


def with_unknown_prompts(tokens: Floats, took_ns: Ints) -> Floats:
    """Return the tokens of prompts, with each one of unknown length (NaN) as long as its first token took to come, at
    the rate of the known ones, or else at one a millisecond."""
    known = ~np.isnan(tokens)
    rate = tokens[known].sum() / took_ns[known].sum() if took_ns[known].any() else 1 / NS_PER_MS
    return np.where(known, tokens, took_ns * rate)
