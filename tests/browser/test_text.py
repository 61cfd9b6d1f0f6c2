"""The script writes numbers as the page's tables do."""

from importlib.resources import files

import numpy as np

from loadgen.report.charts.chart import tick_text, value_text

UNITS = ("s", "J", "W", "tokens", "share", "1/s", "tokens/s", "")
SOURCE = (files("loadgen.report.charts") / "script" / "text.js").read_text(encoding="utf-8").replace("export ", "")


def _values() -> list[float]:
    """Zero, ties of rounding, the thresholds of prefixes from both sides, and five digits at any size."""
    rng = np.random.default_rng(0)
    ties = [0.125, 0.375, 1.125, 2.5, 10.25, 12.345, 1.05, 0.285, 1234.5, 1235.5, 99.95, 0.0625]
    edges = [e * f for e in (1e-6, 1e-5, 1e-3, 0.01, 1.0, 999.5, 1e4, 1e6) for f in (0.9994, 0.9996, 1, 1.0004)]
    sizes = 10.0 ** rng.uniform(-7, 6, 300)
    return [0.0, 0.0004, 0.9996, *ties, *edges, *(float(f"{v:.5g}") for v in sizes)]


def _differences(page_of, function: str, cases: list[tuple[float, str]], wanted: list[str]) -> list[object]:
    body = f"{SOURCE}; return cases.map(([value, unit]) => {function}(value, unit));"
    found = page_of("<title>t</title>").evaluate(f"cases => {{ {body} }}", cases)
    return [(case, f, w) for case, f, w in zip(cases, found, wanted, strict=True) if f != w]


def test_values_are_written_as_in_python(page_of) -> None:
    cases = [(value, unit) for unit in UNITS for value in _values() if unit != "share" or value <= 1]
    assert _differences(page_of, "valueText", cases, [value_text(*case) for case in cases]) == []


def test_ticks_are_written_as_in_python(page_of) -> None:
    steps = [m * 10.0**e for e in range(-6, 6) for m in (1, 1.5, 2, 5)]
    signed = [0.0, *steps, *(-step for step in steps)]
    least = {"s": 1e-6, "J": 1e-6}
    cases = [(v, unit) for unit in UNITS for v in signed if v == 0 or abs(v) >= least.get(unit, 1e-4)]
    cases = [(v, unit) for v, unit in cases if unit != "share" or 0 <= v <= 1]
    assert _differences(page_of, "tickText", cases, [tick_text(*case) for case in cases]) == []
