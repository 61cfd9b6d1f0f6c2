"""Tables of docs/results/method.md: sanity checks, the spread of repeats, the commands."""

import shlex
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.paper import offline_table
from benchmarks.paper.ingest import counter, joules_of, online, session, spread
from benchmarks.paper.offline_results import EARLIER, MAIN, NAMES, cells, rows
from benchmarks.paper.online import RUNS
from benchmarks.paper.words import percent, table

REPEATS_WITHIN = 0.03


def sanity() -> str:
    all_cells = [(name, cell) for name in MAIN for cell in session(name)["cells"]]
    gpus = {name: max(1, session(name)["tensor_parallel"]) for name in MAIN}
    products = [abs(c["joules_per_output_token"] * c["output_tokens_per_s"] / c["mean_w"] - 1) for _, c in all_cells]
    products_online = [
        abs(
            s["energy"]["measured_joules"]
            / s["tokens"]["output"]
            * s["tokens"]["output_per_s"]
            / s["energy"]["mean_watts"]
            - 1
        )
        for s, _ in map(online, RUNS)
    ]
    watts = [p["watts"] / gpus[name] for name, c in all_cells for p in c["full"] if p["watts"] is not None]
    watts += [s["energy"]["mean_watts"] for s, _ in map(online, RUNS)]
    idle = [
        stage["resident_w"] / gpus[name]
        for name in MAIN
        for stage in session(name)["stages"].values()
        if stage["resident_w"]
    ]
    empty = [session(name)["no_context_w"] / gpus[name] for name in MAIN]
    limit = min(gpu["limit_w"] for name in MAIN for gpu in session(name)["gpus"])
    count, largest = recount()
    body = [
        ["W = J/token × tokens/s, offline cells", f"largest difference {percent(max(products))}, means of repeats"],
        ["the same, online runs", f"largest difference {percent(max(products_online))}, windows with different ends"],
        ["lowest and highest W of a GPU", f"{min(watts):.0f}, {max(watts):.0f}"],
        ["idle W with the model resident; limit", f"{min(idle):.0f} to {max(idle):.0f}; {limit:.0f}"],
        ["idle W before a stage, nothing resident", f"{min(empty):.0f} to {max(empty):.0f}"],
        [
            "joules recomputed from the counter's samples",
            f"{count} windows, largest difference {percent(largest)}",
        ],
    ]
    return table(["check", "result"], body)


def recount() -> tuple[int, float]:
    """Return (windows, largest relative difference) of the stored joules against those of the counter's samples."""
    differences = []
    for name in MAIN:
        series = counter(name)
        for cell in session(name)["cells"]:
            for part in cell["full"] + cell["prefill"] + cell.get("warm_up", []):
                recounted = joules_of(part, series)
                if recounted and part["joules"] is not None:
                    differences.append(abs(recounted[0] / part["joules"] - 1))
    return len(differences), max(differences)


def repeats() -> str:
    """Return the spread of repeats within a session, and of means between sessions (other cards, other hosts)."""
    body = []
    for server in NAMES:
        by_cell = by_session(server)
        spreads = {key: apart for key, values in by_cell.items() if (apart := spread(values)) is not None}
        worst = max(spreads, key=lambda key: spreads[key])
        within = sum(apart <= REPEATS_WITHIN for apart in spreads.values())
        body.append(
            [
                NAMES[server],
                f"{within} of {len(spreads)}",
                percent(float(np.median(list(spreads.values())))),
                f"{percent(spreads[worst])} ({worst[1]}, batch {worst[2]})",
                between(by_cell),
                waiting_w(server),
            ]
        )
    head = ["", "cells within 3 %", "median", "largest", "means of sessions, largest"]
    return table([*head, "W over the extra seconds of slower repeats"], body)


def by_session(server: str) -> dict[tuple[str, str, int], list[float]]:
    """Return {(session and model, lengths, batch): J per output token of each repeat}."""
    return {
        (f"{name} {model}", workload, batch): group.values("joules_per_output_token")
        for name in (*MAIN, EARLIER)
        for model in sorted({row.model for row in rows((name,))})
        for (name_of_server, workload, batch), group in cells(model, (name,)).items()
        if name_of_server == server
    }


def between(by_cell: dict[tuple[str, str, int], list[float]]) -> str:
    means: dict[tuple[str, str, int], list[float]] = {}
    for (name, workload, batch), values in by_cell.items():
        means.setdefault((name.split()[1], workload, batch), []).append(fmean(values))
    spreads = {key: apart for key, values in means.items() if (apart := spread(values)) is not None}
    if not spreads:
        return "-"
    worst = max(spreads, key=lambda key: spreads[key])
    return f"{percent(spreads[worst])} of {len(spreads)} cells ({worst[1]}, batch {worst[2]})"


def waiting_w(server: str) -> str:
    """Return the energy of one extra second that a repeat took longer than another, pooled over cells, in W.

    Slope of (J - mean of its cell) on (s - mean of its cell), per batch of requests; only where seconds differ by more
    than 3 %, in three cells or more. Warm-up repeats are repeats here.
    """
    x: list[float] = []
    y: list[float] = []
    differing = 0
    for name in MAIN:
        for cell in session(name)["cells"]:
            parts = [p for p in cell.get("warm_up", []) + cell["full"] if p["joules"] is not None]
            seconds = [p["seconds"] / p["batches"] for p in parts]
            if _server(name, cell) != server or (spread(seconds) or 0) <= REPEATS_WITHIN:
                continue
            differing += 1
            joules = [p["joules"] / p["batches"] for p in parts]
            x += [s - fmean(seconds) for s in seconds]
            y += [j - fmean(joules) for j in joules]
    if differing < 3:
        return "-"
    return f"{sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x):.0f}"


def _server(name: str, cell: dict[str, Any]) -> str:
    return offline_table.rows_of({**session(name), "cells": [cell]})[0].server


def commands() -> str:
    """Return the command of every session, in the order in which they began."""
    ordered = sorted((*MAIN, EARLIER), key=lambda name: session(name)["started_wall_s"])
    lines = (f"{name:<{max(map(len, ordered))}}  {command(session(name)['argv'])}" for name in ordered)
    return "```\n" + "\n".join(lines) + "\n```"


def command(argv: Sequence[str]) -> str:
    """Return the options of measure_offline as a shell takes them; an option given twice counts with its last value."""
    options: dict[str, str] = {}
    for word, value in zip(argv, [*argv[1:], "--"], strict=True):
        if word.startswith("--") and not value.startswith("--"):
            options[word] = value
    shown = (item for item in options.items() if item[0] != "--budget-s" and item != ("--window-s", "2"))
    return " ".join(f"{option} {shlex.quote(value)}" for option, value in shown)
