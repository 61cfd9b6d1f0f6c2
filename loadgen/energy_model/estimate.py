"""Predict the energy of a workload from joules measured on a grid of (input, output, batch), by four methods.

Letters: a request has n input and o output tokens; B requests are in flight; J(n, o, B) is the energy of one of them.

ceiling        J at the next bin edge at or above n and o: the method of arXiv 2504.17674, section 4.1
two-phase      J = a0 + a1 n + a2 n^2 + c o / B + b (o - 1) + k sum of contexts; coefficients >= 0, fitted to the grid
interpolated   two-phase times the ratio measured / two-phase, interpolated between grid points: exact at a grid point
ideal          TDP / peak FLOP/s times FLOPs, attention included: section 4.2 of that paper, for the sparse peak that it
               uses and for the dense peak

All methods work on distinct (n, o) pairs and their counts, so the size of a trace does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.stats.nnls import nnls
from loadgen.workload.token_bins import PAPER_INPUT_EDGES, PAPER_OUTPUT_EDGES, CountedPairs

if TYPE_CHECKING:
    from loadgen.energy_model.energy_profile import EnergyProfile, GridPoint
    from loadgen.energy_model.hardware import Hardware, Model
    from loadgen.stats.arrays import Floats, Ints


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of a workload by one method.

    stderr_joules comes from the spread of the grid points' repeats (interpolated, ceiling) or from the fit's residuals
    (two-phase). It is None if unknown, and for the ideal methods, which are not based on measurements.
    """

    method: str
    joules: float
    stderr_joules: float | None
    note: str


class BinShare(msgspec.Struct, frozen=True, kw_only=True):
    """Contribution of one bin of the paper's edges to the total. A bin is named by its upper edges."""

    input_edge: int
    output_edge: int
    requests: int
    ceiling_joules: float
    interpolated_joules: float


_COEFFICIENTS = ("request", "input_token", "input_token_squared", "step", "output_token", "context_token")
"""Fields of TwoPhase in the order of the columns of `_features`."""


class TwoPhase(msgspec.Struct, frozen=True, kw_only=True):
    """The two-phase model. Coefficients are in joules and at least 0."""

    request: float
    """a0, per request."""
    input_token: float
    """a1, per input token."""
    input_token_squared: float
    """a2: attention within the prompt."""
    step: float
    """c, per decode step, shared by the B requests in flight: the weights are read once for all of them."""
    output_token: float
    """b, per output token after the first."""
    context_token: float
    """k, per decoded token and token of its context."""
    rms: float
    """Root mean square of the relative residuals at the grid points."""

    def joules(self, inputs: Floats, outputs: Floats, batch: Floats | float) -> Floats:
        """Return J of every request."""
        coefficients = [getattr(self, name) for name in _COEFFICIENTS]
        return np.asarray(_features(inputs, outputs, batch) @ np.array(coefficients))


def _features(inputs: Floats, outputs: Floats, batch: Floats | float) -> Floats:
    """Return the model's features, [requests, 6].

    The o - 1 tokens after the first are decoded with contexts n + 1 .. n + o - 1.
    """
    n, o = np.asarray(inputs, np.float64), np.asarray(outputs, np.float64)
    contexts = (o - 1) * n + o * (o - 1) / 2
    return np.column_stack([np.ones_like(n), n, n**2, o / batch, o - 1, contexts])


def fit_two_phase(cells: Sequence[GridPoint]) -> TwoPhase | None:
    """Fit by least squares of the relative residuals, with coefficients >= 0.

    Return None if there are fewer grid points than twice the coefficients, or if n, o or B is the same in all of them.
    """
    n, o, batch, joules = _columns(cells)
    if len(cells) < 2 * len(_COEFFICIENTS) or min(len(np.unique(values)) for values in (n, o, batch)) < 2:
        return None
    features = _features(n, o, batch) / joules[:, None]
    coefficients, _ = nnls(features, np.ones(len(cells)))
    rms = float(np.sqrt(np.mean((features @ coefficients - 1) ** 2)))
    return TwoPhase(**dict(zip(_COEFFICIENTS, coefficients.tolist(), strict=True)), rms=rms)


def _columns(cells: Sequence[GridPoint]) -> tuple[Floats, Floats, Floats, Floats]:
    rows = np.array([(c.input, c.output, c.batch, c.joules_per_request) for c in cells], dtype=np.float64)
    return rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]


@dataclass(frozen=True)
class Surface:
    """J(n, o, B) at one B, interpolated from a profile."""

    profile: EnergyProfile
    batch: float
    fit: TwoPhase | None
    inputs: Floats
    outputs: Floats
    batches: Floats
    log_ratio: Floats
    """ln(measured / two-phase), or ln(measured) without a fit, [inputs, outputs, batches]; nan if not measured."""

    def joules(self, inputs: Ints, outputs: Ints) -> Floats:
        """Return J of every request. Outside the grid it follows the two-phase model from the nearest edge.

        Raises LoadgenError for a grid point that is needed and was not measured.
        """
        return self._blend(inputs, outputs)[0]

    def total(self, pairs: CountedPairs) -> tuple[float, float | None]:
        """Return (joules of all requests, standard error from the repeats of the grid points).

        The relative error of a grid point changes each request's J in proportion to its interpolation weight:
        dE / d ln J_point = sum of weight x J.
        """
        request_joules, corners = self._blend(pairs.inputs, pairs.outputs)
        joules = request_joules * pairs.counts
        leverage = np.zeros(self.log_ratio.size)
        for index, weight in corners:
            np.add.at(leverage, index, weight * joules)
        relative = self._relative_stderr()
        spread = None if relative is None else float(np.sqrt(((leverage * relative) ** 2).sum()))
        return float(joules.sum()), spread

    def outside(self, pairs: CountedPairs) -> int:
        """Count the requests that are longer or shorter than every grid point."""
        beyond = (
            (pairs.inputs < self.inputs[0])
            | (pairs.inputs > self.inputs[-1])
            | (pairs.outputs < self.outputs[0])
            | (pairs.outputs > self.outputs[-1])
        )
        return int(pairs.counts[beyond].sum())

    def _blend(self, inputs: Ints, outputs: Ints) -> tuple[Floats, list[tuple[Ints, Floats]]]:
        """Return (J of every request, the corners it was interpolated from as `_corners` returns them)."""
        corners = self._corners(inputs, outputs)
        logs = self.log_ratio.ravel()
        log_ratio = np.zeros(len(inputs))
        for index, weight in corners:
            value = logs[index]
            holes = np.isnan(value) & (weight > 0)
            if holes.any():
                i, j, k = np.unravel_index(int(index[holes][0]), self.log_ratio.shape)
                n, o, batch = int(self.inputs[i]), int(self.outputs[j]), int(self.batches[k])
                raise LoadgenError(
                    f"profile {self.profile.name} has no measurement of {n} input and {o} output tokens at batch "
                    f"{batch}, which this workload needs: measure it with "
                    f"`loadgen profile --bins {n}x{o} --batch {batch}`"
                )
            log_ratio += np.where(weight > 0, value, 0.0) * weight
        base = np.ones(len(inputs))
        if self.fit is not None:
            base = self.fit.joules(inputs.astype(np.float64), outputs.astype(np.float64), self.batch)
        return np.exp(log_ratio) * base, corners

    def _corners(self, inputs: Ints, outputs: Ints) -> list[tuple[Ints, Floats]]:
        """Return the 8 grid points around each request as flat indices, with weights that sum to 1."""
        sides = [
            _between(self.inputs, inputs.astype(np.float64)),
            _between(self.outputs, outputs.astype(np.float64)),
            _between(self.batches, np.full(len(inputs), self.batch)),
        ]
        shape = self.log_ratio.shape
        corners = []
        for corner in np.ndindex(2, 2, 2):
            index = [np.minimum(low + up, size - 1) for (low, _), up, size in zip(sides, corner, shape, strict=True)]
            parts = [part if up else 1 - part for (_, part), up in zip(sides, corner, strict=True)]
            corners.append((np.asarray(np.ravel_multi_index(tuple(index), shape)), np.asarray(np.prod(parts, axis=0))))
        return corners

    def _relative_stderr(self) -> Floats | None:
        """Return the relative standard error of every grid point, flat; None if no point has repeats.

        A point without repeats gets the root mean square of the others.
        """
        points = self.profile.cells
        measured = [point.stderr / point.joules_per_request for point in points if point.stderr is not None]
        if not measured:
            return None
        relative = np.full(self.log_ratio.shape, float(np.sqrt(np.mean(np.square(measured)))))
        axes = self.inputs, self.outputs, self.batches
        for point in points:
            if point.stderr is not None:
                index = (axis.tolist().index(value) for axis, value in zip(axes, point.key, strict=True))
                relative[tuple(index)] = point.stderr / point.joules_per_request
        return relative.ravel()


def _between(axis: Floats, values: Floats) -> tuple[Ints, Floats]:
    """Return (index of the point at or below, fraction of the way to the next in log space), clipped to the ends."""
    if len(axis) == 1:
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values))
    low = np.clip(np.searchsorted(axis, values, side="right") - 1, 0, len(axis) - 2)
    part = np.log(values / axis[low]) / np.log(axis[low + 1] / axis[low])
    return low, np.clip(part, 0.0, 1.0)


def surface(profile: EnergyProfile, batch: float) -> Surface:
    """Return the profile at `batch` requests in flight. Raises LoadgenError if that is outside the measured range."""
    n, o, b, joules = _columns(profile.cells)
    axes = np.unique(n), np.unique(o), np.unique(b)
    if not axes[2][0] <= batch <= axes[2][-1]:
        measured = ", ".join(f"{int(v)}" for v in axes[2])
        raise LoadgenError(
            f"batch {batch:g} is outside what profile {profile.name} measured ({measured}): choose --batch within it"
        )
    fit = fit_two_phase(profile.cells)
    base = fit.joules(n, o, b) if fit is not None else np.ones(len(n))
    log_ratio = np.full(tuple(map(len, axes)), np.nan)
    log_ratio[tuple(np.searchsorted(axis, v) for axis, v in zip(axes, (n, o, b), strict=True))] = np.log(joules / base)
    return Surface(profile, batch, fit, *axes, log_ratio)


def estimates(
    pairs: CountedPairs, profile: EnergyProfile, batch: float, hardware: Hardware | None, model: Model | None
) -> list[Estimate]:
    """Return the estimate of every applicable method; the ideal ones need the GPU's and the model's profile.

    Raises LoadgenError as `surface` and `Surface.joules` do, for lengths beyond the model's context, and for lengths
    outside the grid if the grid is too small to fit the two-phase model.
    """
    if model is not None:
        _check_context(pairs, model)
    grid = surface(profile, batch)
    outside = grid.outside(pairs)
    total = int(pairs.counts.sum())
    if outside and grid.fit is None:
        raise LoadgenError(
            f"{outside} of {total} requests are longer or shorter than all measurements of profile {profile.name}, and "
            f"its {len(profile.cells)} cells are too few to fit a model for them: measure more with `loadgen profile`"
        )
    joules, spread = grid.total(pairs)
    results = [
        Estimate(
            method="interpolated",
            joules=joules,
            stderr_joules=spread,
            note=f"{total - outside:,} of {total:,} requests lie within the cells"
            + (", the rest follow the two-phase model" if outside else ""),
        )
    ]
    if grid.fit is not None:
        two_phase = float(grid.fit.joules(_as_floats(pairs.inputs), _as_floats(pairs.outputs), batch) @ pairs.counts)
        results.append(
            Estimate(
                method="two-phase",
                joules=two_phase,
                stderr_joules=two_phase * grid.fit.rms,
                note=f"fits {len(profile.cells)} cells to {grid.fit.rms:.1%} (root mean square)",
            )
        )
    ceiled, clamped = ceiling_pairs(pairs)
    joules, spread = grid.total(ceiled)
    edges = f"inputs to {PAPER_INPUT_EDGES[1]}..{PAPER_INPUT_EDGES[-1]}, outputs to {PAPER_OUTPUT_EDGES[1]}.."
    results.append(
        Estimate(
            method="ceiling",
            joules=joules,
            stderr_joules=spread,
            note=f"the paper's bins: {edges}{PAPER_OUTPUT_EDGES[-1]}, powers of 2"
            + (f"; {clamped:,} longer requests clamped to the last edge" if clamped else ""),
        )
    )
    if hardware is not None and model is not None:
        results += ideal(pairs, hardware, model)
    return results


def _as_floats(values: Ints) -> Floats:
    return values.astype(np.float64)


def _check_context(pairs: CountedPairs, model: Model) -> None:
    longest = int(np.argmax(pairs.inputs + pairs.outputs))
    n, o = int(pairs.inputs[longest]), int(pairs.outputs[longest])
    if n + o > model.context_tokens:
        raise LoadgenError(
            f"a request of {n} + {o} tokens exceeds the context of {model.name}: {model.context_tokens} tokens"
        )


def ceiling_pairs(pairs: CountedPairs) -> tuple[CountedPairs, int]:
    """Round every length up to a bin edge, longer ones down to the last edge; return also the number of the latter.

    The paper's text leaves longer requests out, its Figure 7 clamps them to the last edge. This follows the figure, so
    that all methods count the same requests. The text and the figure also disagree on the edges (64 as an input, 16 as
    an input, 64 as an output); the edges here are all powers of 2 between the ends that both give.
    """
    inputs, outputs = np.array(PAPER_INPUT_EDGES), np.array(PAPER_OUTPUT_EDGES)
    input_index = np.minimum(np.searchsorted(inputs, pairs.inputs), len(inputs) - 1)
    output_index = np.minimum(np.searchsorted(outputs, pairs.outputs), len(outputs) - 1)
    beyond = (pairs.inputs > inputs[-1]) | (pairs.outputs > outputs[-1])
    return CountedPairs(inputs[input_index], outputs[output_index], pairs.counts), int(pairs.counts[beyond].sum())


def flops(inputs: Ints, outputs: Ints, model: Model) -> Floats:
    """Return the FLOPs of every request: 2 N per token and 4 L H D per (query, key) pair, forward pass only.

    N = active parameters, L = layers, H = heads, D = head dimension. The last output token is never fed back, so
    n + o - 1 tokens are computed; each attends to itself and to all tokens before it.
    """
    tokens = _as_floats(inputs) + _as_floats(outputs) - 1
    return 2 * model.active_parameters * tokens + model.flops_per_pair * tokens * (tokens + 1) / 2


def ideal(pairs: CountedPairs, hardware: Hardware, model: Model) -> list[Estimate]:
    """Return the energy at the power limit and the peak rate: for the dense peak, and for the paper's sparse peak."""
    work = float(flops(pairs.inputs, pairs.outputs, model) @ pairs.counts)
    peaks = {"ideal, dense peak": hardware.peak_flops, "ideal, sparse peak": hardware.peak_sparse_flops}
    return [
        Estimate(
            method=method,
            joules=work * hardware.limit_w / peak,
            stderr_joules=None,
            note=f"{hardware.limit_w:.0f} W / {peak / 1e12:.0f} TFLOP/s x FLOPs, attention included",
        )
        for method, peak in peaks.items()
        if peak is not None
    ]


def bin_shares(pairs: CountedPairs, grid: Surface) -> list[BinShare]:
    """Return the interpolated and the ceiling joules of every bin that has requests, largest first."""
    ceiled, _ = ceiling_pairs(pairs)
    exact = grid.joules(pairs.inputs, pairs.outputs) * pairs.counts
    upper = grid.joules(ceiled.inputs, ceiled.outputs) * pairs.counts
    keys, bin_index = np.unique(np.column_stack([ceiled.inputs, ceiled.outputs]), axis=0, return_inverse=True)
    sums = [np.bincount(bin_index.ravel(), weights) for weights in (pairs.counts, upper, exact)]
    shares = [
        BinShare(input_edge=n, output_edge=o, requests=round(count), ceiling_joules=high, interpolated_joules=true)
        for (n, o), count, high, true in zip(keys.tolist(), *(s.tolist() for s in sums), strict=True)
    ]
    return sorted(shares, key=lambda share: -share.interpolated_joules)


def mean_overlap(spans_ns: Ints) -> float:
    """Return the time-weighted mean number of overlapping [start, end) rows, over the time that any of them covers."""
    edges = np.unique(spans_ns)
    change = np.zeros(len(edges))
    np.add.at(change, np.searchsorted(edges, spans_ns[:, 0]), 1)
    np.add.at(change, np.searchsorted(edges, spans_ns[:, 1]), -1)
    in_flight, width = np.cumsum(change)[:-1], np.diff(edges)
    busy = width[in_flight > 0].sum()
    return float(in_flight @ width / busy) if busy else 0.0
