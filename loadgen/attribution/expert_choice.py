"""Find out whether a run's steps read experts, and how many, by the error on windows and steps that were not fitted.

A dense model and a mixture of experts look alike to a client. A law with a concave term is adopted only if it predicts
the energy of held-out windows much better (cross-validation: Stone, J. R. Stat. Soc. B 36(2), 1974), block by block in
time, because neighbouring windows share requests. Which of such laws it is, the durations of the steps show too:
reading takes time. Both kinds of evidence count by their number, as the log-likelihood of normal errors has it: the sum
of n log(held-out squared error).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from loadgen.attribution.cost_model import foreign_members, overlap, step_features
from loadgen.attribution.expert_reads import ExpertReads, step_tokens
from loadgen.attribution.window_fit import fit_without_outliers, window_work
from loadgen.stats.nnls import held_out_predictions

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import EngineSteps
    from loadgen.energy.series import EnergySeries
    from loadgen.stats.arrays import Floats, Ints

CHOSEN_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4)
"""k/N of served models: 8 of 256, 8 of 128, 8 of 64, 2 of 8."""
SPREADS = (0.0, 0.5, 1.0, 1.5)
HIDDEN_TOKENS = (None, 512.0, 1024.0, 2048.0)
"""A GPU computes some hundred to some thousand tokens while it reads a model's experts."""
REFINEMENTS = ((2**0.5, 0.25), (2**0.25, 0.125), (2**0.125, 0.0625))
"""Factors of the chosen share and the hidden tokens, and steps of the spread, by which the best is then improved."""

BLOCKS = 8
MIN_BLOCK_WINDOWS = 12
"""Fewest windows in a block; a shorter run cannot tell experts from noise."""
MAX_STEPS = 4096
"""Steps whose durations are evidence, evenly spread over the run."""

IMPROVEMENT = 0.5
"""Experts are assumed if the held-out squared error of windows is below this share of the dense law's. Simulated
mixtures of experts reach 0.01 to 0.15, dense models 0.99 and, beside strangers, 0.79."""
IMPROVEMENT_BESIDE = 0.75
"""The same beside another engine on the GPU, whose own error is in both: simulated mixtures of experts reach 0.20 to
0.67, dense models 0.92 and more (benchmarks/accuracy/two_engines.py)."""


class Evidence(NamedTuple):
    """Targets of n windows or steps. features: float64[n, K], without those of experts. target: float64[n]. rows:
    int64[n], which windows or steps these are. expert_columns: returns float64[n], one for each of EXPERT_COLUMNS."""

    features: Floats
    target: Floats
    rows: Ints
    expert_columns: Callable[[ExpertReads], list[Floats]]

    def held_out_error(self, further_columns: list[Floats]) -> float:
        """Return the sum of the squared errors of each block of rows, in a fit to the others."""
        features = np.column_stack([self.features, *further_columns])
        error = float(((self.target - held_out_predictions(features, self.target, BLOCKS)) ** 2).sum())
        return max(error, 1e-12 * float(self.target @ self.target))  # below that it is rounding

    def error_with(self, experts: ExpertReads) -> float:
        """Return the held-out error of the law with these reads of experts."""
        return self.held_out_error(self.expert_columns(experts))


def with_experts(
    series: EnergySeries, steps: EngineSteps, per_step: Floats, beside: EngineSteps | None = None
) -> EngineSteps:
    """Return dense steps with the reads of experts that windows and durations show, or as they are.

    per_step: `step_features` of the same steps. beside: those of all engines on the GPU, where there are others.
    """
    if beside is None:
        windows, improvement = window_evidence(series, steps, per_step), IMPROVEMENT
    else:
        windows, improvement = window_evidence(series, beside, step_features(beside), steps), IMPROVEMENT_BESIDE
    if windows is None:
        return steps
    candidates = [ExpertReads(chosen_share, spread) for chosen_share, spread in product(CHOSEN_SHARES, SPREADS)]
    best = min(candidates, key=windows.error_with)
    if windows.error_with(best) > improvement * windows.held_out_error([]):
        return steps
    evidence = (windows, duration_evidence(steps, per_step))

    @cache
    def surprise(experts: ExpertReads) -> float:
        return sum(len(part.target) * float(np.log(part.error_with(experts))) for part in evidence)

    best = min((msgspec.structs.replace(best, hidden_tokens=tokens) for tokens in HIDDEN_TOKENS), key=surprise)
    for factor, step in REFINEMENTS:
        while (better := min([best, *neighbours(best, factor, step)], key=surprise)) != best:
            best = better
    return replace(steps, experts=best)


def neighbours(experts: ExpertReads, factor: float, step: float) -> list[ExpertReads]:
    """Return the reads one step away, of a chosen share below 1 and a spread of 0 or more."""
    share, spread, hidden = msgspec.structs.astuple(experts)
    moves = [
        (1.0, step),
        (1.0, -step),
        *((scale, change) for scale in (factor, 1 / factor) for change in (0, step, -step)),
    ]
    near = [
        ExpertReads(share * scale, max(spread + change, 0.0), hidden) for scale, change in moves if share * scale < 1
    ]
    return near + [ExpertReads(share, spread, hidden * scale) for scale in (factor, 1 / factor) if hidden is not None]


def window_evidence(
    series: EnergySeries, steps: EngineSteps, per_step: Floats, reading: EngineSteps | None = None
) -> Evidence | None:
    """Return the energy of the windows with steps; None if they are too few.

    reading: the steps that may read experts, where these are the steps of several engines.
    """
    reading = reading or steps
    work = window_work(series, steps, per_step)
    _, error, kept = fit_without_outliers(work.features, work.target, work.busy)
    if error is None or np.count_nonzero(kept) < BLOCKS * MIN_BLOCK_WINDOWS:
        return None
    step, window, share = overlap(series.t_ns, reading.start_ns, reading.end_ns)
    columns, row = expert_columns(reading, np.arange(reading.count))
    row, windows = row[step], len(series) - 1

    def by_window(experts: ExpertReads) -> list[Floats]:
        sums = [np.bincount(window, share * values[row], minlength=windows) for values in columns(experts)]
        return [column[kept].astype(np.float64) for column in sums]

    return Evidence(work.features[kept], work.target[kept], np.flatnonzero(kept), by_window)


def duration_evidence(steps: EngineSteps, per_step: Floats) -> Evidence:
    """Return the time of the GPU that steps took, in seconds, but for those that took far longer than others like
    them."""
    seconds = steps.seconds
    chosen = np.arange(steps.count)[:: -(-steps.count // MAX_STEPS)]
    _, _, kept = fit_without_outliers(per_step[chosen], seconds[chosen], seconds[chosen] > 0)
    chosen = chosen[kept]
    columns, row = expert_columns(steps, chosen)

    def by_step(experts: ExpertReads) -> list[Floats]:
        return [values[row] for values in columns(experts)]

    return Evidence(per_step[chosen], seconds[chosen], chosen, by_step)


def expert_columns(steps: EngineSteps, chosen: Ints) -> tuple[Callable[[ExpertReads], list[Floats]], Ints]:
    """Return a function of the reads of experts, and the row of each chosen step in what it returns: EXPERT_COLUMNS of
    all the different steps among them."""
    work = np.stack([step_tokens(steps, foreign_members(steps)), steps.iterations], axis=1)[chosen]
    different, row = np.unique(work, axis=0, return_inverse=True)
    tokens, iterations = different.T

    def columns(experts: ExpertReads) -> list[Floats]:
        reads = np.asarray(iterations * experts.share(tokens))
        return [reads, experts.computed(tokens, reads)]

    return columns, row
