"""Plan the measurement of an energy profile: order, stopping rule, time remaining, and the journal that resumes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
import numpy as np

from loadgen.energy_model.energy_profile import GridKey, GridPoint
from loadgen.errors import LoadgenError
from loadgen.stats.nnls import nnls

if TYPE_CHECKING:
    from loadgen.energy_model.waves import RequestShape


@dataclass(frozen=True)
class StoppingRule:
    """Decides how long to measure. Times are seconds per grid point unless stated otherwise."""

    within: float = 0.03
    """Relative half width of the 95 % confidence interval that ends a grid point."""
    repeat_s: float = 1.0
    """Minimum duration of a repeat, so that the counter updates often in it."""
    max_repeats: int = 10
    cap_s: float = 60.0
    """Time after which a grid point ends with the repeats that it has, at least one."""
    settle_s: float = 0.0
    """Load before the first grid point, so that the GPU reaches its operating temperature."""
    idle_s: float = 2.0
    """Duration of the idle power measurement before any load."""
    static: bool = False
    """Measure whole batches one at a time, from first send to last completion, as arXiv 2504.17674 does.

    No wave is needed to fill the batch, which halves the time, but the batch empties at the end of each repeat.
    """
    budget_s: float | None = None
    """Time for all grid points together: none is started after it."""


def measurement_order(bins: Sequence[RequestShape], batches: Sequence[int], seed: int) -> list[GridKey]:
    """Return every bin at every batch, in the order in which to measure them.

    Batches keep their order, so that the most important come first. Within a batch the bins are shuffled by the seed,
    so that drift does not look like an effect of length.
    """
    rng = np.random.default_rng(seed)
    return [GridKey(*bins[int(i)], batch) for batch in batches for i in rng.permutation(len(bins))]


def seconds_remaining(measured: Sequence[tuple[GridKey, float]], remaining: Sequence[GridKey]) -> float | None:
    """Predict the time for the remaining grid points from the seconds that the measured ones took.

    The model is t = t0 + p x (input x batch) + d x output with t0, p, d >= 0. Return None while nothing is measured.
    """
    if not measured:
        return None
    parameters, _ = nnls(_time_features([key for key, _ in measured]), np.array([seconds for _, seconds in measured]))
    return float((_time_features(remaining) @ parameters).sum()) if remaining else 0.0


def _time_features(keys: Sequence[GridKey]) -> Any:
    rows = [(1.0, key.input * key.batch, key.output) for key in keys]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def journal_path(out: Path) -> Path:
    """Return the path of the journal beside the profile `out`."""
    return out.with_name(out.name + ".partial.jsonl")


class _Header(msgspec.Struct, frozen=True):
    measured_on: dict[str, Any]
    """Properties that all grid points of one profile must share: model, engine, endpoint."""


def read_journal(path: Path, measured_on: dict[str, Any]) -> list[GridPoint]:
    """Read the grid points of an interrupted measurement, without an incomplete last line.

    Raises LoadgenError if the journal was written for another server.
    """
    if not path.exists():
        return []
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        header = msgspec.json.decode(lines[0], type=_Header) if lines else None
        points = [msgspec.json.decode(line, type=GridPoint) for line in lines[1:]]
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise LoadgenError(f"{path}: not the journal of a profile: {err}; remove it to start again") from err
    if header is not None and header.measured_on != measured_on:
        raise LoadgenError(
            f"{path} holds cells measured on {header.measured_on}, this is {measured_on}: "
            "finish that profile, or remove the file to start again"
        )
    return points


@contextmanager
def journal(
    path: Path, measured_on: dict[str, Any], points: Sequence[GridPoint]
) -> Iterator[Callable[[GridPoint], None]]:
    """Write a journal that starts with `points`; yield a function that appends one more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            _append(file, _Header(measured_on))
            for point in points:
                _append(file, point)
            yield lambda point: _append(file, point)
    except OSError as err:
        raise LoadgenError(f"cannot write {path}: {err.strerror or err}") from err


def _append(file: TextIO, line: msgspec.Struct) -> None:
    file.write(msgspec.json.encode(line).decode() + "\n")
    file.flush()
