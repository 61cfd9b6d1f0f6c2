"""What a workload will cost, from joules measured per (input, output, batch) cell: four ways, side by side.

Letters: a request has n input and o output tokens; B requests are in flight; J(n, o, B) is what one of them costs.

ceiling        J at the next bin edge up from n and from o: the method of arXiv 2504.17674, section 4.1
two-phase      J = a0 + a1 n + a2 n^2 + c o / B + b (o - 1) + k sum of contexts, non-negative, fitted to the cells
interpolated   two-phase times what the cells measured over what it says, interpolated between cells: exact at a cell
ideal          TDP / peak FLOP/s times FLOPs, attention included: section 4.2 there, for its sparse peak and the dense

All work on distinct (n, o) pairs and how many requests have each, so the size of a trace does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from loadgen.energy_model.energy_profile import EnergyProfile, GridPoint
from loadgen.energy_model.hardware import Hardware, Model
from loadgen.errors import LoadgenError
from loadgen.stats.arrays import Floats, Ints
from loadgen.stats.nnls import nnls
from loadgen.workload.token_bins import PAPER_INPUT_EDGES, PAPER_OUTPUT_EDGES, CountedPairs

JOULES_PER_KWH = 3.6e6


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A workload's joules by one method. stderr_joules: from the spread of the cells' repeats (interpolated, ceiling)
    or of the fit's residuals (two-phase); None where unknown, and for the ideal, which measures nothing."""

    method: str
    joules: float
    stderr_joules: float | None
    note: str


class BinShare(msgspec.Struct, frozen=True, kw_only=True):
    """What one bin of the paper's edges (upper ends given) adds to the total."""

    input_edge: int
    output_edge: int
    requests: int
    ceiling_joules: float
    interpolated_joules: float


# -- the two-phase model ----------------------------------------------------------------------------------------------


class TwoPhase(msgspec.Struct, frozen=True, kw_only=True):
    """Coefficients in joules; every one at least 0."""

    request: float
    """a0, per request."""
    input_token: float
    """a1"""
    input_token_squared: float
    """a2: attention within the prompt."""
    step: float
    """c, shared by the B in flight: the weights are read once for all of them."""
    output_token: float
    """b"""
    context_token: float
    """k, per decoded token and token of its context."""
    rms: float
    """Of the relative residuals at the cells."""

    def joules(self, inputs: Floats, outputs: Floats, batch: Floats | float) -> Floats:
        """J of every request."""
        a = (
            self.request,
            self.input_token,
            self.input_token_squared,
            self.step,
            self.output_token,
            self.context_token,
        )
        return np.asarray(_features(inputs, outputs, batch) @ np.array(a))


def _features(inputs: Floats, outputs: Floats, batch: Floats | float) -> Floats:
    """[len, 6]. The o - 1 tokens after the first are decoded with contexts n + 1 .. n + o - 1."""
    n, o = np.asarray(inputs, np.float64), np.asarray(outputs, np.float64)
    contexts = (o - 1) * n + o * (o - 1) / 2
    return np.column_stack([np.ones_like(n), n, n**2, o / batch, o - 1, contexts])


def fit_two_phase(cells: Sequence[GridPoint]) -> TwoPhase | None:
    """Least squares of the relative residuals, coefficients >= 0. None when the cells do not vary in every letter,
    or are fewer than twice the coefficients."""
    n, o, batch, joules = _columns(cells)
    if len(cells) < 12 or min(len(np.unique(values)) for values in (n, o, batch)) < 2:
        return None
    features = _features(n, o, batch) / joules[:, None]
    a, _ = nnls(features, np.ones(len(cells)))
    rms = float(np.sqrt(np.mean((features @ a - 1) ** 2)))
    names = ("request", "input_token", "input_token_squared", "step", "output_token", "context_token")
    return TwoPhase(**dict(zip(names, a.tolist(), strict=True)), rms=rms)


def _columns(cells: Sequence[GridPoint]) -> tuple[Floats, Floats, Floats, Floats]:
    rows = np.array([(c.input, c.output, c.batch, c.joules_per_request) for c in cells], dtype=np.float64)
    return rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]


# -- interpolation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surface:
    """J(n, o, B) at one B, from a profile. corners: what `joules` blends, for the spread of a sum."""

    profile: EnergyProfile
    batch: float
    fit: TwoPhase | None
    inputs: Floats
    outputs: Floats
    batches: Floats
    log_ratio: Floats
    """[inputs, outputs, batches]: ln(measured / two-phase), or ln(measured) without a fit; nan where none is."""

    def joules(self, inputs: Ints, outputs: Ints) -> Floats:
        """J of every request. Outside the cells it follows the two-phase model from the nearest edge.

        Raises LoadgenError for a bin that was not measured, and for lengths outside when there is no fit.
        """
        return self._blend(inputs, outputs)[0]

    def total(self, pairs: CountedPairs) -> tuple[float, float | None]:
        """(joules of them all, standard error from the cells' repeats).

        A cell's relative error moves each request by the weight it has there: dE / d ln J_cell = sum of weight x J.
        """
        each, corners = self._blend(pairs.inputs, pairs.outputs)
        joules = each * pairs.counts
        leverage = np.zeros(self.log_ratio.size)
        for index, weight in corners:
            np.add.at(leverage, index, weight * joules)
        relative = self._relative_stderr()
        spread = None if relative is None else float(np.sqrt(((leverage * relative) ** 2).sum()))
        return float(joules.sum()), spread

    def outside(self, pairs: CountedPairs) -> int:
        """How many requests are longer or shorter than every cell."""
        beyond = (
            (pairs.inputs < self.inputs[0])
            | (pairs.inputs > self.inputs[-1])
            | (pairs.outputs < self.outputs[0])
            | (pairs.outputs > self.outputs[-1])
        )
        return int(pairs.counts[beyond].sum())

    def _blend(self, inputs: Ints, outputs: Ints) -> tuple[Floats, list[tuple[Ints, Floats]]]:
        corners = self._corners(inputs, outputs)
        logs = self.log_ratio.ravel()
        log_ratio = np.zeros(len(inputs))
        for index, weight in corners:
            value = logs[index]
            holes = np.isnan(value) & (weight > 0)
            if holes.any():
                raise LoadgenError(self._hole(int(index[holes][0])))
            log_ratio += np.where(weight > 0, value, 0.0) * weight
        base = np.ones(len(inputs))
        if self.fit is not None:
            base = self.fit.joules(inputs.astype(np.float64), outputs.astype(np.float64), self.batch)
        return np.exp(log_ratio) * base, corners

    def _corners(self, inputs: Ints, outputs: Ints) -> list[tuple[Ints, Floats]]:
        """The 8 cells around each request, as flat indices, with weights that sum to 1."""
        sides = [
            _between(self.inputs, inputs.astype(np.float64)),
            _between(self.outputs, outputs.astype(np.float64)),
            _between(self.batches, np.full(len(inputs), self.batch)),
        ]
        shape = self.log_ratio.shape
        corners = []
        for corner in np.ndindex(2, 2, 2):
            at = [np.minimum(low + up, size - 1) for (low, _), up, size in zip(sides, corner, shape, strict=True)]
            parts = [part if up else 1 - part for (_, part), up in zip(sides, corner, strict=True)]
            corners.append((np.asarray(np.ravel_multi_index(tuple(at), shape)), np.asarray(np.prod(parts, axis=0))))
        return corners

    def _hole(self, index: int) -> str:
        i, j, k = np.unravel_index(index, self.log_ratio.shape)
        n, o, batch = int(self.inputs[i]), int(self.outputs[j]), int(self.batches[k])
        return (
            f"profile {self.profile.name} has no measurement of {n} input and {o} output tokens at batch {batch}, "
            f"which this workload needs: measure it with `loadgen profile --bins {n}x{o} --batch {batch}`"
        )

    def _relative_stderr(self) -> Floats | None:
        """Of every cell; one without repeats takes the root mean square of the others'. None when none has any."""
        known = [c.stderr / c.joules_per_request for c in self.profile.cells if c.stderr is not None]
        if not known:
            return None
        relative = np.full(self.log_ratio.shape, float(np.sqrt(np.mean(np.square(known)))))
        for cell in self.profile.cells:
            if cell.stderr is not None:
                at = (axis.tolist().index(v) for axis, v in zip(self._axes, _key(cell), strict=True))
                relative[tuple(at)] = cell.stderr / cell.joules_per_request
        return relative.ravel()

    @property
    def _axes(self) -> tuple[Floats, Floats, Floats]:
        return self.inputs, self.outputs, self.batches


def _key(cell: GridPoint) -> tuple[int, int, int]:
    return cell.input, cell.output, cell.batch


def _between(axis: Floats, values: Floats) -> tuple[Ints, Floats]:
    """(index of the point at or below, how far to the next one in log space), held to the ends of the axis."""
    if len(axis) == 1:
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values))
    low = np.clip(np.searchsorted(axis, values, side="right") - 1, 0, len(axis) - 2)
    part = np.log(values / axis[low]) / np.log(axis[low + 1] / axis[low])
    return low, np.clip(part, 0.0, 1.0)


def surface(profile: EnergyProfile, batch: float) -> Surface:
    """The profile at `batch` in flight. Raises LoadgenError when that is outside what was measured."""
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


# -- the four ways ----------------------------------------------------------------------------------------------------


def estimates(
    pairs: CountedPairs, profile: EnergyProfile, batch: float, hardware: Hardware | None, model: Model | None
) -> list[Estimate]:
    """Every method that has what it needs; the ideal ones need the GPU's and the model's profile.

    Raises LoadgenError as `surface` and `Surface.joules` do, and for lengths beyond the model's context.
    """
    check_context(pairs, model)
    cells = surface(profile, batch)
    outside = cells.outside(pairs)
    total = int(pairs.counts.sum())
    if outside and cells.fit is None:
        raise LoadgenError(
            f"{outside} of {total} requests are longer or shorter than what profile {profile.name} measured, and its "
            f"{len(profile.cells)} cells are too few to fit a model for them: measure more with `loadgen profile`"
        )
    joules, spread = cells.total(pairs)
    found = [
        Estimate(
            method="interpolated",
            joules=joules,
            stderr_joules=spread,
            note=f"{total - outside:,} of {total:,} requests lie within the cells"
            + (", the rest follow the two-phase model" if outside else ""),
        )
    ]
    if cells.fit is not None:
        two_phase = float(cells.fit.joules(_f(pairs.inputs), _f(pairs.outputs), batch) @ pairs.counts)
        found.append(
            Estimate(
                method="two-phase",
                joules=two_phase,
                stderr_joules=two_phase * cells.fit.rms,
                note=f"fits {len(profile.cells)} cells to {cells.fit.rms:.1%} (root mean square)",
            )
        )
    ceiled, clamped = ceiling_pairs(pairs)
    joules, spread = cells.total(ceiled)
    edges = f"inputs to {PAPER_INPUT_EDGES[1]}..{PAPER_INPUT_EDGES[-1]}, outputs to {PAPER_OUTPUT_EDGES[1]}.."
    found.append(
        Estimate(
            method="ceiling",
            joules=joules,
            stderr_joules=spread,
            note=f"the paper's bins: {edges}{PAPER_OUTPUT_EDGES[-1]}, powers of 2"
            + (f"; {clamped:,} longer requests held to the last edge" if clamped else ""),
        )
    )
    if hardware is not None and model is not None:
        found += ideal(pairs, hardware, model)
    return found


def _f(values: Ints) -> Floats:
    return values.astype(np.float64)


def check_context(pairs: CountedPairs, model: Model | None) -> None:
    """A LoadgenError when a request does not fit the model."""
    if model is None:
        return
    at = int(np.argmax(pairs.inputs + pairs.outputs))
    n, o = int(pairs.inputs[at]), int(pairs.outputs[at])
    if n + o > model.context_tokens:
        raise LoadgenError(
            f"a request of {n} + {o} tokens is beyond the {model.context_tokens} that {model.name} takes"
        )


def ceiling_pairs(pairs: CountedPairs) -> tuple[CountedPairs, int]:
    """Every length at its next edge up, longer ones at the last edge; and how many requests had to be held there.

    The paper's text leaves longer requests out, its Figure 7 holds them to the last edge: this does what the figure
    does, so that the same requests are counted everywhere. Its text and figure also disagree on the edges (64 as an
    input, 16 as an input, 64 as an output); these are all powers of 2 between the ends that both name.
    """
    inputs, outputs = np.array(PAPER_INPUT_EDGES), np.array(PAPER_OUTPUT_EDGES)
    at_input = np.minimum(np.searchsorted(inputs, pairs.inputs), len(inputs) - 1)
    at_output = np.minimum(np.searchsorted(outputs, pairs.outputs), len(outputs) - 1)
    beyond = (pairs.inputs > inputs[-1]) | (pairs.outputs > outputs[-1])
    return CountedPairs(inputs[at_input], outputs[at_output], pairs.counts), int(pairs.counts[beyond].sum())


def flops(inputs: Ints, outputs: Ints, model: Model) -> Floats:
    """Of every request: 2 N per token through the weights, 4 L H D per (query, key) pair, forward pass only.

    The last output token is never fed back, so n + o - 1 tokens are computed, each seeing itself and all before it.
    """
    tokens = _f(inputs) + _f(outputs) - 1
    return 2 * model.active_parameters * tokens + model.flops_per_pair * tokens * (tokens + 1) / 2


def ideal(pairs: CountedPairs, hardware: Hardware, model: Model) -> list[Estimate]:
    """At the power limit and the peak rate, dense and (what the paper takes for it) sparse."""
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


def bin_shares(pairs: CountedPairs, cells: Surface) -> list[BinShare]:
    """The interpolated and the ceiling joules of every bin that has requests, largest first."""
    ceiled, _ = ceiling_pairs(pairs)
    exact = cells.joules(pairs.inputs, pairs.outputs) * pairs.counts
    upper = cells.joules(ceiled.inputs, ceiled.outputs) * pairs.counts
    keys, where = np.unique(np.column_stack([ceiled.inputs, ceiled.outputs]), axis=0, return_inverse=True)
    sums = [np.bincount(where.ravel(), weights) for weights in (pairs.counts, upper, exact)]
    shares = [
        BinShare(input_edge=n, output_edge=o, requests=round(count), ceiling_joules=high, interpolated_joules=true)
        for (n, o), count, high, true in zip(keys.tolist(), *(s.tolist() for s in sums), strict=True)
    ]
    return sorted(shares, key=lambda share: -share.interpolated_joules)


def mean_overlap(spans_ns: Ints) -> float:
    """Time-weighted mean number of [start, end) rows that cover an instant, over the instants that any covers."""
    edges = np.unique(spans_ns)
    change = np.zeros(len(edges))
    np.add.at(change, np.searchsorted(edges, spans_ns[:, 0]), 1)
    np.add.at(change, np.searchsorted(edges, spans_ns[:, 1]), -1)
    flying, width = np.cumsum(change)[:-1], np.diff(edges)
    busy = width[flying > 0].sum()
    return float(flying @ width / busy) if busy else 0.0
