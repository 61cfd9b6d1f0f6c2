"""A study on one page: what each choice costs in joules, how sure that is, and what it does to latency."""

from collections.abc import Sequence
from importlib.resources import files
from string import Template

import numpy as np

from loadgen.report import svg
from loadgen.report.figures import Floats, empty, figure, legend
from loadgen.report.format import UNKNOWN, joules, number, percent, plural, seconds, watts, with_unit
from loadgen.report.html import _bar
from loadgen.report.markup import Markup, join, table, tag
from loadgen.results import Group, Interval, Row, groups, pareto, reduction_between

HEIGHT = 240.0
PER_TOKEN = "joules_per_output_token"
LATENCIES = {"tpot": "tpot_p50_s", "ttft": "ttft_p50_s", "e2el": "e2e_p50_s"}
"""SLO metric -> the field its median is in."""


def render(
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
            _section("Energy per output token", *_by_load(found, "batch"), *_by_load(found, "rps"), _table(found)),
            _section("Reduction against the baseline", _reductions(found, baseline)),
            _section("Energy and latency", *_fronts(found, slo_ms)),
            _section("Where the energy went", _shares(found)),
        ]
    page = Template((files("loadgen.report") / "page.html").read_text(encoding="utf-8"))
    style = (files("loadgen.report") / "page.css").read_text(encoding="utf-8")
    return page.substitute(title=tag("title", f"{title} · loadgen study"), style=style, body=join(sections))


def _section(heading: str, *parts: str) -> Markup:
    key = heading.lower().replace(" ", "-")
    return tag("section", tag("h2", heading, id=key), *parts, aria_labelledby=key)


def _header(title: str, description: str, rows: Sequence[Row], failed: dict[str, str], left: int) -> Markup:
    simulated = any(row.simulated for row in rows)
    badge = tag("span", "SIMULATED", class_="badge") if simulated else ""
    gpus = sorted({row.gpu for row in rows if row.gpu})
    meta = " · ".join([plural(len(rows), "run"), *([plural(left, "run") + " to go"] if left else []), *gpus])
    reasons = [f"{name} failed: {why.splitlines()[0]}" for name, why in sorted(failed.items())]
    if doubtful := sum(not row.energy_valid for row in rows):
        reasons.append(f"{plural(doubtful, 'run')} whose energy is not valid: each run's own report says why")
    if simulated:
        reasons.append("The server was simulated: joules and times are a model's, not a machine's.")
    told = tag("ul", *(tag("li", line) for line in reasons)) if reasons else ""
    kind = "bad" if failed else "fair" if reasons else "good"
    head = "With failed runs" if failed else "With remarks" if reasons else "Every run is valid"
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


def _by_load(found: Sequence[Group], load: str) -> list[Markup]:
    """One figure a workload: x is the batch or the rate, both axes logarithmic."""
    at = 3 if load == "batch" else 4
    chosen = [g for g in found if g.key[at] is not None and g.interval(PER_TOKEN) is not None]
    workloads = sorted({g.key[2] for g in chosen})
    heading = "by batch" if load == "batch" else "by requests per second"
    return [_load_figure(w, heading, at, [g for g in chosen if g.key[2] == w], _series(found)) for w in workloads]


def _load_figure(
    workload: str, heading: str, at: int, found: Sequence[Group], series: Sequence[tuple[str, str]]
) -> Markup:
    places = [float(g.key[at] or 0) for g in found]
    ends = [value for g in found for value in _whisker(g.interval(PER_TOKEN))]
    x = _load_axis(places)
    y = svg.log_axis(min(ends), max(ends), joules)
    marks, told = [], []
    for index, one in enumerate(series):
        mine = sorted((g for g in found if (g.key[0], g.key[1]) == one), key=lambda g: float(g.key[at] or 0))
        if mine:
            marks.append(_line(mine, at, x, y, index))
            told.append(f"{one[0]}: " + ", ".join(f"{g.key[at]:g}: {joules(g.mean(PER_TOKEN))}" for g in mine))
    key = f"load-{at}-{workload}"
    picture = join([legend(_names(series)), svg.plot(key, workload, "; ".join(told), x, y, HEIGHT, marks)])
    caption = "Measured energy of the whole run, idle included, over output tokens. Bars: 95 % interval of the repeats."
    return figure(f"{workload}, {heading}", "J per output token", picture, caption, "wide")


def _load_axis(places: Sequence[float]) -> svg.Axis:
    """Logarithmic, with a tick at each load that was run."""
    low, high = min(places), max(places)
    ticks = tuple((place, f"{place:g}") for place in sorted(set(places)))
    return svg.Axis(low, high, True, ticks) if high > low else svg.Axis(low / 2, low * 2, True, ticks)


def _whisker(found: Interval | None) -> list[float]:
    """The mean and those ends that a logarithmic axis can show."""
    assert found is not None
    ends = [found.mean, found.low, found.high]
    return [value for value in ends if value is not None and value > 0]


def _line(found: Sequence[Group], at: int, x: svg.Axis, y: svg.Axis, index: int) -> Markup:
    across = x.at(np.array([float(g.key[at] or 0) for g in found])) * svg.WIDTH
    means = np.array([g.mean(PER_TOKEN) or 0.0 for g in found])
    down = HEIGHT * (1 - y.at(means))
    path = "M" + "L".join(f"{h:.1f} {v:.1f}" for h, v in zip(across, down, strict=True))
    curve = tag("path", d=path, class_="curve", fill="none", stroke_dasharray=svg.DASHES[index % len(svg.DASHES)])
    whiskers = [
        tag("path", d=f"M{h:.1f} {ends[0]:.1f}V{ends[1]:.1f}", class_="curve", fill="none")
        for h, g in zip(across, found, strict=True)
        if (ends := _ends(g, y)) is not None
    ]
    titles = [f"{g.key[0]}, {g.key[at]:g}: {_told(g.interval(PER_TOKEN))}" for g in found]
    points = svg.dots(across / svg.WIDTH, y.at(means), HEIGHT, titles, class_="dot mark")
    return tag("g", curve, *whiskers, points, class_=f"s{index % 6}")


def _ends(group: Group, y: svg.Axis) -> tuple[float, float] | None:
    found = group.interval(PER_TOKEN)
    if found is None or found.low is None or found.high is None:
        return None
    low, high = y.at(np.array([max(found.low, y.low), found.high]))
    return HEIGHT * (1 - float(low)), HEIGHT * (1 - float(high))


def _told(found: Interval | None) -> str:
    if found is None:
        return UNKNOWN
    if found.low is None:
        return f"{joules(found.mean)} (one run)"
    return f"{joules(found.mean)} [{joules(found.low)}, {joules(found.high)}]"


def _load_told(group: Group) -> str:
    batch, rps = group.key[3], group.key[4]
    return f"batch {batch}" if batch is not None else f"{rps:g}/s"


def _table(found: Sequence[Group]) -> Markup:
    head = ["server", "model", "workload", "load", "runs", "J/output token [95 %]", "spread", "W", "tokens/s",
            "measured / idealized"]  # fmt: skip
    rows = [
        [
            *g.key[:3],
            _load_told(g),
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
        rows.append(
            [*g.key[:3], _load_told(g), _percents(saved), joules(base.mean(PER_TOKEN)), joules(g.mean(PER_TOKEN))]
        )
    if not rows:
        return empty(
            "Reduction", f"No configuration has a counterpart of {baseline} at the same workload and load yet."
        )
    head = ["server", "model", "workload", "load", "less energy [95 %]", baseline, "this"]
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
    return [
        _front(workload, [g for g in found if g.key[2] == workload], _series(found), metric, slo_ms.get(metric))
        for workload in sorted({g.key[2] for g in found})
    ]


def _front(
    workload: str, found: Sequence[Group], series: Sequence[tuple[str, str]], metric: str, limit_ms: float | None
) -> Markup:
    """Latency across, energy up; the front is what no other configuration beats in both."""
    field = LATENCIES[metric]
    known = [(g, lat, en) for g in found if (lat := g.mean(field)) and (en := g.mean(PER_TOKEN))]
    heading = f"{workload}: energy against {metric.upper()}"
    if len(known) < 2:
        return empty(heading, "Fewer than two configurations have both.")
    latency: Floats = np.array([lat for _, lat, _ in known])
    energy: Floats = np.array([en for _, _, en in known])
    x = svg.log_axis(float(latency.min()), float(latency.max()), seconds)
    y = svg.log_axis(float(energy.min()), float(energy.max()), joules)
    front = pareto([(lat, en) for _, lat, en in known])
    across, down = x.at(latency) * svg.WIDTH, HEIGHT * (1 - y.at(energy))
    path = "M" + "L".join(f"{across[i]:.1f} {down[i]:.1f}" for i in front)
    marks = [tag("path", d=path, class_="curve", fill="none", stroke_dasharray="2 3")]
    for index, one in enumerate(series):
        mine = [i for i, (g, _, _) in enumerate(known) if (g.key[0], g.key[1]) == one]
        titles = [f"{one[0]}, {_load_told(known[i][0])}: {seconds(known[i][1])}, {joules(known[i][2])}" for i in mine]
        dots = svg.dots(across[mine] / svg.WIDTH, y.at(energy[mine]), HEIGHT, titles, class_="dot mark")
        marks.append(tag("g", dots, class_=f"s{index % 6}"))
    if limit_ms is not None and x.low < limit_ms / 1e3 < x.high:
        at = float(x.at(np.array([limit_ms / 1e3]))[0]) * svg.WIDTH
        marks.append(tag("path", tag("title", f"limit: {limit_ms:g} ms"), d=f"M{at:.1f} 0V{HEIGHT:g}", class_="curve"))
    best = [known[i] for i in front if limit_ms is None or known[i][1] <= limit_ms / 1e3]
    least = min(best, key=lambda one: one[2], default=None)
    told = "; ".join(f"{known[i][0].key[0]} {_load_told(known[i][0])}" for i in front)
    within = "" if limit_ms is None else f" within {metric} ≤ {limit_ms:g} ms"
    choice = (
        f" Least energy{within}: {least[0].key[0]} at {_load_told(least[0])}, {joules(least[2])} per output token."
        if least
        else f" No configuration is{within}."
    )
    picture = join([legend(_names(series)), svg.plot(f"front-{workload}", heading, told, x, y, HEIGHT, marks)])
    caption = f"Median {metric.upper()} across, J per output token up; dotted: the Pareto front ({told}).{choice}"
    return figure(heading, "J per output token", picture, caption, "wide")


# ---------------------------------------------------------------- shares


def _shares(found: Sequence[Group]) -> Markup:
    rows = []
    for g in found:
        parts = {name: g.mean(f"{name}_joules") for name in ("prefill", "decode", "idle", "unattributed")}
        known = {name: value for name, value in parts.items() if value is not None}
        whole = sum(known.values())
        if whole <= 0:
            continue
        told = ", ".join(f"{name} {percent(value / whole)}" for name, value in known.items())
        bar = _bar([(name, value, f"{name} {percent(value / whole)}") for name, value in known.items()], told)
        rows.append([*g.key[:3], _load_told(g), bar, told])
    if not rows:
        return empty("Shares", "No run has attributed energy.")
    head = ["server", "model", "workload", "load", "prefill · decode · idle", ""]
    note = "Means over the repeats. Prefill and decode as a client sees them: until the first token, and after it."
    return tag("figure", table(head, rows, "Prefill and decode"), tag("figcaption", note), class_="wide")
