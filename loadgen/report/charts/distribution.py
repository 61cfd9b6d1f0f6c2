"""The distribution of a quantity in each of several groups, as a chart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from loadgen.report.charts.chart import Axis, Chart, Limit, Series, value_text
from loadgen.report.format import clean, plural
from loadgen.stats.distributions import CURVE_PERCENTILES, RANKS

if TYPE_CHECKING:
    from loadgen.stats.distributions import ShareCurve

SHARE_TICKS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99)


def distribution(
    key: str,
    title: str,
    x: Axis,
    curves: Mapping[str, ShareCurve],
    *,
    of: str = "request",
    note: str = "",
    limits: tuple[Limit, ...] = (),
) -> Chart:
    """Return the cumulative share of each group over its values, with dots at some percentiles.

    of: the noun of what is counted. On a logarithmic axis a curve begins at the share of the values that are not above
    zero, which the axis does not have. Series of one name belong together: a group's curve and its dots.
    """
    lines, dots, texts = [], [], []
    for colour, (name, curve) in enumerate(curves.items()):
        marked = {percent: value_text(value, x.unit) for percent, value in curve.percentiles.items()}
        texts.append(f"{clean(name)}: " + ", ".join(f"p{percent} {value}" for percent, value in marked.items()))
        shown = curve.values > 0 if x.log else np.ones(len(curve.values), dtype=bool)
        if not shown.any():
            continue
        at, shares = curve.values[shown], curve.shares[shown]
        below = float(curve.shares[~shown][-1]) if not shown.all() else 0.0
        # The last step has no length: a step curve needs an end.
        at, shares = np.concatenate([at[:1], at, at[-1:]]), np.concatenate([[below], shares])
        lines.append(Series(name, at, shares, "steps", colour))
        hints = [f"{clean(name)}: p{percent} = {value}" for percent, value in marked.items()]
        places = np.array(list(curve.percentiles.values()))
        dots.append(Series(name, places, np.array(list(marked)) / 100, "dots", colour, hints=hints))
    counts = "; ".join(f"{clean(name)}: {plural(curve.count, of)}" for name, curve in curves.items())
    thinned = any(curve.count > RANKS for curve in curves.values())
    rule = f" A curve is drawn at up to {RANKS} ranks, closer together above 99 %." if thinned else ""
    dotted = ", ".join(f"p{percent}" for percent in CURVE_PERCENTILES)
    return Chart(
        key,
        title,
        x,
        Axis(f"share of {of}s at or below", "share", low=0.0, high=1.0, ticks=SHARE_TICKS),
        (*lines, *dots),
        text=f"{title}, cumulative share of {of}s. {'; '.join(texts)}.",
        caption=f"{counts}. Dots: {dotted}.{rule}{note and ' ' + note}",
        limits=limits,
    )
