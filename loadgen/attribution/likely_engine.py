"""Infer which of several engines served a request that nobody names one for, from what each engine counted meanwhile.

If engine e served request r, it counted the request's v_rw tokens in the window w between two samples of its counters,
and its prompt in the window of the first token. So it counted g_ew >= sum_r p_re v_rw, with p_re the probability that e
served r; what it counted beyond that is of other clients, and says nothing. The probabilities are scaled down where an
engine counted too little, and divided by their sum over the engines, until they change no more:

    p_re <- p_re sum_w v_rw min(1, g_ew / sum_r' p_r'e v_r'w) / sum_w v_rw

This is the update of expectation maximisation for counts (Dempster, Laird and Rubin, J. R. Stat. Soc. B 39, 1977), but
for the minimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.telemetry.engine_sample import counter_growth, sample_times

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.stats.arrays import Floats, Ints
    from loadgen.telemetry.engine_sample import EngineSample

PASSES = 3000
"""Passes at the most. At 4/s on two replicas 300 find the right engine of 92 % of the requests, 3,000 of 97 %."""
SETTLED = 1e-5
"""Probabilities that change by less in a pass change no more."""
SUPPORTED = 0.8
"""Share of a request's tokens that its engines counted, without which its engine cannot be told: they count other than
they generate. Of 300 simulated requests it is 0.98 or more for each."""
SURE = 0.9
"""Probability without which a request is not taken to be at an engine that counts nothing: all others must be ruled
out."""
MAX_WORK = 1_000_000_000
"""Counts that are scaled, over all passes: some 10 s."""


class _Counts(NamedTuple):
    """Counts of one engine by window, and what each request would have added: entry i is `tokens` of request `row` in
    window `window`."""

    counted: Floats
    row: Ints
    window: Ints
    tokens: Floats


def engine_probabilities(
    records: Sequence[RequestRecord], engines: Sequence[Sequence[EngineSample]], known: Sequence[int | None]
) -> Floats:
    """Return float64[n, E]: the probability that each engine served each request.

    engines: samples of each engine's counters. known: number of the engine of each request, None where it is not known.
    NaN for a request whose engine cannot be told: no window has its tokens, or no engine counted them.
    """
    counts = [_counts_of(records, samples) for samples in engines]
    likely = np.full((len(records), len(engines)), 1.0 / max(len(engines), 1))
    rows = [row for row, engine in enumerate(known) if engine is not None]
    certain = np.zeros((len(rows), len(engines)))
    certain[np.arange(len(rows)), [engine for engine in known if engine is not None]] = 1.0
    likely[rows] = certain
    totals = [np.bincount(c.row, c.tokens, minlength=len(records)) for c in counts]
    support = np.ones(len(records))
    passes = min(PASSES, MAX_WORK // max(sum(len(count.row) for count in counts), 1))
    for _pass in range(passes if len(rows) < len(records) else 0):
        before = likely.copy()
        for engine, (count, total) in enumerate(zip(counts, totals, strict=True)):
            expected = np.bincount(count.window, likely[count.row, engine] * count.tokens, len(count.counted))
            ratio = np.divide(
                np.minimum(count.counted, expected), expected, out=np.ones(len(expected)), where=expected > 0
            )
            score = np.bincount(count.row, count.tokens * ratio[count.window], minlength=len(records))
            likely[:, engine] *= np.divide(score, total, out=np.ones(len(total)), where=total > 0)
        support = likely.sum(axis=1)
        sums = np.where(support > 0, support, 1.0)[:, None]
        likely = np.where(support[:, None] > 0, likely / sums, 1.0 / likely.shape[1])
        likely[rows] = certain
        if np.abs(likely - before).max() < SETTLED:
            break
    counted = np.array(totals).reshape(len(engines), len(records)) > 0
    is_counted = counted[likely.argmax(axis=1), np.arange(len(records))] | (likely.max(axis=1) >= SURE)
    likely[~counted.any(axis=0) | ~is_counted | (support < SUPPORTED)] = np.nan
    likely[rows] = certain
    return likely


def _counts_of(records: Sequence[RequestRecord], samples: Sequence[EngineSample]) -> _Counts:
    """Return what an engine counted: the output tokens of each window, and then the prompt tokens of each in units of
    the mean prompt, so that both weigh alike."""
    edges_ns = sample_times(samples)
    windows = max(len(edges_ns) - 1, 0)
    answered = [row for row, record in enumerate(records) if record.chunk_ns]
    entries: list[tuple[int, int, float]] = []
    for row in answered:
        chunk_ns, tokens = records[row].chunk_ns, records[row].output_tokens or len(records[row].chunk_ns)
        numbers = zip(*np.unique(np.searchsorted(edges_ns, chunk_ns) - 1, return_counts=True), strict=True)
        entries += [(row, int(w), float(n) * tokens / len(chunk_ns)) for w, n in numbers if 0 <= w < windows]
    prompts = [records[row].input_tokens or 0 for row in answered]
    mean = float(np.mean(prompts or [1])) or 1.0
    if any("prompt_tokens" in sample for sample in samples):
        firsts = (np.searchsorted(edges_ns, [records[row].chunk_ns[0] for row in answered]) - 1).tolist()
        numbered = zip(answered, firsts, prompts, strict=True)
        entries += [(row, windows + first, prompt / mean) for row, first, prompt in numbered if 0 <= first < windows]
    growth = [counter_growth(samples, name) for name in ("generation_tokens", "prompt_tokens")]
    counted = np.concatenate((growth[0], growth[1] / mean))
    columns = np.array(entries, dtype=np.float64).reshape(-1, 3)
    return _Counts(counted, columns[:, 0].astype(np.int64), columns[:, 1].astype(np.int64), columns[:, 2])
