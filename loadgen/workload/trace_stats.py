"""Descriptive statistics of a trace, tallied from columns as they pass, in memory that does not grow with the trace.

Lengths, rates and dispersions are exact. Gaps are counted to 1 part in 1024. Rank correlation and the joint lengths are
exact up to MOST_PAIRS distinct (input, output) pairs, and of lengths rounded up to 1 part in 32 beyond. Sessions and
prefix blocks are exact up to MOST_KEPT of them; beyond, a sample of them by hash stands for all (P. B. Gibbons,
Distinct sampling for highly-accurate answers to distinct values queries, VLDB 2001). `estimated` says which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from loadgen.stats.distributions import Counts, count_values
from loadgen.workload.token_bins import CountedPairs, Lengths, count_up, merge_counts

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats
    from loadgen.workload.trace_columns import Columns

MOST_PAIRS = 1_000_000
MOST_KEPT = 65_536
MOST_WORKLOADS = 1_000
WINDOWS_S = (1, 10, 60, 600, 3600)
"""Windows of the index of dispersion."""
RATE_PARTS = 48
"""Equal parts of a trace's duration whose rates are shown."""
_RATE_CELLS = 1 << 14
"""Cells in which arrivals are counted before they are summed up in RATE_PARTS."""
_GAP_BITS = 52 - 10
"""Bits of a float64's mantissa that are dropped from gaps: 10 of its 52 are kept."""


@dataclass(frozen=True)
class SessionStats:
    """Sessions of a trace: how many, their turns, and their gaps."""

    count: int
    turns: Counts
    gap_s: Counts | None
    """Mean gap from one turn's arrival to the next's, of each session with two turns or more."""


@dataclass(frozen=True)
class Description:
    """Statistics of a trace, or of draws from bins, which have no times."""

    requests: int
    inputs: Counts
    outputs: Counts
    pairs: CountedPairs
    first_s: float | None = None
    last_s: float | None = None
    gaps_s: Counts | None = None
    rates_rps: tuple[float, ...] | None = None
    """Requests/s in RATE_PARTS equal parts of the duration."""
    dispersion: tuple[float | None, ...] = (None,) * len(WINDOWS_S)
    workloads: dict[str, int] | None = None
    sessions: SessionStats | None = None
    block_reuse: float | None = None
    """Share of the requested prefix blocks that an earlier request had too."""
    token_reuse: float | None = None
    """Tokens of those blocks over all input tokens of the trace."""
    estimated: tuple[str, ...] = ()
    """Statistics that are estimates, because there was too much to keep all of it."""

    @property
    def duration_s(self) -> float | None:
        return None if self.first_s is None or self.last_s is None else self.last_s - self.first_s


class Tally:
    """Mutable tally of a trace: add its columns in order, then call `describe`."""

    def __init__(self) -> None:
        self._lengths: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        self._pairs = _PairTally()
        self._first_s: float | None = None
        self._last_s = 0.0
        self._gaps: Counter[int] = Counter()
        self._rate = _RateTally()
        self._windows = [_WindowTally(width) for width in WINDOWS_S]
        self._workloads: Counter[str] = Counter()
        self._sessions = _SessionTally()
        self._blocks = _BlockTally()

    def add(self, columns: Columns) -> None:
        for counter, lengths in zip(self._lengths, (columns.input_tokens, columns.output_tokens), strict=True):
            count_up(counter, lengths)
        self._pairs.add(columns.input_tokens, columns.output_tokens)
        arrival_s = columns.arrival_s
        previous = [] if self._first_s is None else [self._last_s]
        self._first_s = float(arrival_s[0]) if self._first_s is None else self._first_s
        self._last_s = float(arrival_s[-1])
        # The float's own bits, rounded to 10 of its mantissa: integers that sort as the gaps do.
        bits = np.diff(np.concatenate((previous, arrival_s))).view(np.int64)
        count_up(self._gaps, (bits + (1 << (_GAP_BITS - 1))) >> _GAP_BITS)
        since_s = arrival_s - self._first_s
        self._rate.add(since_s)
        for window in self._windows:
            window.add(since_s)
        names = columns.workload
        counts = {names: len(columns)} if isinstance(names, str) else Counter(names)
        for name, count in counts.items():
            has_room = name in self._workloads or len(self._workloads) < MOST_WORKLOADS
            self._workloads[name if has_room else "(others)"] += count
        if columns.session_id is not None:
            self._sessions.add(columns.session_id, columns.arrival_s)
        if columns.prefix_ids is not None:
            self._blocks.add(columns.prefix_ids, columns.input_tokens, columns.block_tokens)

    def describe(self) -> Description:
        """Return the statistics of all columns added so far, at least one request."""
        assert self._first_s is not None, "no columns were added"
        inputs, outputs = (_counts(counter) for counter in self._lengths)
        gaps = _counts(self._gaps)
        pairs = self._pairs.counted()
        tokens = float(inputs.values @ inputs.counts)
        sampled = (
            ("joint lengths", self._pairs.rounded),
            ("sessions", self._sessions.level),
            ("prefix reuse", self._blocks.level),
        )
        return Description(
            requests=int(inputs.counts.sum()),
            inputs=inputs,
            outputs=outputs,
            pairs=pairs,
            first_s=self._first_s,
            last_s=self._last_s,
            gaps_s=Counts((gaps.values.astype(np.int64) << _GAP_BITS).view(np.float64), gaps.counts)
            if len(gaps.values)
            else None,
            rates_rps=self._rate.parts(self._last_s - self._first_s),
            dispersion=tuple(window.index() for window in self._windows),
            workloads=dict(self._workloads),
            sessions=self._sessions.stats(),
            block_reuse=self._blocks.reuse(),
            token_reuse=self._blocks.token_reuse(tokens),
            estimated=tuple(statistic for statistic, level in sampled if level),
        )


def describe_lengths(inputs: Lengths, outputs: Lengths) -> Description:
    """Describe requests without times, such as draws from bins."""
    counters: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    count_up(counters[0], inputs)
    count_up(counters[1], outputs)
    pairs = _PairTally()
    pairs.add(inputs, outputs)
    return Description(len(inputs), _counts(counters[0]), _counts(counters[1]), pairs.counted())


def _counts(counter: Counter[int]) -> Counts:
    keys = np.array(sorted(counter), np.int64)
    return Counts(keys.astype(np.float64), np.array([counter[k] for k in keys.tolist()], np.int64))


class _PairTally:
    """Distinct pairs and their counts; rounded once there are too many."""

    def __init__(self) -> None:
        self.rounded = False
        self._parts: list[tuple[Lengths, Lengths]] = []
        self._rows = 0

    def add(self, inputs: Lengths, outputs: Lengths) -> None:
        self._parts.append(np.unique(self._key(inputs, outputs), return_counts=True))
        self._rows += len(self._parts[-1][0])
        if self._rows > MOST_PAIRS:
            keys, counts = merge_counts(self._parts)
            if len(keys) > MOST_PAIRS // 2 and not self.rounded:
                self.rounded = True
                keys, counts = merge_counts([(self._key(keys >> 32, keys & 0xFFFFFFFF), counts)])
            self._parts, self._rows = [(keys, counts)], 0

    def _key(self, inputs: Lengths, outputs: Lengths) -> Lengths:
        x, y = (rounded_up(side) if self.rounded else side for side in (inputs, outputs))
        return x << 32 | y

    def counted(self) -> CountedPairs:
        keys, counts = merge_counts(self._parts)
        return CountedPairs(keys >> 32, keys & 0xFFFFFFFF, counts)


def rounded_up(lengths: Lengths) -> Lengths:
    """Round up to 6 significant bits: never beyond the next power of two."""
    exponent = np.frexp(lengths.astype(np.float64))[1].astype(np.int64)
    unit = np.left_shift(np.int64(1), np.maximum(exponent - 6, 0))
    return np.asarray(-(-lengths // unit) * unit)


class _RateTally:
    """Counts in _RATE_CELLS cells of equal width, which doubles whenever the trace outgrows them."""

    def __init__(self) -> None:
        self._width_s = 2.0**-30
        self._counts = np.zeros(_RATE_CELLS, np.int64)

    def add(self, since_s: Floats) -> None:
        while since_s[-1] >= self._width_s * _RATE_CELLS:
            halves = self._counts[0::2] + self._counts[1::2]
            self._counts = np.concatenate((halves, np.zeros(_RATE_CELLS // 2, np.int64)))
            self._width_s *= 2
        self._counts += np.bincount((since_s / self._width_s).astype(np.int64), minlength=_RATE_CELLS)

    def parts(self, duration_s: float) -> tuple[float, ...] | None:
        """Return requests/s in RATE_PARTS parts; a cell that lies in two parts is divided by its length."""
        if duration_s <= 0:
            return None
        ends = np.minimum(np.arange(1, _RATE_CELLS + 1) * self._width_s, duration_s)
        cumulative = np.interp(
            np.linspace(0, duration_s, RATE_PARTS + 1),
            np.concatenate(([0.0], ends)),
            np.concatenate(([0], np.cumsum(self._counts))),
        )
        cumulative[-1] = self._counts.sum()
        return tuple((np.diff(cumulative) * (RATE_PARTS / duration_s)).tolist())


class _WindowTally:
    """Incremental `distributions.index_of_dispersion` at one window width, of sorted arrivals."""

    def __init__(self, width_s: float) -> None:
        self._width_s = width_s
        self._last = 0
        self._open = 0
        self._sum = 0
        self._squares = 0

    def add(self, since_s: Floats) -> None:
        window = np.floor(since_s / self._width_s).astype(np.int64)
        begins = np.concatenate(([0], np.flatnonzero(window[1:] != window[:-1]) + 1))
        counts = np.diff(np.append(begins, len(window)))
        if window[0] == self._last:
            counts[0] += self._open
        else:
            counts = np.append(self._open, counts)
        closed, self._open, self._last = counts[:-1], int(counts[-1]), int(window[-1])
        self._sum += int(closed.sum())
        self._squares += int((closed**2).sum())

    def index(self) -> float | None:
        """Return the index of dispersion, None with fewer than two whole windows."""
        if self._last < 2 or self._sum == 0:
            return None
        mean = self._sum / self._last
        return (self._squares - self._last * mean**2) / (self._last - 1) / mean


def _hashes(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014): every bit of an id affects every hash bit."""
    z = ids + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _sampled(hashes: NDArray[np.uint64], level: int) -> NDArray[np.bool_]:
    """Select 1 in 2**level of all hashes, always the same ones, and a subset of those of any lower level."""
    return np.asarray(hashes & np.uint64((1 << level) - 1) == 0)


class _SessionTally:
    """Turns, first and last arrival of each session, or of a sample of the sessions."""

    def __init__(self) -> None:
        self.level = 0
        self._kept: dict[str, tuple[int, float, float]] = {}

    def add(self, ids: Sequence[str | None], arrival_s: Floats) -> None:
        rows = [(i, t) for i, t in zip(ids, arrival_s.tolist(), strict=True) if i is not None]
        for (name, t_s), chosen in zip(rows, self._chosen([name for name, _ in rows]), strict=True):
            if chosen:
                turns, first_s, _ = self._kept.get(name, (0, t_s, t_s))
                self._kept[name] = turns + 1, first_s, t_s
        while len(self._kept) > MOST_KEPT:
            self.level += 1
            names = list(self._kept)
            self._kept = {n: self._kept[n] for n, ok in zip(names, self._chosen(names), strict=True) if ok}

    def _chosen(self, names: Sequence[str]) -> list[bool]:
        codes = np.array([crc32(name.encode(errors="surrogatepass")) for name in names], np.uint64)
        chosen: list[bool] = _sampled(_hashes(codes), self.level).tolist()
        return chosen

    def stats(self) -> SessionStats | None:
        if not self._kept:
            return None
        gaps = [(last_s - first_s) / (turns - 1) for turns, first_s, last_s in self._kept.values() if turns > 1]
        turns = count_values([float(turns) for turns, _, _ in self._kept.values()])
        return SessionStats(len(self._kept) << self.level, turns, count_values(gaps) if gaps else None)


class _BlockTally:
    """Tokens of the first request for each prefix block, or for each of a sample of the blocks."""

    def __init__(self) -> None:
        self.level = 0
        self._requested = 0
        self._requested_tokens = 0
        self._kept = np.zeros(0, np.uint64)
        self._tokens = np.zeros(0, np.int64)

    def add(self, prefix_ids: Sequence[tuple[int, ...]], input_tokens: Lengths, block_tokens: Lengths | int) -> None:
        sizes = np.array([len(ids) for ids in prefix_ids])
        ids = np.array([i & (2**64 - 1) for ids in prefix_ids for i in ids], np.uint64)
        place = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        block = np.repeat(np.broadcast_to(block_tokens, len(sizes)), sizes)
        tokens = np.clip(np.repeat(input_tokens, sizes) - block * place, 0, block)
        self._requested += len(ids)
        self._requested_tokens += int(tokens.sum())
        hashes = _hashes(ids)
        chosen = _sampled(hashes, self.level)
        # np.unique keeps the first of equal hashes: the ones kept so far stand before the new ones.
        self._kept, index = np.unique(np.concatenate((self._kept, hashes[chosen])), return_index=True)
        self._tokens = np.concatenate((self._tokens, tokens[chosen]))[index]
        while len(self._kept) > MOST_KEPT:
            self.level += 1
            chosen = _sampled(self._kept, self.level)
            self._kept, self._tokens = self._kept[chosen], self._tokens[chosen]

    def reuse(self) -> float | None:
        return 1 - (len(self._kept) << self.level) / self._requested if self._requested else None

    def token_reuse(self, input_tokens: float) -> float | None:
        if not self._requested:
            return None
        return (self._requested_tokens - (int(self._tokens.sum()) << self.level)) / input_tokens
