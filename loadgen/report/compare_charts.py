"""Charts of several runs over one another: distributions over their requests, and numbers over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from loadgen.report.charts.chart import Axis, Chart, Series, value_text
from loadgen.report.charts.distribution import distribution
from loadgen.report.time_charts import GROUP, HEIGHT, OF_OUTPUT, OF_SENT
from loadgen.results.over_time import OverTime, over_time
from loadgen.results.run_statistics import JOULES, values_of
from loadgen.stats.distributions import curve_of_sample

if TYPE_CHECKING:
    from loadgen.report.charts.chart import Unit
    from loadgen.results.run_folder import RunResult
    from loadgen.stats.arrays import Floats

DISTRIBUTIONS: tuple[tuple[str, str, Unit], ...] = (
    ("ttft_s", "TTFT", "s"),
    ("tpot_s", "TPOT", "s"),
    ("e2e_s", "E2E", "s"),
    (JOULES, "Energy per request", "J"),
)


def distributions(runs: Mapping[str, RunResult]) -> list[Chart]:
    """Return a chart of each quantity that a request of some run has; `runs` are by the letter that names them."""
    values = {letter: values_of(run) for letter, run in runs.items()}
    charts = []
    for name, title, unit in DISTRIBUTIONS:
        samples = {letter: of_run[name][0] for letter, of_run in values.items() if name in of_run}
        curves = {letter: curve for letter, of in samples.items() if (curve := curve_of_sample(of)) is not None}
        if curves:
            key = f"of-{title.lower().replace(' ', '-')}"
            charts.append(distribution(key, title, Axis(title, unit, log=True), curves))
    return charts


def over_one_time(runs: Mapping[str, RunResult]) -> list[Chart]:
    """Return latencies, output and power over the time since each run's first request was due, on one axis."""
    made = {letter: found for letter, run in runs.items() if (found := over_time(run)) is not None}
    rows: tuple[tuple[str, str, Axis, Callable[[OverTime], Floats], str], ...] = (
        ("ttft-p50", "TTFT p50", Axis("TTFT p50", "s", low=0.0), lambda of: of.ttft_s.p50, OF_SENT),
        ("ttft-p99", "TTFT p99", Axis("TTFT p99", "s", low=0.0), lambda of: of.ttft_s.p99, OF_SENT),
        ("tpot-p99", "TPOT p99", Axis("TPOT p99", "s", low=0.0), lambda of: of.tpot_s.p99, OF_SENT),
        (
            "output",
            "Output tokens",
            Axis("tokens/s", "tokens/s", low=0.0),
            lambda of: of.output_tokens / of.bins.width_s,
            OF_OUTPUT,
        ),
        ("power", "Power", Axis("power", "W", low=0.0), lambda of: of.watts, "Mean of each bin."),
    )
    return [chart for key, title, y, read, caption in rows if (chart := _over_time(key, title, y, read, caption, made))]


def _over_time(
    key: str, title: str, y: Axis, read: Callable[[OverTime], Floats], caption: str, made: Mapping[str, OverTime]
) -> Chart | None:
    """Return a chart with a line for each run that has a value; None where none has."""
    series, texts = [], []
    for colour, (letter, found) in enumerate(made.items()):
        values = read(found)
        if np.isfinite(values).any():
            series.append(Series(letter, found.bins.edges_s, values, "steps", colour))
            median, top = float(np.nanmedian(values)), float(np.nanmax(values))
            texts.append(
                f"{letter}: median of the bins {value_text(median, y.unit)}, at most {value_text(top, y.unit)}"
            )
    if not series:
        return None
    ends = [edge for of in made.values() for edge in of.bins.edges_s[[0, -1]].tolist()]
    x = Axis("time since the first request of its run was due", "s", low=min(ends), high=max(ends))
    text = f"{title}. {'; '.join(texts)}."
    return Chart(key, title, x, y, tuple(series), text, caption=caption, group=GROUP, height=HEIGHT, wide=True)
