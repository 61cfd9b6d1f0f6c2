"""The counters of an engine at one instant: what is polled, written to engine.jsonl and read from it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from loadgen.stats.arrays import Ints

EngineSample = Mapping[str, float]
"""One line of engine.jsonl: `t_ns`, and those of the engine's counters that its page has."""


def sample_times(engine: Sequence[EngineSample]) -> Ints:
    """Return int64[len(engine)]: when the counters were read."""
    return np.array([int(sample["t_ns"]) for sample in engine], dtype=np.int64)
