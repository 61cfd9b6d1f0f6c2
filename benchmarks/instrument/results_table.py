"""Format the results of compare_clients as one table; write benchmarks.json and benchmarks.md in docs/results."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs" / "results"
LOADGEN = "loadgen"
NO_TIME = "no time"
"""Failure text of a run that was not started before time ran out."""

Results = dict[str, dict[str, dict[str, Any]]]
"""Map case -> client -> numbers, or {"failure": reason}."""

ROWS: list[tuple[str, str, str, str]] = [
    ("events/s on one core, as the reads come", "burst", "{events_per_s:,.0f}", "events_per_s"),
    ("events/s on one core, one write an event", "lone", "{events_per_s:,.0f}", "events_per_s"),
    ("CPU s per 1M events, as the reads come", "burst", "{cpu_s_per_million_events:.2f}", "cpu_s_per_million_events"),
    ("CPU s per 1M events, one write an event", "lone", "{cpu_s_per_million_events:.2f}", "cpu_s_per_million_events"),
    ("requests/s of one token", "one-token", "{requests_per_s:,.0f}", "requests_per_s"),
    *(
        row
        for n in (50, 200, 500, 1000)
        for row in (
            (f"TTFT error at {n:,} streams, p50 / p99 ms", f"paced-{n}",
             "{ttft_error_ms_p50:.2f} / {ttft_error_ms_p99:.2f}", ""),
            (f"ITL error at {n:,} streams, p50 / p99 ms", f"paced-{n}",
             "{itl_error_ms_p50:.3f} / {itl_error_ms_p99:.2f}", ""),
            (f"TPOT error at {n:,} streams, p50 / p99 ms", f"paced-{n}",
             "{tpot_error_ms_p50:.4f} / {tpot_error_ms_p99:.3f}", ""),
            (f"CPU s per 1M events at {n:,} streams", f"paced-{n}", "{cpu_s_per_million_events:.1f}",
             "cpu_s_per_million_events"),
            ("server's own lateness then, p99 ms", f"paced-{n}", "{server_late_ms_p99:.2f}", ""),
        )
    ),
    ("Poisson at 400/s: KS distance (5 % critical value)", "poisson", "{ks:.3f} ({ks_critical:.3f})", ""),
    ("Poisson at 400/s: dispersion in 1 s / 0.25 s (1)", "poisson", "{dispersion_1s:.2f} / {dispersion_250ms:.2f}", ""),
    ("Poisson at 400/s: rate", "poisson", "{rate_per_s:.0f}", ""),
    ("launch to first request, s", "poisson", "{start_s:.2f}", "start_s"),
    ("peak memory of all its processes, one-token run, MB", "one-token", "{rss_mb:,.0f}", "rss_mb"),
    ("requests in that run", "one-token", "{requests:,.0f}", ""),
]  # fmt: skip
"""Title, case, format of a cell, and the number whose ratio to loadgen's follows it."""

RATIOS = sorted({ratio for *_, ratio in ROWS if ratio})


def markdown(results: dict[str, Any]) -> str:
    """Return a line about the machine, a table with one column per client, and the failures and missing clients."""
    clients = list(results["versions"])
    lines = [
        f"Measured {results['measured']} with `{results['command']}` on {results['machine']}. "
        f"Ratios (×) are to {LOADGEN}'s number of the same round: median [least, greatest]. `-`: the client "
        "does not report it, or was not run because it was far too late with fewer streams; `no time`: "
        "needs more `--minutes`.",
        "",
        "| | " + " | ".join(f"{name} {results['versions'][name]}".strip() for name in clients) + " |",
        "|---" * (len(clients) + 1) + "|",
    ]
    for title, case, form, ratio in ROWS:
        if by_client := results["cases"].get(case):
            lines.append(f"| {title} | " + " | ".join(_cell(by_client, name, form, ratio) for name in clients) + " |")
    failures = [
        f"* {name}, {case}: failed: {numbers['failure']}"
        for case, by_client in results["cases"].items()
        for name, numbers in by_client.items()
        if numbers.get("failure", NO_TIME) != NO_TIME
    ]
    missing = [f"* {name}: not installed here: {reason}" for name, reason in results["missing"].items()]
    return "\n".join([*lines, "", *_rounds(results["cases"]), *failures, *missing]) + "\n"


def _cell(by_client: dict[str, dict[str, Any]], name: str, form: str, ratio: str) -> str:
    numbers = by_client.get(name, {})
    if "failure" in numbers:
        return NO_TIME if numbers["failure"] == NO_TIME else "failed"
    try:
        text = form.format(**numbers)
    except KeyError:
        return "-"
    if of_rounds := numbers.get("ratios", {}).get(ratio):
        low, median, high = of_rounds
        text += f" (×{median:.2g})" if low == high else f" (×{median:.2g} [{low:.2g}, {high:.2g}])"
    return text


def _rounds(cases: Results) -> list[str]:
    counts = sorted({int(n["rounds"]) for by_client in cases.values() for n in by_client.values() if "rounds" in n})
    if not counts:
        return []
    span = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return [f"* each number is the median of {span} rounds"]


def machine(clients: Sequence[str]) -> dict[str, Any]:
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    cpu = model[1] if model else platform.processor()
    return {
        "machine": f"{os.cpu_count()} cores of {cpu}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, load average before: {os.getloadavg()[1]:.1f}",
        "versions": {name: _version(name) for name in clients},
    }


def _version(client: str) -> str:
    if client == LOADGEN:
        from loadgen import __version__

        return __version__
    peers = Path(__file__).parents[2] / ".peers"
    if client == "vllm-rs":
        process = subprocess.run([peers / "vllm-rs/vllm-rs", "--version"], capture_output=True, text=True, check=False)
        return process.stdout.split()[-1] if process.stdout else ""
    distributions = [
        path.name for path in peers.glob(f"{client}/lib/python*/site-packages/{client.replace('-', '_')}-*.dist-info")
    ]
    return distributions[0].removesuffix(".dist-info").rsplit("-", 1)[-1] if distributions else ""


def publish(results: dict[str, Any]) -> None:
    (DOCS / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n")
    write_part("benchmarks", markdown(results))


def write_part(name: str, text: str) -> None:
    """Put `text` between the two comments of that name in docs/results/benchmarks.md."""
    page = DOCS / "benchmarks.md"
    page.write_text(with_part(page.read_text(), name, text))


def with_part(page: str, name: str, text: str) -> str:
    """Return a page with `text` between the two comments of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, tail = page.split(begin, 1)
    return f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail.split(end, 1)[1]}"
