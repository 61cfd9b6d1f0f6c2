"""A study on one page: what each choice costs in joules, how sure that is, and what it does to latency."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loadgen.report import svg
from loadgen.report.format import UNKNOWN, joules, number, percent, plural, seconds, watts, with_unit
from loadgen.report.markup import Markup, join, table, tag
from loadgen.report.page import render_page, section, stacked_bar
from loadgen.report.run_figures import empty, figure
from loadgen.results.study_table import Group, Row, groups, reduction_between
from loadgen.stats.arrays import Floats
from loadgen.stats.intervals import Interval, pareto

HEIGHT = 240.0
PER_TOKEN = "joules_per_output_token"


@dataclass(frozen=True)
class Measure:
    """What a figure shows over the load, and how: `scale` times the field."""

    field: str
    unit: str
    told: Callable[[float | None], str]
    caption: str
    log: bool
    scale: float = 1.0

    def interval(self, group: Group) -> Interval | None:
        found = group.interval(self.field)
        if found is None:
            return None
        low, high = (None if end is None else end * self.scale for end in (found.low, found.high))
        return Interval(found.mean * self.scale, low, high, found.count)


BARS = "Bars: 95 % interval of the repeats."
ENERGY = Measure(
    PER_TOKEN,
    "J per output token",
    joules,
    f"Measured energy of the whole run, idle included, over output tokens. {BARS}",
    True,
)
GOOD = Measure("good_requests_per_joule", "good requests per kJ", number, f"{{limits}} {BARS}", False, 1e3)

LATENCIES = {"tpot": "tpot_p50_s", "ttft": "ttft_p50_s", "e2el": "e2e_p50_s"}
"""SLO metric -> the field its median is in."""


def render_study_page(
    title: str,
    description: str,
    rows: Sequence[Row],
    baseline: str | None,
    slo_ms: dict[str, float],
    failed: dict[str, str],
    left: int,
) -> str:
    """The whole page; of a study that still runs, as far as it got."""
    found = groups(rows)
    sections = [_header(title, description, rows, failed, left)]
    if found:
        sections += [
            section("Energy per output token", *_by_load(found, ENERGY), _table(found)),
            section("Reduction against the baseline", _reductions(found, baseline)),
            *([section("Arrivals", _arrivals(found))] if len(_processes(found)) > 1 else []),
            section("Energy and latency", *_fronts(found, slo_ms)),
            *([section("Requests within limits", *_good(found, slo_ms))] if slo_ms else []),
            section("Power", *_power(found)),
            section("Where the energy went", _shares(found)),
        ]
    return render_page(f"{title} · loadgen study", sections)


def _header(title: str, description: str, rows: Sequence[Row], failed: dict[str, str], left: int) -> Markup:
    simulated = any(row.simulated for row in rows)
    badge = tag("span", "SIMULATED", class_="badge") if simulated else ""
    gpus = sorted({row.gpu for row in rows if row.gpu})
    meta = " · ".join([plural(len(rows), "run"), *([plural(left, "run") + " to go"] if left else []), *gpus])
    reasons = [f"{name} failed: {why.splitlines()[0]}" for name, why in sorted(failed.items())]
    if doubtful := sum(not row.energy_valid for row in rows):
        reasons.append(f"{plural(doubtful, 'run')} whose energy is not valid: each run's own report says why")
    if len(gpus) > 1:
        reasons.append("Not all runs were on the same GPUs: how these differ is in the comparisons.")
    if simulated:
        reasons.append("The server was simulated: joules and times are a model's, not a machine's.")
    told = tag("ul", *(tag("li", line) for line in reasons)) if reasons else ""
    kind = "bad" if failed else "fair" if reasons else "good"
    valid = "Every run so far is valid" if left else "Every run is valid"
    head = "With failed runs" if failed else "With remarks" if reasons else valid
    return tag(
        "header",
        tag("p", "loadgen study ", badge, class_="eyebrow"),
        tag("h1", title),
        tag("p", description),
        tag("p", meta, class_="soft"),
        tag("div", tag("strong", head), told, class_=f"verdict {kind}"),
    )


# ---------------------------------------------------------------- energy by load


def _series(found: Sequence[Group]) -> list[tuple[str, str]]:
    """(server, model) in the order of their colours."""
    return sorted({(group.key[0], group.key[1]) for group in found})


def _names(series: Sequence[tuple[str, str]]) -> list[str]:
    several = len({model for _, model in series}) > 1
    return [f"{server} · {model}" if several else server for server, model in series]


def _models(found: Sequence[Group]) -> bool:
    return len({g.key[1] for g in found}) > 1


def _named(group: Group, models: bool) -> list[str]:
    """server, workload and load; the model too where a study has several."""
    server, model, workload = group.key[:3]
    return [server, *([model] if models else []), workload, _load_told(group)]


def _head(models: bool) -> list[str]:
    return ["server", *(["model"] if models else []), "workload", "load"]


def _legend(series: Sequence[tuple[str, str]], used: Iterable[tuple[str, str]]) -> Markup:
    """Those that a figure has, in the colours that they have in every figure."""
    shown = set(used)
    items = [
        tag("li", svg.swatch(i), " ", tag("span", name))
        for i, (one, name) in enumerate(zip(series, _names(series), strict=True))
        if one in shown
    ]
    return tag("ul", *items, class_="legend")


def _by_load(found: Sequence[Group], measure: Measure) -> list[Markup]:
    """One figure for each workload that was run at several batches, and one for each at several rates."""
    figures = []
    for at, heading in ((3, "by batch"), (4, "by requests per second")):
        chosen = [g for g in found if g.key[at] is not None and measure.interval(g) is not None]
        for workload in sorted({g.key[2] for g in chosen}):
            mine = [g for g in chosen if g.key[2] == workload]
            if len({g.key[at] for g in mine}) > 1:
                figures.append(_load_figure(f"{workload}, {heading}", at, mine, _series(found), measure))
    return figures


def _load_figure(
    heading: str, at: int, found: Sequence[Group], series: Sequence[tuple[str, str]], measure: Measure
) -> Markup:
    """x, the batch or the rate, is logarithmic."""
    x = _load_axis([float(g.key[at] or 0) for g in found])
    y = _measure_axis([i for g in found if (i := measure.interval(g)) is not None], measure)
    marks, told = [], []
    for index, one in enumerate(series):
        mine = sorted((g for g in found if (g.key[0], g.key[1]) == one), key=lambda g: float(g.key[at] or 0))
        if mine:
            marks.append(_line(mine, at, x, y, index, measure))
            values = (f"{g.key[at]:g}: {_told(measure.interval(g), measure.told)}" for g in mine)
            told.append(f"{one[0]}: " + ", ".join(values))
    key = f"{measure.field}-{heading}".replace(" ", "-").replace(",", "")
    picture = join(
        [
            _legend(series, ((g.key[0], g.key[1]) for g in found)),
            svg.plot(key, heading, "; ".join(told), x, y, HEIGHT, marks),
        ]
    )
    return figure(heading, measure.unit, picture, measure.caption, "wide")


def _load_axis(places: Sequence[float]) -> svg.Axis:
    """Logarithmic, with a tick at each load that was run, and room for the outermost marks."""
    low, high = min(places) / 1.15, max(places) * 1.15
    return svg.Axis(low, high, True, tuple((place, f"{place:g}") for place in sorted(set(places))))


def _measure_axis(found: Sequence[Interval], measure: Measure) -> svg.Axis:
    """Room for the intervals, up to twice (and down to half) of what was found: longer bars run out of the picture."""
    means = [one.mean for one in found]
    ends = [end for one in found for end in (one.mean, one.low, one.high) if end is not None]
    high = min(max(ends), 2 * max(means))
    if measure.log:
        return svg.log_axis(max(min(ends), min(means) / 2), high, measure.told)
    return svg.linear_axis(0, high, number)


def _line(found: Sequence[Group], at: int, x: svg.Axis, y: svg.Axis, index: int, measure: Measure) -> Markup:
    across = x.at(np.array([float(g.key[at] or 0) for g in found])) * svg.WIDTH
    intervals = [i for g in found if (i := measure.interval(g)) is not None]
    means = np.array([one.mean for one in intervals])
    down = HEIGHT * (1 - y.at(means))
    path = "M" + "L".join(f"{h:.1f} {v:.1f}" for h, v in zip(across, down, strict=True))
    curve = tag("path", d=path, class_="curve", fill="none", stroke_dasharray=svg.DASHES[index % len(svg.DASHES)])
    whiskers = [
        tag("path", d=f"M{h:.1f} {ends[0]:.1f}V{ends[1]:.1f}", class_="curve", fill="none")
        for h, one in zip(across, intervals, strict=True)
        if (ends := _ends(one, y)) is not None
    ]
    titles = [f"{g.key[0]}, {g.key[at]:g}: {_told(i, measure.told)}" for g, i in zip(found, intervals, strict=True)]
    points = svg.dots(across / svg.WIDTH, y.at(means), HEIGHT, titles, class_="dot mark")
    return tag("g", curve, *whiskers, points, class_=f"s{index % 6}")


def _ends(found: Interval, y: svg.Axis) -> tuple[float, float] | None:
    if found.low is None or found.high is None:
        return None
    low, high = y.at(np.array([max(found.low, y.low), found.high]))
    return HEIGHT * (1 - float(low)), HEIGHT * (1 - float(high))


def _told(found: Interval | None, told: Callable[[float | None], str] = joules) -> str:
    if found is None:
        return UNKNOWN
    if found.low is None:
        return f"{told(found.mean)} (one run)"
    return f"{told(found.mean)} [{told(found.low)}, {told(found.high)}]"


def _load_told(group: Group) -> str:
    batch, rps = group.key[3], group.key[4]
    return f"batch {batch}" if batch is not None else f"{rps:g}/s"


def _table(found: Sequence[Group]) -> Markup:
    models = _models(found)
    head = [*_head(models), "runs", "J/output token [95 %]", "spread", "W", "tokens/s", "measured / idealized"]
    rows = [
        [
            *_named(g, models),
            str(len(g.rows)),
            _told(g.interval(PER_TOKEN)),
            _spread(g.values(PER_TOKEN)),
            watts(g.mean("mean_watts")),
            number(g.mean("output_tokens_per_s")),
            with_unit(g.mean("measured_over_idealized"), "×"),
        ]
        for g in found
    ]
    note = (
        "Spread: (largest − smallest) / mean of the repeats. Idealized: every FLOP, attention's included, at the "
        "dense peak rate and the power limit."
    )
    listed = table(head, rows, "Every configuration")
    return tag("figure", tag("h3", "Every configuration"), listed, tag("figcaption", note), class_="wide")


def _spread(values: Sequence[float]) -> str:
    return percent((max(values) - min(values)) / (sum(values) / len(values))) if len(values) > 1 else UNKNOWN


# ---------------------------------------------------------------- reductions


def _reductions(found: Sequence[Group], baseline: str | None) -> Markup:
    """Each configuration against the baseline's of the same workload and load, and against its best and worst load."""
    if baseline is None:
        return tag("p", "The study names no baseline.", class_="empty")
    bases = {g.key[1:]: g for g in found if g.key[0] == baseline and g.values(PER_TOKEN)}
    by_load = {(g.key[2], g.key[3], g.key[4]): g for g in bases.values()}
    rows = []
    for g in found:
        base = bases.get(g.key[1:]) or by_load.get((g.key[2], g.key[3], g.key[4]))
        if base is None or g.key[0] == baseline or not g.values(PER_TOKEN):
            continue
        saved = reduction_between(base, g, PER_TOKEN)
        told = [_percents(saved), joules(base.mean(PER_TOKEN)), joules(g.mean(PER_TOKEN))]
        rows.append([*_named(g, _models(found)), *told])
    if not rows:
        return empty(
            "Reduction", f"No configuration has a counterpart of {baseline} at the same workload and load yet."
        )
    head = [*_head(_models(found)), "less energy [95 %]", baseline, "this"]
    note = (
        f"1 − this / {baseline}, J per output token at the same workload and load. Intervals on logarithms: "
        "Welch's, or of pairs where both saw the same arrivals."
    )
    best = [part for w in sorted({g.key[2] for g in found}) if (part := _best(found, w, baseline))]
    return tag(
        "figure",
        *(tag("p", line) for line in best),
        table(head, rows, "Reduction"),
        tag("figcaption", note),
        class_="wide",
    )


def _best(found: Sequence[Group], workload: str, baseline: str) -> str | None:
    """The headline: from the baseline at its worst load to the best configuration."""
    known = [g for g in found if g.key[2] == workload and g.values(PER_TOKEN)]
    bases = [g for g in known if g.key[0] == baseline]
    if not bases or len(known) == len(bases):
        return None
    worst = max(bases, key=lambda g: g.mean(PER_TOKEN) or 0)
    least = min(bases, key=lambda g: g.mean(PER_TOKEN) or 0)
    best = min(known, key=lambda g: g.mean(PER_TOKEN) or 0)
    whole = reduction_between(worst, best, PER_TOKEN)
    tuned = reduction_between(least, best, PER_TOKEN)
    return (
        f"{workload}: {best.key[0]} at {_load_told(best)} takes {_percents(whole)} less than {baseline} at "
        f"{_load_told(worst)}, and {_percents(tuned)} less than {baseline} at its own best, {_load_told(least)}."
    )


def _percents(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{100 * found.mean:.1f} %"
    return f"{100 * found.mean:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


# ---------------------------------------------------------------- energy against latency


def _fronts(found: Sequence[Group], slo_ms: dict[str, float]) -> list[Markup]:
    metric = next((name for name in LATENCIES if name in slo_ms), "tpot")
    figures = []
    for workload in sorted({g.key[2] for g in found}):
        mine = [g for g in found if g.key[2] == workload and g.mean(LATENCIES[metric]) and g.mean(PER_TOKEN)]
        if len(mine) > 2:
            figures.append(_front(workload, mine, _series(found), metric, slo_ms.get(metric)))
    return figures or [empty("Energy and latency", "No workload has three configurations that know both.")]


def _front(
    workload: str, found: Sequence[Group], series: Sequence[tuple[str, str]], metric: str, limit_ms: float | None
) -> Markup:
    """Latency across, energy up; the front is what no other configuration beats in both."""
    field = LATENCIES[metric]
    known = [(g, g.mean(field) or 0.0, g.mean(PER_TOKEN) or 0.0) for g in found]
    heading = f"{workload}: energy against {metric.upper()}"
    latency: Floats = np.array([lat for _, lat, _ in known])
    energy: Floats = np.array([en for _, _, en in known])
    x, y = _axis_of(latency, seconds), _axis_of(energy, joules)
    front = pareto([(lat, en) for _, lat, en in known])
    across, down = x.at(latency) * svg.WIDTH, HEIGHT * (1 - y.at(energy))
    path = "M" + "L".join(f"{across[i]:.1f} {down[i]:.1f}" for i in front)
    marks = [tag("g", tag("path", d=path, class_="curve", fill="none", stroke_dasharray="2 3"), class_="flying")]
    for index, one in enumerate(series):
        mine = [i for i, (g, _, _) in enumerate(known) if (g.key[0], g.key[1]) == one]
        titles = [f"{one[0]}, {_load_told(known[i][0])}: {seconds(known[i][1])}, {joules(known[i][2])}" for i in mine]
        dots = svg.dots(across[mine] / svg.WIDTH, y.at(energy[mine]), HEIGHT, titles, class_="dot mark")
        marks.append(tag("g", dots, class_=f"s{index % 6}"))
    if limit_ms is not None and x.low < limit_ms / 1e3 < x.high:
        at = float(x.at(np.array([limit_ms / 1e3]))[0]) * svg.WIDTH
        line = tag("path", tag("title", f"limit: {limit_ms:g} ms"), d=f"M{at:.1f} 0V{HEIGHT:g}", class_="curve")
        marks.append(tag("g", line, class_="flying"))
    best = [known[i] for i in front if limit_ms is None or known[i][1] <= limit_ms / 1e3]
    least = min(best, key=lambda one: one[2], default=None)
    told = "; ".join(f"{known[i][0].key[0]} {_load_told(known[i][0])}" for i in front)
    within = "" if limit_ms is None else f" within {metric} ≤ {limit_ms:g} ms"
    choice = (
        f" Least energy{within}: {least[0].key[0]} at {_load_told(least[0])}, {joules(least[2])} per output token."
        if least
        else f" No configuration is{within}."
    )
    used = ((g.key[0], g.key[1]) for g in found)
    picture = join([_legend(series, used), svg.plot(f"front-{workload}", heading, told, x, y, HEIGHT, marks)])
    limit = "" if limit_ms is None or not x.low < limit_ms / 1e3 < x.high else f"; upright: {limit_ms:g} ms"
    caption = (
        f"Median {metric.upper()} across, J per output token up; dotted: the Pareto front ({told}){limit}.{choice}"
    )
    return figure(heading, "J per output token", picture, caption, "wide")


def _axis_of(values: Floats, told: Callable[[float | None], str]) -> svg.Axis:
    """Logarithmic where the values are far apart."""
    low, high = float(values.min()), float(values.max())
    return svg.log_axis(low, high, told) if high > 3 * low else svg.linear_axis(0.9 * low, 1.1 * high, told)


# ---------------------------------------------------------------- arrivals, limits, power


def _processes(found: Sequence[Group]) -> set[str]:
    return {g.rows[0].arrival for g in found if g.rows[0].arrival is not None}


def _arrivals(found: Sequence[Group]) -> Markup:
    """Open loops by how their requests came."""
    rows = [
        [
            g.key[2],
            g.key[0],
            g.rows[0].arrival or UNKNOWN,
            _load_told(g),
            _told(g.interval(PER_TOKEN)),
            watts(g.mean("mean_watts")),
            *(seconds(g.mean(field)) for field in ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s")),
        ]
        for g in sorted((g for g in found if g.key[4] is not None), key=lambda g: (g.key[4] or 0, g.key[0], g.key[2]))
    ]
    head = ["workload", "server", "arrivals", "load", "J/output token [95 %]", "W"]
    note = "gamma with its burstiness: 1 is Poisson, smaller is burstier. Latencies: means over the repeats."
    listed = table([*head, "TTFT p50", "p99", "TPOT p50", "p99"], rows, "Arrivals")
    return tag("figure", listed, tag("figcaption", note), class_="wide")


def _good(found: Sequence[Group], slo_ms: dict[str, float]) -> list[Markup]:
    """How many requests within the limits a joule buys: what a load costs those who want their answers in time."""
    limits = "Requests that met every limit: " + ", ".join(f"{m.upper()} ≤ {ms:g} ms" for m, ms in slo_ms.items()) + "."
    measure = replace(GOOD, caption=GOOD.caption.format(limits=limits))
    known = [g for g in found if g.values(GOOD.field)]
    rows = [
        [
            g.key[2],
            g.key[0],
            _load_told(g),
            percent(g.mean("goodput_ratio")),
            number(_good_per_s(g)),
            _told(measure.interval(g), number),
            *(seconds(g.mean(field)) for field in ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s")),
        ]
        for g in sorted(known, key=lambda g: (g.key[2], g.key[0], g.key[3] or 0, g.key[4] or 0))
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
    known = [r.goodput_ratio * r.completed / r.duration_s for r in group.rows if r.goodput_ratio is not None]
    return sum(known) / len(known) if known else None


def _power(found: Sequence[Group]) -> list[Markup]:
    """Watts over tokens per second: how little of the power goes away with the load."""
    known = [g for g in found if g.values("mean_watts") and g.values("output_tokens_per_s")]
    if len(known) < 2:
        return [empty("Power", "Fewer than two configurations have power and speed.")]
    speed: Floats = np.array([g.mean("output_tokens_per_s") or 0.0 for g in known])
    power: Floats = np.array([g.mean("mean_watts") or 0.0 for g in known])
    idle = [w for g in known for w in g.values("idle_watts")]
    x, y = svg.linear_axis(0, float(speed.max()) * 1.05, number), svg.linear_axis(0, float(power.max()) * 1.05, number)
    series, marks = _series(found), []
    for index, one in enumerate(series):
        mine = [i for i, g in enumerate(known) if (g.key[0], g.key[1]) == one]
        titles = [_power_title(known[i], float(speed[i]), float(power[i])) for i in mine]
        dots = svg.dots(x.at(speed[mine]), y.at(power[mine]), HEIGHT, titles, class_="dot mark")
        marks.append(tag("g", dots, class_=f"s{index % 6}"))
    caption = "One dot a configuration: means over its repeats."
    if idle:
        least = sum(idle) / len(idle)
        down = f"{HEIGHT * (1 - float(y.at(np.array([least]))[0])):.1f}"
        title = tag("title", f"idle: {watts(least)}")
        line = tag("path", title, d=f"M0 {down}H{svg.WIDTH}", class_="curve", fill="none", stroke_dasharray="2 3")
        marks.append(tag("g", line, class_="flying"))
        caption += f" Dotted: {watts(least)}, idle with the model resident, before the runs."
    told = "; ".join(_power_title(g, float(s), float(w)) for g, s, w in zip(known, speed, power, strict=True))
    picture = join([_legend(series, series), svg.plot("power", "Power", told, x, y, HEIGHT, marks)])
    return [figure("Watts against output tokens per second", "W", picture, caption, "wide")]


def _power_title(group: Group, speed: float, power: float) -> str:
    return f"{group.key[0]}, {group.key[2]}, {_load_told(group)}: {number(speed)} tokens/s, {watts(power)}"


# ---------------------------------------------------------------- shares


def _shares(found: Sequence[Group]) -> Markup:
    accounts, rows = ("prefill", "decode", "idle", "unattributed"), []
    for g in found:
        parts = {name: g.mean(f"{name}_joules") for name in accounts}
        known = {name: value for name, value in parts.items() if value is not None}
        whole = sum(known.values())
        if whole <= 0:
            continue
        told = {name: percent(value / whole) for name, value in known.items()}
        text = ", ".join(f"{name} {share}" for name, share in told.items())
        bar = stacked_bar([(name, value, f"{name} {told[name]}") for name, value in known.items()], text)
        rows.append([*_named(g, _models(found)), bar, *(told.get(name, UNKNOWN) for name in accounts)])
    if not rows:
        return empty("Shares", "No run has attributed energy.")
    keys = [tag("span", tag("span", class_=f"key {name}"), name) for name in accounts]
    note = "Means over the repeats. Prefill and decode as a client sees them: until the first token, and after it."
    listed = table([*_head(_models(found)), "", *keys], rows, "Prefill and decode")
    return tag("figure", listed, tag("figcaption", note), class_="wide")
