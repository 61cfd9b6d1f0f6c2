"""Table of docs/results/added-load.md: what a class of requests added, by the counter and by the law."""

import json

import numpy as np

from benchmarks.paper.ingest import FOLDER
from benchmarks.paper.words import percent, sig, table
from loadgen.stats.arrays import Floats

ADDED = FOLDER / "added-load.json"
SERVERS = {"olmoe": "experts", "fp8": "FP8", "draft": "draft model", "tp2": "two GPUs"}
RATES = {"chat": 4.0, "code": 2.0}


def added() -> str:
    """Return a row for every server, load and class: joules in a part, with one standard error."""
    body = []
    for name, classes in json.loads(ADDED.read_text()).items():
        server, _, load = name.rpartition("-")
        rates = ", ".join(f"{rate * float(load):g}" for rate in RATES.values())
        for row in classes:
            off_j = row["law_j"] - row["counter_j"]
            se_j = float(np.hypot(row["counter_se_j"], row["law_se_j"]))
            body.append([
                SERVERS[server], rates, row["extra"], str(row["repeats"]), sig(row["r_squared"], 2),
                sig(row["background_j"], 4), with_error(row["counter_j"], row["counter_se_j"]),
                with_error(row["law_j"], row["law_se_j"]), percent(off_j / row["counter_j"], True),
                f"{off_j / se_j:+.1f}".replace("-", "−"), "yes" if abs(off_j) <= 2 * se_j else "no",
            ])  # fmt: skip
    head = ["server", "chat, code per s", "added", "repeats", "R²", "background, J", "added by the counter, J"]
    return table([*head, "added by the law, J", "law off by", "in s.e.", "within 2 s.e."], body)


def differences() -> tuple[Floats, Floats, Floats]:
    """Return of all rows, as shares of what was added by the counter: by how much the law is off, its standard error,
    and the counter's."""
    rows = [row for classes in json.loads(ADDED.read_text()).values() for row in classes]
    counter_j, law_j, law_se_j, counter_se_j = (
        np.array([row[field] for row in rows]) for field in ("counter_j", "law_j", "law_se_j", "counter_se_j")
    )
    return law_j / counter_j - 1, law_se_j / counter_j, counter_se_j / counter_j


def added_summary() -> str:
    """Return how far off the law is over all rows."""
    off, law_se, counter_se = differences()
    cells = [percent(float(np.median(np.abs(off)))), percent(float(np.abs(off).max()))]
    cells += [percent(float(np.median(se))) for se in (law_se, counter_se)]
    within = [np.abs(off) <= 2 * se for se in (np.hypot(law_se, counter_se), counter_se)]
    in_errors = off / np.hypot(law_se, counter_se)
    head = ["rows", "law off by, median", "worst", "s.e. of the law, median", "of the counter, median"]
    head += ["within 2 s.e. of both", "within 2 s.e. of the counter alone", "off by in s.e., root mean square"]
    agreeing = [str(int(agrees.sum())) for agrees in within]
    return table(head, [[str(len(off)), *cells, *agreeing, f"{np.sqrt(np.mean(in_errors**2)):.1f}"]])


def with_error(joules: float, se_joules: float) -> str:
    """Return joules ± one standard error."""
    return f"{joules:,.0f} ± {se_joules:,.0f}".replace("-", "−")
