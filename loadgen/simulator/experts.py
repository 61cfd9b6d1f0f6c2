"""Which experts a step of a mixture of experts reads, and for whom. Drawn for each token; no formula of their number.

A router chooses k of N experts for a token in each layer. GROUPS groups of layers choose independently here; the layers
of a group choose alike. In each group the experts have a Zipf-like popularity (probability as rank^-skew) in an order
of their own, and k different ones are drawn by it (Gumbel top-k, Kool et al., arXiv:1903.06059). A token takes the
experts of the token before it in its sequence with probability `repeat`, as neighbouring tokens do in trained models
(Jiang et al., arXiv:2401.04088, section 5). A prefill draws for all its tokens: a long chunk reads nearly all experts.

A step reads each expert that one of its tokens chose, once. Sequences are the players of that game: an expert is read
as soon as one of the sequences that chose it is in the step, so the Shapley value of the read is an equal part for each
of those sequences, and nothing for the others (the airport game with one runway: Littlechild and Owen, Management
Science 20(3), 1973). What a sequence pays is the sum over the experts that it chose.

With expert parallelism each GPU of a group holds a part of the experts, whole, and the step waits for the GPU that
reads the largest part. That wait is a cost of the step's reads, and is spread over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from loadgen.energy_model.hardware import Model
    from loadgen.simulator.engine import Sequence
    from loadgen.stats.arrays import Floats

GROUPS = 8
"""Groups of layers that choose independently of each other."""

CHOICES = 2048
"""Choices of k experts in each group, drawn beforehand: a token takes one of these."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Parameters of the choices that a mixture of experts makes for its tokens."""

    skew: float = 0.5
    """Exponent of the experts' popularity by rank; 0: all are equally popular."""
    repeat: float = 0.3
    """Probability that a token takes the experts of the token before it."""
    parallel: bool = False
    """True if each GPU of a group holds whole experts, as vLLM's --enable-expert-parallel does, instead of a slice of
    every expert."""

    def __post_init__(self) -> None:
        if self.skew < 0 or not 0 <= self.repeat < 1:
            raise ValueError("the skew of experts must be at least 0, their repeat at least 0 and below 1")


class ExpertReads(NamedTuple):
    """Experts that a step reads. Bytes over all GPUs."""

    read_bytes: float
    waited_bytes: float
    """Bytes of the GPU that reads most, times the GPUs: what the step waits for. As many as `read_bytes` if all GPUs
    read the same."""
    shares: list[float]
    """Share of the reads of each sequence, prefills first; their sum is 1."""


class Experts:
    """The routers of a mixture of experts, and the experts that the tokens of a step choose."""

    def __init__(self, model: Model, routing: Routing, gpus: int, rng: np.random.Generator) -> None:
        self.repeat, self._rng = routing.repeat, rng
        columns = GROUPS * model.experts
        self._expert_bytes = model.expert_parameters * model.bytes_per_parameter / columns
        self._gpu = (
            np.arange(columns) % model.experts * gpus // model.experts if routing.parallel and gpus > 1 else None
        )
        log_popularity = -routing.skew * np.log(np.arange(1, model.experts + 1))
        self.choices = np.zeros((CHOICES, columns), np.float32)
        """1 where a choice has an expert, 0 elsewhere."""
        for group in range(GROUPS):
            keys = rng.permutation(log_popularity) + rng.gumbel(size=(CHOICES, model.experts))
            chosen = np.argpartition(-keys, model.experts_per_token - 1, axis=1)[:, : model.experts_per_token]
            np.put_along_axis(self.choices, group * model.experts + chosen, 1.0, axis=1)

    def reads(self, prefills: list[tuple[Sequence, int]], decodes: list[Sequence], width: int = 1) -> ExpertReads:
        """Draw the experts of a step's tokens, `width` of them for each decode. Each sequence keeps its last choice."""
        chunks = prefills if width == 1 else [*prefills, *((seq, width) for seq in decodes)]
        rows = [self._chunk(seq, tokens)[np.newaxis] for seq, tokens in chunks]
        chosen = np.concatenate(rows if width > 1 else [*rows, self._decode(decodes)])
        users = chosen.sum(axis=0)
        read = users > 0
        count = int(np.count_nonzero(read))
        parts = (chosen @ np.divide(1.0, users, out=np.zeros_like(users), where=read)).astype(np.float64)
        waited = float(count)
        if self._gpu is not None:
            by_gpu = np.bincount(self._gpu, read)
            waited = float(by_gpu.max() * len(by_gpu))
        return ExpertReads(count * self._expert_bytes, waited * self._expert_bytes, (parts / parts.sum()).tolist())

    def _decode(self, decodes: list[Sequence]) -> Floats:
        choice = np.array([seq.experts for seq in decodes], dtype=np.intp)
        fresh = (self._rng.random(len(choice)) >= self.repeat) | (choice < 0)
        choice[fresh] = self._rng.integers(CHOICES, size=np.count_nonzero(fresh))
        for seq, number in zip(decodes, choice.tolist(), strict=True):
            seq.experts = number
        return np.asarray(self.choices[choice])

    def _chunk(self, seq: Sequence, tokens: int) -> Floats:
        """Return which experts a chunk of tokens chooses: of its first token, and of those that do not repeat."""
        fresh = 1 + int(self._rng.binomial(tokens - 1, 1 - self.repeat))
        choices = self._rng.integers(CHOICES, size=fresh)
        seq.experts = int(choices[-1])
        return np.asarray(self.choices[np.unique(choices)].max(axis=0))
