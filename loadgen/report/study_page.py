"""A study on one page: what each choice costs in joules, how sure that is, and what it does to latency."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from loadgen.report import svg
from loadgen.report.format import UNKNOWN, joules, number, percent, plural, seconds, watts, with_unit
from loadgen.report.markup import Markup, join, table, tag
from loadgen.report.page import header, render_page, section, stacked_bar, verdict_box
from loadgen.report.run_figures import empty, figure
from loadgen.results.study_table import Group, Row, groups, reduction_between
from loadgen.stats.intervals import Interval, pareto

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats

_HEIGHT = 240.0
_PER_TOKEN = "joules_per_output_token"


@dataclass(frozen=True)
class Measure:
    """A quantity that a figure shows over the load: `scale` times a field of Row."""

    field: str
    unit: str
    format: Callable[[float | None], str]
    caption: str
    log: bool
    scale: float = 1.0

    def interval(self, group: Group) -> Interval | None:
        interval = group.interval(self.field)
        if interval is None:
            return None
        low, high = (None if end is None else end * self.scale for end in (interval.low, interval.high))
        return Interval(interval.mean * self.scale, low, high, interval.count)


_BARS = "Bars: 95 % interval of the repeats."
_ENERGY = Measure(
    _PER_TOKEN,
    "J per output token",
    joules,
    f"Measured energy of the whole run, idle included, over output tokens. {_BARS}",
    True,
)
_GOOD = Measure("good_requests_per_joule", "good requests per kJ", number, f"{{limits}} {_BARS}", False, 1e3)

_LATENCY_FIELDS = {"tpot": "tpot_p50_s", "ttft": "ttft_p50_s", "e2el": "e2e_p50_s"}
"""SLO metric -> the field of its median in Row."""


def render_study_page(
    title: str,
    description: str,
    rows: Sequence[Row],
    baseline: str | None,
    slo_ms: dict[str, float],
    failed: dict[str, str],
    remaining: int,
) -> str:
    """Return the whole page; partial while the study is running.

    failed: run -> the reason. remaining: number of runs to go.
    """
    configurations = groups(rows)
    sections = [_header(title, description, rows, failed, remaining)]
    processes = {g.rows[0].arrival for g in configurations if g.rows[0].arrival is not None}
    if configurations:
        sections += [
            section("Energy per output token", *_by_load(configurations, _ENERGY), overview_table(configurations)),
            section("Reduction against the baseline", reductions_table(configurations, baseline)),
            *([section("Arrivals", arrivals_table(configurations))] if len(processes) > 1 else []),
            section("Energy and latency", *pareto_figures(configurations, slo_ms)),
            *([section("Requests within limits", *goodput_figures(configurations, slo_ms))] if slo_ms else []),
            section("Power", *power_figures(configurations)),
            section("Where the energy went", shares_table(configurations)),
        ]
    return render_page(f"{title} · loadgen study", sections)


def _header(title: str, description: str, rows: Sequence[Row], failed: dict[str, str], remaining: int) -> Markup:
    simulated = any(row.simulated for row in rows)
    gpus = sorted({row.gpu for row in rows if row.gpu})
    meta = " · ".join([plural(len(rows), "run"), *([plural(remaining, "run") + " to go"] if remaining else []), *gpus])
    reasons = [f"{name} failed: {reason.splitlines()[0]}" for name, reason in sorted(failed.items())]
    if doubtful := sum(not row.energy_valid for row in rows):
        reasons.append(f"{plural(doubtful, 'run')} with energy that is not valid: see the reports of these runs")
    if len(gpus) > 1:
        reasons.append("Not all runs were on the same GPUs: the comparisons include the differences between these.")
    if simulated:
        reasons.append("The server was simulated: joules and times are a model's, not a machine's.")
    kind = "bad" if failed else "fair" if reasons else "good"
    valid = "Every run so far is valid" if remaining else "Every run is valid"
    head = "With failed runs" if failed else "With remarks" if reasons else valid
    return header(
        "loadgen study",
        title,
        tag("p", description),
        tag("p", meta, class_="soft"),
        verdict_box(kind, head, reasons),
        simulated=simulated,
    )


# ---------------------------------------------------------------- energy by load


def _series(configurations: Sequence[Group]) -> list[tuple[str, str]]:
    """Return (server, model) in the order of their colours."""
    return sorted({group.key[:2] for group in configurations})


def _models(configurations: Sequence[Group]) -> bool:
    return len({g.key.model for g in configurations}) > 1


def _named(group: Group, models: bool) -> list[str]:
    """Return server, workload and load; the model too where a study has several."""
    server, model, workload = group.key[:3]
    return [server, *([model] if models else []), workload, _load_text(group)]


def _head(models: bool) -> list[str]:
    return ["server", *(["model"] if models else []), "workload", "load"]


def _legend(series: Sequence[tuple[str, str]], used: Iterable[tuple[str, str]]) -> Markup:
    """Return the series that a figure has, in the colours that they have in every figure."""
    shown, several = set(used), len({model for _, model in series}) > 1
    items = [
        tag("li", svg.swatch(i), " ", tag("span", f"{server} · {model}" if several else server))
        for i, (server, model) in enumerate(series)
        if (server, model) in shown
    ]
    return tag("ul", *items, class_="legend")


def _by_load(configurations: Sequence[Group], measure: Measure) -> list[Markup]:
    """Return one figure for each workload that ran at several batches, and one for each at several rates."""
    figures = []
    for load, heading in (("batch", "by batch"), ("rps", "by requests per second")):
        measured = [g for g in configurations if getattr(g.key, load) is not None and measure.interval(g) is not None]
        for workload in sorted({g.key.workload for g in measured}):
            chosen = [g for g in measured if g.key.workload == workload]
            if len({getattr(g.key, load) for g in chosen}) > 1:
                figures.append(_load_figure(f"{workload}, {heading}", load, chosen, _series(configurations), measure))
    return figures


def _load_figure(
    heading: str, load: str, configurations: Sequence[Group], series: Sequence[tuple[str, str]], measure: Measure
) -> Markup:
    """Return a measure over `load` ("batch" or "rps"), which is logarithmic."""
    loads = [float(getattr(g.key, load) or 0) for g in configurations]
    ticks = tuple((value, f"{value:g}") for value in sorted(set(loads)))
    x = svg.Axis(min(loads) / 1.15, max(loads) * 1.15, True, ticks)  # with room for the outermost marks
    y = measure_axis([i for g in configurations if (i := measure.interval(g)) is not None], measure)
    marks, texts = [], []
    for index, series_key in enumerate(series):
        chosen = sorted(
            (g for g in configurations if g.key[:2] == series_key), key=lambda g: float(getattr(g.key, load) or 0)
        )
        if chosen:
            marks.append(_line(chosen, load, x, y, index, measure))
            values = (
                f"{getattr(g.key, load):g}: {_interval_text(measure.interval(g), measure.format)}" for g in chosen
            )
            texts.append(f"{series_key[0]}: " + ", ".join(values))
    key = f"{measure.field}-{heading}".replace(" ", "-").replace(",", "")
    picture = join(
        [
            _legend(series, (g.key[:2] for g in configurations)),
            svg.plot(key, heading, "; ".join(texts), x, y, _HEIGHT, marks),
        ]
    )
    return figure(heading, measure.unit, picture, measure.caption, "wide")


def measure_axis(intervals: Sequence[Interval], measure: Measure) -> svg.Axis:
    """Return an axis with room for the intervals, up to half or twice the extreme means: longer bars are cut."""
    means = [interval.mean for interval in intervals]
    ends = [end for i in intervals for end in (i.mean, i.low, i.high) if end is not None]
    high = min(max(ends), 2 * max(means))
    if measure.log:
        return svg.log_axis(max(min(ends), min(means) / 2), high, measure.format)
    return svg.linear_axis(0, high, number)


def _line(configurations: Sequence[Group], load: str, x: svg.Axis, y: svg.Axis, index: int, measure: Measure) -> Markup:
    across = x.at(np.array([float(getattr(g.key, load) or 0) for g in configurations])) * svg.WIDTH
    intervals = [i for g in configurations if (i := measure.interval(g)) is not None]
    means = np.array([interval.mean for interval in intervals])
    down = _HEIGHT * (1 - y.at(means))
    path = "M" + "L".join(f"{h:.1f} {v:.1f}" for h, v in zip(across, down, strict=True))
    curve = tag("path", d=path, class_="curve", fill="none", stroke_dasharray=svg.DASHES[index % len(svg.DASHES)])
    whiskers = []
    for h, interval in zip(across, intervals, strict=True):
        if interval.low is not None and interval.high is not None:
            low, high = _HEIGHT * (1 - y.at(np.array([max(interval.low, y.low), interval.high])))
            whiskers.append(tag("path", d=f"M{h:.1f} {low:.1f}V{high:.1f}", class_="curve", fill="none"))
    titles = [
        f"{g.key.server}, {getattr(g.key, load):g}: {_interval_text(i, measure.format)}"
        for g, i in zip(configurations, intervals, strict=True)
    ]
    points = svg.dots(across / svg.WIDTH, y.at(means), _HEIGHT, titles, class_="dot mark")
    return tag("g", curve, *whiskers, points, class_=f"s{index % 6}")


def _interval_text(interval: Interval | None, text: Callable[[float | None], str] = joules) -> str:
    if interval is None:
        return UNKNOWN
    if interval.low is None:
        return f"{text(interval.mean)} (one run)"
    return f"{text(interval.mean)} [{text(interval.low)}, {text(interval.high)}]"


def _load_text(group: Group) -> str:
    batch, rps = group.key.batch, group.key.rps
    return f"batch {batch}" if batch is not None else f"{rps:g}/s"


def overview_table(configurations: Sequence[Group]) -> Markup:
    """Return energy, power and speed of every configuration, with the spread of its repeats."""
    models = _models(configurations)
    head = [*_head(models), "runs", "J/output token [95 %]", "spread", "W", "tokens/s", "measured / idealized"]
    rows = [
        [
            *_named(g, models),
            str(len(g.rows)),
            _interval_text(g.interval(_PER_TOKEN)),
            percent(relative_range(g.values(_PER_TOKEN))),
            watts(g.mean("mean_watts")),
            number(g.mean("output_tokens_per_s")),
            with_unit(g.mean("measured_over_idealized"), "×"),
        ]
        for g in configurations
    ]
    note = (
        "Spread: (largest − smallest) / mean of the repeats. Idealized: every FLOP, attention's included, at the "
        "dense peak rate and the power limit."
    )
    listed = table(head, rows, "Every configuration")
    return tag("figure", tag("h3", "Every configuration"), listed, tag("figcaption", note), class_="wide")


def relative_range(values: Sequence[float]) -> float | None:
    """Return (largest - smallest) / mean; None of fewer than two values."""
    return (max(values) - min(values)) / (sum(values) / len(values)) if len(values) > 1 else None


# ---------------------------------------------------------------- reductions


def reductions_table(configurations: Sequence[Group], baseline: str | None) -> Markup:
    """Compare each configuration with the baseline's at the same workload and load, and at its best and worst load."""
    if baseline is None:
        return tag("p", "The study names no baseline.", class_="empty")
    bases = {g.key[1:]: g for g in configurations if g.key.server == baseline and g.values(_PER_TOKEN)}
    by_load = {g.key[2:]: g for g in bases.values()}
    rows = []
    for g in configurations:
        base = bases.get(g.key[1:]) or by_load.get(g.key[2:])
        if base is None or g.key.server == baseline or not g.values(_PER_TOKEN):
            continue
        saved = reduction_between(base, g, _PER_TOKEN)
        cells = [_percents(saved), joules(base.mean(_PER_TOKEN)), joules(g.mean(_PER_TOKEN))]
        rows.append([*_named(g, _models(configurations)), *cells])
    if not rows:
        return empty(
            "Reduction", f"No configuration has a counterpart of {baseline} at the same workload and load yet."
        )
    head = [*_head(_models(configurations)), "less energy [95 %]", baseline, "this"]
    note = (
        f"1 − this / {baseline}, J per output token at the same workload and load. Intervals on logarithms: "
        "Welch's, or of pairs where both saw the same arrivals."
    )
    lines = [best_reduction(configurations, w, baseline) for w in sorted({g.key.workload for g in configurations})]
    return tag(
        "figure",
        *(tag("p", line) for line in lines if line),
        table(head, rows, "Reduction"),
        tag("figcaption", note),
        class_="wide",
    )


def best_reduction(configurations: Sequence[Group], workload: str, baseline: str) -> str | None:
    """Return the headline: from the baseline at its worst load to the best configuration."""
    known = [g for g in configurations if g.key.workload == workload and g.values(_PER_TOKEN)]
    bases = [g for g in known if g.key.server == baseline]
    if not bases or len(known) == len(bases):
        return None
    worst = max(bases, key=lambda g: g.mean(_PER_TOKEN) or 0)
    least = min(bases, key=lambda g: g.mean(_PER_TOKEN) or 0)
    best = min(known, key=lambda g: g.mean(_PER_TOKEN) or 0)
    whole = reduction_between(worst, best, _PER_TOKEN)
    tuned = reduction_between(least, best, _PER_TOKEN)
    return (
        f"{workload}: {best.key.server} at {_load_text(best)} takes {_percents(whole)} less than {baseline} at "
        f"{_load_text(worst)}, and {_percents(tuned)} less than {baseline} at its own best, {_load_text(least)}."
    )


def _percents(ratio: Interval) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{100 * ratio.mean:.1f} %"
    return f"{100 * ratio.mean:.1f} % [{100 * ratio.low:.1f}, {100 * ratio.high:.1f}]"


# ---------------------------------------------------------------- energy against latency


def pareto_figures(configurations: Sequence[Group], slo_ms: dict[str, float]) -> list[Markup]:
    """Return energy against a latency: the first of TPOT, TTFT and E2EL with a limit, else TPOT; one a workload."""
    metric = next((name for name in _LATENCY_FIELDS if name in slo_ms), "tpot")
    figures = []
    for workload in sorted({g.key.workload for g in configurations}):
        chosen = [
            g
            for g in configurations
            if g.key.workload == workload and g.mean(_LATENCY_FIELDS[metric]) and g.mean(_PER_TOKEN)
        ]
        if len(chosen) > 2:
            figures.append(_front(workload, chosen, _series(configurations), metric, slo_ms.get(metric)))
    return figures or [empty("Energy and latency", "No workload has three configurations that know both.")]


def _front(
    workload: str,
    configurations: Sequence[Group],
    series: Sequence[tuple[str, str]],
    metric: str,
    limit_ms: float | None,
) -> Markup:
    """Return latency across, energy up; the front has the configurations that no other beats in both."""
    field = _LATENCY_FIELDS[metric]
    known = [(g, g.mean(field) or 0.0, g.mean(_PER_TOKEN) or 0.0) for g in configurations]
    heading = f"{workload}: energy against {metric.upper()}"
    latency: Floats = np.array([lat for _, lat, _ in known])
    energy: Floats = np.array([en for _, _, en in known])
    x, y = _axis_of(latency, seconds), _axis_of(energy, joules)
    front = pareto([(lat, en) for _, lat, en in known])
    across, down = x.at(latency) * svg.WIDTH, _HEIGHT * (1 - y.at(energy))
    path = "M" + "L".join(f"{across[i]:.1f} {down[i]:.1f}" for i in front)
    marks = [tag("g", tag("path", d=path, class_="curve", fill="none", stroke_dasharray="2 3"), class_="flying")]
    for index, series_key in enumerate(series):
        chosen = [i for i, (g, _, _) in enumerate(known) if g.key[:2] == series_key]
        titles = [
            f"{series_key[0]}, {_load_text(known[i][0])}: {seconds(known[i][1])}, {joules(known[i][2])}" for i in chosen
        ]
        dots = svg.dots(across[chosen] / svg.WIDTH, y.at(energy[chosen]), _HEIGHT, titles, class_="dot mark")
        marks.append(tag("g", dots, class_=f"s{index % 6}"))
    if limit_ms is not None and x.low < limit_ms / 1e3 < x.high:
        limit_x = float(x.at(np.array([limit_ms / 1e3]))[0]) * svg.WIDTH
        line = tag("path", tag("title", f"limit: {limit_ms:g} ms"), d=f"M{limit_x:.1f} 0V{_HEIGHT:g}", class_="curve")
        marks.append(tag("g", line, class_="flying"))
    best = [known[i] for i in front if limit_ms is None or known[i][1] <= limit_ms / 1e3]
    least = min(best, key=lambda candidate: candidate[2], default=None)
    front_text = "; ".join(f"{known[i][0].key.server} {_load_text(known[i][0])}" for i in front)
    within = "" if limit_ms is None else f" within {metric.upper()} ≤ {limit_ms:g} ms"
    choice = (
        f" Least energy{within}: {least[0].key.server} at {_load_text(least[0])}, {joules(least[2])} per output token."
        if least
        else f" No configuration is{within}."
    )
    used = (g.key[:2] for g in configurations)
    picture = join([_legend(series, used), svg.plot(f"front-{workload}", heading, front_text, x, y, _HEIGHT, marks)])
    limit = "" if limit_ms is None or not x.low < limit_ms / 1e3 < x.high else f"; upright: {limit_ms:g} ms"
    axes = f"Median {metric.upper()} across, J per output token up"
    caption = f"{axes}; dotted: the Pareto front ({front_text}){limit}.{choice}"
    return figure(heading, "J per output token", picture, caption, "wide")


def _axis_of(values: Floats, text: Callable[[float | None], str]) -> svg.Axis:
    """Return an axis that is logarithmic where the values are far apart."""
    low, high = float(values.min()), float(values.max())
    return svg.log_axis(low, high, text) if high > 3 * low else svg.linear_axis(0.9 * low, 1.1 * high, text)


# ---------------------------------------------------------------- arrivals, limits, power


def arrivals_table(configurations: Sequence[Group]) -> Markup:
    """Compare open loops by their arrival process."""
    rows = [
        [
            g.key.workload,
            g.key.server,
            g.rows[0].arrival or UNKNOWN,
            _load_text(g),
            _interval_text(g.interval(_PER_TOKEN)),
            watts(g.mean("mean_watts")),
            *(seconds(g.mean(field)) for field in ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s")),
        ]
        for g in sorted(
            (g for g in configurations if g.key.rps is not None),
            key=lambda g: (g.key.rps or 0, g.key.server, g.key.workload),
        )
    ]
    head = ["workload", "server", "arrivals", "load", "J/output token [95 %]", "W"]
    note = "After gamma, its burstiness: 1 is Poisson, smaller is burstier. Latencies: means over the repeats."
    listed = table([*head, "TTFT p50", "p99", "TPOT p50", "p99"], rows, "Arrivals")
    return tag("figure", listed, tag("figcaption", note), class_="wide")


def goodput_figures(configurations: Sequence[Group], slo_ms: dict[str, float]) -> list[Markup]:
    """Return the requests within the limits per joule: the cost of a load when answers must come in time."""
    limits = "Requests that met every limit: " + ", ".join(f"{m.upper()} ≤ {ms:g} ms" for m, ms in slo_ms.items()) + "."
    measure = replace(_GOOD, caption=_GOOD.caption.format(limits=limits))
    known = [g for g in configurations if g.values(_GOOD.field)]
    rows = [
        [
            g.key.workload,
            g.key.server,
            _load_text(g),
            percent(g.mean("goodput_ratio")),
            number(_good_per_s(g)),
            _interval_text(measure.interval(g), number),
            *(seconds(g.mean(field)) for field in ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s")),
        ]
        for g in sorted(known, key=lambda g: (g.key.workload, g.key.server, g.key.batch or 0, g.key.rps or 0))
    ]
    if not rows:
        return [empty("Requests within limits", "No run has measured energy.")]
    head = ["workload", "server", "load", "good", "good/s", "good per kJ [95 %]", "TTFT p50", "p99", "TPOT p50", "p99"]
    listed = table(head, rows, "Requests within limits")
    return [
        *_by_load(known, measure),
        tag("figure", listed, tag("figcaption", limits), class_="wide"),
    ]


def _good_per_s(group: Group) -> float | None:
    rates = [r.goodput_ratio * r.completed / r.duration_s for r in group.rows if r.goodput_ratio is not None]
    return sum(rates) / len(rates) if rates else None


def power_figures(configurations: Sequence[Group]) -> list[Markup]:
    """Return watts over tokens per second: power falls less than the load."""
    known = [g for g in configurations if g.values("mean_watts") and g.values("output_tokens_per_s")]
    if len(known) < 2:
        return [empty("Power", "Fewer than two configurations have power and speed.")]
    speed: Floats = np.array([g.mean("output_tokens_per_s") or 0.0 for g in known])
    power: Floats = np.array([g.mean("mean_watts") or 0.0 for g in known])
    idle = [w for g in known for w in g.values("idle_watts")]
    x, y = svg.linear_axis(0, float(speed.max()) * 1.05, number), svg.linear_axis(0, float(power.max()) * 1.05, number)
    series, marks = _series(configurations), []
    for index, series_key in enumerate(series):
        chosen = [i for i, g in enumerate(known) if g.key[:2] == series_key]
        titles = [_power_title(known[i], float(speed[i]), float(power[i])) for i in chosen]
        dots = svg.dots(x.at(speed[chosen]), y.at(power[chosen]), _HEIGHT, titles, class_="dot mark")
        marks.append(tag("g", dots, class_=f"s{index % 6}"))
    caption = "Each dot is a configuration: the means over its repeats."
    if idle:
        least = sum(idle) / len(idle)
        down = f"{_HEIGHT * (1 - float(y.at(np.array([least]))[0])):.1f}"
        title = tag("title", f"idle: {watts(least)}")
        line = tag("path", title, d=f"M0 {down}H{svg.WIDTH}", class_="curve", fill="none", stroke_dasharray="2 3")
        marks.append(tag("g", line, class_="flying"))
        caption += f" Dotted: {watts(least)}, idle with the model resident, before the runs."
    description = "; ".join(_power_title(g, float(s), float(w)) for g, s, w in zip(known, speed, power, strict=True))
    picture = join([_legend(series, series), svg.plot("power", "Power", description, x, y, _HEIGHT, marks)])
    return [figure("Watts against output tokens per second", "W", picture, caption, "wide")]


def _power_title(group: Group, speed: float, power: float) -> str:
    return f"{group.key.server}, {group.key.workload}, {_load_text(group)}: {number(speed)} tokens/s, {watts(power)}"


# ---------------------------------------------------------------- shares


def shares_table(configurations: Sequence[Group]) -> Markup:
    accounts, rows = ("prefill", "decode", "idle", "unattributed"), []
    for g in configurations:
        parts = {name: g.mean(f"{name}_joules") for name in accounts}
        known = {name: value for name, value in parts.items() if value is not None}
        total = sum(known.values())
        if total <= 0:
            continue
        percents = {name: percent(value / total) for name, value in known.items()}
        text = ", ".join(f"{name} {share}" for name, share in percents.items())
        bar = stacked_bar([(name, value, f"{name} {percents[name]}") for name, value in known.items()], text)
        rows.append([*_named(g, _models(configurations)), bar, *(percents.get(name, UNKNOWN) for name in accounts)])
    if not rows:
        return empty("Shares", "No run has attributed energy.")
    keys = [tag("span", tag("span", class_=f"key {name}"), name) for name in accounts]
    note = "Means over the repeats. Prefill and decode as a client sees them: until the first token, and after it."
    listed = table([*_head(_models(configurations)), "", *keys], rows, "Prefill and decode")
    return tag("figure", listed, tag("figcaption", note), class_="wide")
