"""Reads of experts: how many a step of a mixture of experts reads, and whose they are.

A token chooses each expert with some probability p. Tokens that choose independently read the share 1 - (1 - p)^T of
the experts of that p in a step of T tokens: concave in T, and 1 for a long prefill. Popular experts and rare ones
differ in p: as in counts of species, p is taken as log-normal (Preston, Ecology 29(3), 1948), with the mean k/N of a
router that chooses k of N. The cost of a step is then

    c + e D(T) + sum(a_i)        D(T) = E_p[1 - (1 - p)^T]

and a dense model is the case of e = 0. D is shared, and its game is, for each expert, "it is read if a member that
chose it is there": the Shapley value of that is an equal part for each of those members (the airport game with one
runway: Littlechild and Owen, Management Science 20(3), 1973). Member j, with t_j tokens, chooses an expert with
probability q_j = 1 - (1 - p)^t_j, so the expected part of member i is, over the number X of other members that chose
it too,

    E_p[q_i E[1 / (1 + X)]] = E_p[q_i integral over u in 0..1 of prod_{j != i} (1 - q_j u)]

which is D / n in a step of n equal members. It is also the Shapley value of the game D(sum of the members' t).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from loadgen.attribution.engine_steps import decoded_tokens

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import EngineSteps
    from loadgen.stats.arrays import Floats, Ints

_NORMAL_NODES, _NORMAL_WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_NORMAL_WEIGHTS = _NORMAL_WEIGHTS / _NORMAL_WEIGHTS.sum()
_UNIT_NODES, _UNIT_WEIGHTS = (0.5 * part for part in np.polynomial.legendre.leggauss(16))
_UNIT_NODES = _UNIT_NODES + 0.5

_STEPS_AT_ONCE = 4096
"""Steps with a prefill that are divided at once: an array of a few MB for each."""


class ExpertReads(msgspec.Struct, frozen=True):
    """Reads of experts in the steps of a model."""

    chosen_share: float
    """Mean probability, over the experts, that a token chooses one: k/N for a router that chooses k of N."""
    spread: float
    """Standard deviation of the logarithm of that probability; 0: all experts are equally popular."""
    hidden_tokens: float | None = None
    """h: tokens that are computed while all experts are read; None where no step computes more than that."""

    @property
    def points(self) -> tuple[Floats, Floats]:
        """Return probabilities and their weights, which sum to 1."""
        p = self.chosen_share * np.exp(self.spread * _NORMAL_NODES - self.spread**2 / 2)
        return np.minimum(p, 1 - 1e-9), _NORMAL_WEIGHTS

    def share(self, tokens: Floats) -> Floats:
        """Return D: the expected share of the experts that a step of so many tokens reads."""
        share = np.zeros(len(tokens))
        for p, weight in zip(*self.points, strict=True):
            share -= weight * np.expm1(tokens * np.log1p(-p))
        return share

    def computed(self, tokens: Floats, reads: Floats) -> Floats:
        """Return the tokens that are computed after the reads of a step, max(0, T - h D)."""
        if self.hidden_tokens is None:
            return np.zeros(len(tokens))
        return np.maximum(tokens - self.hidden_tokens * reads, 0.0)


def step_tokens(steps: EngineSteps, foreign_members: Floats) -> Floats:
    """Return float64[S]: the tokens that each step computes, other clients' among them."""
    decoded = decoded_tokens(steps.decode, steps.speculation)
    return np.asarray(np.bincount(steps.step, decoded + steps.prefill, minlength=steps.count) + foreign_members)


def step_reads(steps: EngineSteps, experts: ExpertReads, foreign_members: Floats) -> Floats:
    """Return float64[S]: how often each step reads all experts, D for each iteration."""
    return np.asarray(steps.iterations * experts.share(step_tokens(steps, foreign_members)))


def step_computed(steps: EngineSteps, experts: ExpertReads, foreign_members: Floats) -> Floats:
    """Return float64[S]: the tokens that each step computes after its reads of experts."""
    return experts.computed(step_tokens(steps, foreign_members), step_reads(steps, experts, foreign_members))


def member_computed(steps: EngineSteps, experts: ExpertReads, foreign_members: Floats) -> Floats:
    """Return float64[M]: each member's part of `step_computed`, in proportion to its tokens."""
    computed, tokens = step_computed(steps, experts, foreign_members), step_tokens(steps, foreign_members)
    share = np.divide(computed, tokens, out=np.zeros(steps.count), where=tokens > 0)
    return np.asarray(share[steps.step] * (decoded_tokens(steps.decode, steps.speculation) + steps.prefill))


def member_reads(steps: EngineSteps, experts: ExpertReads, foreign_members: Floats) -> Floats:
    """Return float64[M]: each member's part of `step_reads`.

    The parts of a step's members and of other clients sum to it. All members that decode in a step count as equal.
    """
    decodes = steps.decode > 0
    size = np.bincount(steps.step[decodes], minlength=steps.count) + foreign_members
    decoded = decoded_tokens(steps.decode, steps.speculation)
    tokens = np.bincount(steps.step, decoded, minlength=steps.count) + foreign_members
    each = np.divide(tokens, size, out=np.ones(steps.count), where=size > 0)
    reads = step_reads(steps, experts, foreign_members)
    of_decode = np.divide(reads, size, out=np.zeros(steps.count), where=size > 0)
    chunks = np.flatnonzero(steps.prefill > 0)
    chunks = chunks[np.argsort(steps.step[chunks], kind="stable")]
    mixed = np.unique(steps.step[chunks])
    of_chunk = np.zeros(len(chunks))
    for begin in range(0, len(mixed), _STEPS_AT_ONCE):
        chosen = mixed[begin : begin + _STEPS_AT_ONCE]
        rows = slice(*np.searchsorted(steps.step[chunks], [chosen[0], chosen[-1] + 1]).tolist())
        step, prompt = np.searchsorted(chosen, steps.step[chunks[rows]]), steps.prefill[chunks[rows]].astype(np.float64)
        of_decode[chosen], of_chunk[rows] = _parts(experts, size[chosen], each[chosen], step, prompt, reads[chosen])
    parts = np.where(decodes, of_decode[steps.step], 0.0)
    parts[chunks] = of_chunk
    return parts


def _parts(
    experts: ExpertReads, decoding: Floats, each: Floats, step: Ints, chunk: Floats, total: Floats
) -> tuple[Floats, Floats]:
    """Return the part of each decode of s steps, and of each of their prefill chunks. step: the step of each chunk.

    The parts are scaled to sum to `total`.
    """
    of_decode, of_chunk = np.zeros(len(decoding)), np.zeros(len(chunk))
    for p, weight in zip(*experts.points, strict=True):
        stays = np.log1p(-p)
        q_decode, q_chunk = (-np.expm1(tokens * stays) for tokens in (each, chunk))
        for u, width in zip(_UNIT_NODES, _UNIT_WEIGHTS, strict=True):
            log_chunk = np.log1p(-q_chunk * u)
            absent = decoding * np.log1p(-q_decode * u)
            absent += np.bincount(step, log_chunk, minlength=len(decoding))
            absent = weight * width * np.exp(absent)
            of_decode += absent * q_decode / (1 - q_decode * u)
            of_chunk += absent[step] * q_chunk * np.exp(-log_chunk)
    summed = of_decode * decoding + np.bincount(step, of_chunk, minlength=len(decoding))
    scale = np.divide(total, summed, out=np.zeros(len(total)), where=summed > 0)
    return of_decode * scale, of_chunk * scale[step]
