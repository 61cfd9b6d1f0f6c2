"""Draw the Grafana dashboards with the answers of a real Prometheus to their queries; Grafana itself is not run.

    python -m benchmarks.instrument.dashboard_pictures docs/how-to      # needs prometheus; takes two minutes

The simulated server, the sidecar and Prometheus run on this machine during two replays of chat and code.
"""

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from html import escape
from math import ceil, floor, isfinite, log10
from pathlib import Path
from typing import Any, NamedTuple

from loadgen.report.format import joules, number, percent, seconds, watts
from loadgen.servers.launcher import served

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "servers" / "stack" / "monitoring"
BOARDS = MONITORING / "grafana" / "dashboards"
VARIABLES = {
    "$__rate_interval": "10s",
    "$__range": "90s",
    "$label": "tenant",
    "$value": ".*",
    "$model": ".*",
    "$workload": ".*",
    "$carbon_g_per_kwh": "400",
    "$price_per_kwh": "0.20",
}
"""Values of the dashboards' variables. The interval is ten scrapes; Grafana takes four, of 5 s each."""
STEP_S = 2
LOADS = ((3, 1, 40), (12, 5, 45))
"""Requests per second of two streams, chat of tenant a and code of tenant b, and for how many seconds."""

COLUMN, ROW, GAP, TOP = 40, 27, 6, 34
"""Sizes in pixels: of one of the 24 columns, of one unit of height, between panels, and of the title."""
MAX_SERIES = 6
STYLE = """text{font:12px system-ui,sans-serif;fill:#1f2328}.soft{fill:#59636e}.title{font-weight:600}
.big{font-size:26px;font-weight:600}.panel{fill:#fff;stroke:#d1d9e0}.page{fill:#f6f8fa}.grid{stroke:#d1d9e0}
path{fill:none;stroke-width:1.6}.s0{stroke:#0969da}.s1{stroke:#bc4c00}.s2{stroke:#1a7f37}.s3{stroke:#8250df}
.s4{stroke:#9a6700}.s5{stroke:#cf222e}.cell{fill:#0969da;stroke:none}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.soft{fill:#9198a1}.panel{fill:#151b23;stroke:#3d444d}
.page{fill:#0d1117}.grid{stroke:#3d444d}.s0{stroke:#4493f8}.s1{stroke:#f0883e}.s2{stroke:#3fb950}.s3{stroke:#ab7df8}
.s4{stroke:#d29922}.s5{stroke:#f85149}.cell{fill:#4493f8}}"""
UNITS = {
    "s": seconds,
    "joule": joules,
    "watt": watts,
    "percentunit": percent,
    "reqps": lambda value: f"{number(value)} /s",
    "massg": lambda value: f"{number(value)} g",
    "short": number,
}


class Curve(NamedTuple):
    """The answer to a query: values by time in seconds since the beginning."""

    name: str
    points: list[tuple[float, float]]


# -- the answers -------------------------------------------------------------------------------------------------------


def main(folder: Path) -> None:
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = stack.enter_context(served("sim", "--max-num-seqs", "24")).removesuffix("/v1")
        sidecar, prometheus = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
        port = sidecar.rpartition(":")[2]
        command = (sys.executable, "-m", "loadgen", "sidecar", "--engine-url", engine, "--port", port,
                   "--label", "tenant=loadgen.tag.tenant")  # fmt: skip
        stack.enter_context(_running(command, sidecar + "/healthz"))
        config = data / "prometheus.json"  # JSON is YAML
        jobs = [
            {"job_name": job, "static_configs": [{"targets": [url.removeprefix("http://")]}]}
            for job, url in (("sidecar", sidecar), ("engine", engine))
        ]
        config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
        address = prometheus.removeprefix("http://")
        options = (f"--config.file={config}", f"--storage.tsdb.path={data / 'tsdb'}", f"--web.listen-address={address}")
        stack.enter_context(_running(("prometheus", *options), prometheus + "/-/ready"))
        start_s = time.time()
        for load in LOADS[:-1]:
            _check(_replay(engine, sidecar, data / "first", *load))
        running = _replay(engine, sidecar, data / "last", *LOADS[-1])
        stack.callback(_check, running)
        time.sleep(LOADS[-1][2] + 1)  # the dashboards are seen under load
        span = (start_s, time.time())
        for path in sorted(BOARDS.glob("*.json")):
            board = json.loads(path.read_text())
            answers = {panel["id"]: _curves(prometheus, panel, span) for panel in board["panels"]}
            (folder / f"dashboard-{path.stem}.svg").write_text(drawn(board, answers, span[1] - span[0]))


def _replay(engine: str, sidecar: str, out: Path, chat: int, code: int, duration_s: int) -> "subprocess.Popen[bytes]":
    streams = (ROOT / "traces" / "mix.toml").read_text()
    for name, rps, tenant in (("chat", chat, "a"), ("code", code, "b")):
        trace = ROOT / "traces" / f"{name}.jsonl"
        changes = f'trace = "{trace}"\ntags = {{ tenant = "{tenant}" }}\nrps = {rps}\n'
        streams = re.sub(rf'trace = "{name}\.jsonl"\nrps = .*\n', changes, streams)
    file = out.with_suffix(".toml")
    file.write_text(streams)
    command = [sys.executable, "-m", "loadgen", "replay", str(file), "--duration", str(duration_s)]
    command += ["--base-url", engine + "/v1", "--otlp", sidecar, "--out", str(out), "--ui", "none"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _check(replay: "subprocess.Popen[bytes]") -> None:
    """Wait for a replay. SystemExit if it failed: the pictures would be of another load."""
    if status := replay.wait():
        raise SystemExit(f"a replay ended with status {status}")


def _curves(prometheus: str, panel: dict[str, Any], span: tuple[float, float]) -> list[Curve]:
    """Return the answers to the queries of a panel."""
    curves = []
    for target in panel["targets"]:
        query, legend = interpolated(target["expr"]), interpolated(target["legendFormat"])
        limits = {"start": span[0], "end": span[1], "step": STEP_S}
        with urllib.request.urlopen(
            f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode({'query': query} | limits)}", timeout=20
        ) as page:
            rows = json.load(page)["data"]["result"]
        for row in rows:
            name = legend
            for label, value in row["metric"].items():
                name = name.replace("{{" + label + "}}", value)
            points = [(at_s - span[0], float(value)) for at_s, value in row["values"]]
            curves.append(Curve(name, [point for point in points if isfinite(point[1])]))
    return curves


def interpolated(text: str) -> str:
    """Return a text with the values of the dashboards' variables."""
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    return text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(command: Sequence[str], ready: str) -> Iterator[None]:
    """Run a program while the block does, once the page `ready` answers."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(ready, timeout=2).close()
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.1)
            else:
                raise SystemExit(f"{command[0]} does not answer at {ready}")
            yield
        finally:
            process.terminate()


# -- the picture -------------------------------------------------------------------------------------------------------


def drawn(board: dict[str, Any], answers: dict[int, list[Curve]], duration_s: float) -> str:
    """Return a dashboard as SVG, in its own layout; times count from the beginning."""
    width = 24 * COLUMN + GAP
    height = TOP + GAP + ROW * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(board["title"])}"><style>{STYLE}</style>'
        f'<rect class="page" width="{width}" height="{height}"/>'
        f'<text class="title" x="{2 * GAP}" y="22" style="font-size:15px">{escape(board["title"])}</text>'
    ]
    for panel in board["panels"]:
        place = panel["gridPos"]
        w, h = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP
        parts.append(f'<g transform="translate({place["x"] * COLUMN + GAP},{place["y"] * ROW + TOP})">')
        parts.append(f'<rect class="panel" width="{w}" height="{h}" rx="4"/>')
        parts.append(f'<text class="title" x="10" y="19">{escape(interpolated(panel["title"]))}</text>')
        unit, curves = panel["fieldConfig"]["defaults"]["unit"], answers[panel["id"]]
        if not any(curve.points for curve in curves):
            parts.append(f'<text class="soft" x="10" y="{h / 2 + 12:.0f}">No data</text>')
        elif panel["type"] == "stat":
            parts.append(f'<text class="big" x="10" y="{h - 22}">{escape(UNITS[unit](last(curves)))}</text>')
        elif panel["type"] == "bargauge":
            parts.append(_bars(curves, unit, w, h))
        elif panel["type"] == "heatmap":
            parts.append(_heatmap(curves, w, h, duration_s))
        else:
            parts.append(_lines(curves, unit, w, h, duration_s))
        parts.append("</g>")
    return "".join([*parts, "</svg>\n"])


def last(curves: Sequence[Curve]) -> float:
    """Return the last known value, as a stat panel shows it."""
    return max((point for curve in curves for point in curve.points), key=lambda point: point[0])[1]


def ticks(low: float, high: float) -> list[float]:
    """Return three to six round values that reach from `low` or below it to `high` or above it."""
    rough = (high - low) / 4 or abs(high) or 1.0
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [round(i * step, 12) for i in range(floor(low / step + 1e-9), ceil(high / step - 1e-9) + 1)]


def labels(marks: Sequence[float], unit: str) -> list[str]:
    """Return the texts of an axis' ticks; as powers of ten where one is too long: rounding errors have no prefix."""
    texts = [UNITS[unit](mark) for mark in marks]
    return texts if max(map(len, texts)) <= 9 else [f"{mark:.0e}" if mark else "0" for mark in marks]


LEFT, RIGHT, HEAD, FOOT = 64, 12, 30, 42
"""Margins of the area of the marks in a panel."""


def _lines(curves: Sequence[Curve], unit: str, w: int, h: int, duration_s: float) -> str:
    shown = [curve for curve in curves if curve.points][:MAX_SERIES]
    values = [value for curve in shown for _, value in curve.points]
    marks = ticks(min(0.0, *values), max(values))
    low, high = marks[0], marks[-1] if marks[-1] > marks[0] else marks[0] + 1

    def y(value: float) -> float:
        return h - FOOT - (value - low) / (high - low) * (h - HEAD - FOOT)

    parts = [
        f'<path class="grid" d="M{LEFT} {y(mark):.1f}H{w - RIGHT}"/><text class="soft" text-anchor="end" '
        f'x="{LEFT - 6}" y="{y(mark) + 4:.1f}">{escape(text)}</text>'
        for mark, text in zip(marks, labels(marks, unit), strict=True)
    ]
    parts.append(_times(w, h, duration_s))
    x = LEFT
    for i, curve in enumerate(shown):
        steps, previous_s = [], None
        for at_s, value in curve.points:
            gap = previous_s is None or at_s - previous_s > 1.5 * STEP_S  # no line over what is not known
            steps.append(f"{'M' if gap else 'L'}{_x(at_s, w, duration_s):.1f} {y(value):.1f}")
            previous_s = at_s
        dash = f' stroke-dasharray="{2 * i + 3} 3"' if i else ""
        parts.append(f'<path class="s{i}"{dash} d="{"".join(steps)}"/>')
        if x + 23 + 7 * len(curve.name) > w:  # no room for its name
            continue
        parts.append(f'<path class="s{i}"{dash} d="M{x} {h - 12}h18"/>')
        parts.append(f'<text x="{x + 23}" y="{h - 8}">{escape(curve.name)}</text>')
        x += 40 + 7 * len(curve.name)
    return "".join(parts)


def _bars(curves: Sequence[Curve], unit: str, w: int, h: int) -> str:
    """Return a bar for the last value of each curve."""
    shown = [(curve.name, last([curve])) for curve in curves if curve.points][:MAX_SERIES]
    high, tall = max(value for _, value in shown) or 1.0, (h - HEAD - 10) / len(shown)
    parts = []
    for i, (name, value) in enumerate(shown):
        y = HEAD + i * tall
        parts.append(f'<text x="10" y="{y + 12:.1f}">{escape(name)}</text>')
        parts.append(f'<text text-anchor="end" x="{w - RIGHT}" y="{y + 12:.1f}">{escape(UNITS[unit](value))}</text>')
        wide = (w - 10 - RIGHT) * value / high
        parts.append(
            f'<rect class="cell" x="10" y="{y + 17:.1f}" width="{wide:.1f}" height="{max(tall - 24, 4):.1f}"/>'
        )
    return "".join(parts)


def _heatmap(curves: Sequence[Curve], w: int, h: int, duration_s: float) -> str:
    """Return the counts between two bounds as cells; the curves are cumulative over their bounds."""
    by_bound = sorted((float(curve.name), dict(curve.points)) for curve in curves)
    cells = [
        (at_s, row, count - (by_bound[row - 1][1].get(at_s, 0.0) if row else 0.0))
        for row, (_, counts) in enumerate(by_bound)
        for at_s, count in counts.items()
    ]
    used = [row for _, row, count in cells if count > 0]
    if not used:
        return f'<text class="soft" x="10" y="{h / 2:.0f}">No data</text>'
    first, rows, most = min(used), max(used) - min(used) + 1, max(count for _, _, count in cells)
    tall, wide = (h - HEAD - FOOT) / rows, (w - LEFT - RIGHT) * STEP_S / duration_s
    parts = [
        f'<rect class="cell" x="{_x(at_s, w, duration_s) - wide:.1f}" y="{h - FOOT - (row - first + 1) * tall:.1f}" '
        f'width="{wide:.1f}" height="{tall:.1f}" opacity="{0.15 + 0.85 * count / most:.2f}"/>'
        for at_s, row, count in cells
        if count > 0
    ]
    for row in range(first, first + rows):
        label = joules(by_bound[row][0]) if isfinite(by_bound[row][0]) else "+Inf"
        y = h - FOOT - (row - first + 1) * tall + 10
        parts.append(f'<text class="soft" text-anchor="end" x="{LEFT - 6}" y="{y:.1f}">{escape(label)}</text>')
    return "".join([*parts, _times(w, h, duration_s)])


def _x(at_s: float, w: int, duration_s: float) -> float:
    return LEFT + at_s / duration_s * (w - LEFT - RIGHT)


def _times(w: int, h: int, duration_s: float) -> str:
    marks = [mark for mark in range(0, int(duration_s) + 1, 20)]
    return "".join(
        f'<text class="soft" text-anchor="middle" x="{_x(mark, w, duration_s):.1f}" y="{h - FOOT + 17}">'
        f"{mark // 60}:{mark % 60:02d}</text>"
        for mark in marks
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
