"""Speculative decoding: a draft model proposes tokens, the served model verifies them in one step. No clock, no I/O.

As in vLLM's V1 engine with a draft model: a step verifies the k tokens that were proposed for each decoding sequence
and computes one more, k + 1 tokens each, of which the accepted ones and one are emitted together; the draft model then
runs over all tokens of the step, and k - 1 times more with one token of each sequence. A rejected token was computed
for nothing: its place in the KV cache is overwritten.

Acceptance (a probit model with random effects): token j of a sequence, counted from 0, is accepted if those before it
were and if  sqrt(1 + u^2 + v^2) q(a_j) + u S + v D_t + N > 0.  q is the normal quantile and a_j the chance of position
j over all sequences. S is the sequence's own, standard normal; D_t follows the steps of the sequence, an autoregression
of first order with unit variance; N is new for each token.
"""

from __future__ import annotations

from collections.abc import Sequence as Collection
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from loadgen.energy_model.hardware import Model


@dataclass(frozen=True, slots=True)
class Speculation:
    """A draft model, and how well its tokens fit what the served model would have said."""

    draft: Model
    acceptance: tuple[float, ...]
    """Chance of each draft position to be accepted, over all sequences, if those before it are whatever they are. Its
    length is the number of draft tokens."""
    between: float = 0.5
    """u: how much sequences differ, in standard deviations of N."""
    within: float = 0.5
    """v: how much one sequence varies over its steps."""
    persistence: float = 0.9
    """Correlation of D_t from one step to the next."""

    def __post_init__(self) -> None:
        if not self.acceptance or not all(0 < chance < 1 for chance in self.acceptance):
            raise ValueError("speculative decoding needs a chance above 0 and below 1 for each draft token")
        if self.draft.experts > 1:
            raise LoadgenError(f"{self.draft.name} is a mixture of experts: choose a dense model as the draft model")

    @property
    def tokens(self) -> int:
        """k, the draft tokens that a step verifies for a sequence."""
        return len(self.acceptance)


class Drafted(NamedTuple):
    """Outcome of the drafts that one step verified."""

    drafts: int
    """Sequences that a draft was verified for."""
    accepted: tuple[int, ...]
    """Accepted tokens at each position, those past the end of an answer included, as vLLM counts them."""
    emitted: int
    """Tokens that the decoding sequences emitted."""

    @property
    def tokens(self) -> int:
        """Draft tokens that were verified."""
        return self.drafts * len(self.accepted)


class Acceptance:
    """Draws how many tokens of each draft are accepted. The two effects of a sequence are kept in it by the caller."""

    def __init__(self, options: Speculation, rng: Generator) -> None:
        self._options, self._rng = options, rng
        scale = (1 + options.between**2 + options.within**2) ** 0.5
        self._thresholds = np.array([scale * NormalDist().inv_cdf(chance) for chance in options.acceptance])

    def sequence(self) -> tuple[float, float]:
        """Return S and D_0 of a new sequence."""
        own, drift = self._rng.standard_normal(2).tolist()
        return own, drift

    def draw(self, own: Collection[float], drift: Collection[float]) -> tuple[NDArray[np.bool_], list[float]]:
        """Return bool[n, k], which draft tokens of n sequences are accepted, and the D_t of their next steps."""
        options, drifts = self._options, np.array(drift)
        effects = options.between * np.array(own) + options.within * drifts
        noise = self._rng.standard_normal((len(own), options.tokens))
        passes = self._thresholds + effects[:, None] + noise > 0
        fresh = (1 - options.persistence**2) ** 0.5 * self._rng.standard_normal(len(own))
        return np.logical_and.accumulate(passes, axis=1), (options.persistence * drifts + fresh).tolist()
