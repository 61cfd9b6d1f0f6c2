"""Tables of docs/results/weights.md: random weights against weights with the statistics of trained ones."""

import json
from functools import cache
from typing import Any

import numpy as np

from benchmarks.paper.ingest import FOLDER
from benchmarks.paper.words import sig, table
from loadgen.stats.intervals import interval

CONTENTS = {
    ("decode", "random"): "decode, random prompts, sampled",
    ("decode", "text"): "decode, prompts of text, sampled",
    ("decode", "greedy"): "decode, random prompts, greedy",
    ("prefill", "random"): "prefill of 4,096 random tokens",
    ("prefill", "text"): "prefill of 4,096 tokens of text",
    ("prefill", "same"): "prefill of one token, 4,096 times",
}


@cache
def measurements(model: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"weights/{model}.jsonl").read_text().splitlines()]


def joules_per_token(model: str, weights: str) -> dict[tuple[str, str, int], list[float]]:
    """Return J per token of each (kind, content, batch), in the order of the repeats."""
    cells: dict[tuple[str, str, int], list[float]] = {}
    for row in sorted(measurements(model), key=lambda row: row["repeat"]):
        if row["weights"] == weights:
            key = row["kind"], row["content"], row["batch"]
            cells.setdefault(key, []).append(row["joules"] / row["tokens"])
    return cells


def weights_table(model: str) -> str:
    """Return mJ per token with both kinds of weights, and the difference: Student's interval of paired logarithms."""
    dummy, trained = joules_per_token(model, "dummy"), joules_per_token(model, "trained")
    body = []
    for (kind, content), words in CONTENTS.items():
        for batch in sorted(key[2] for key in dummy if key[:2] == (kind, content)):
            pair = dummy[kind, content, batch], trained[kind, content, batch]
            change = interval([float(np.log(b / a)) for a, b in zip(*pair, strict=True)])
            ends = [
                f"{100 * np.expm1(end or 0):+.1f}".replace("-", "−") for end in (change.mean, change.low, change.high)
            ]
            means = [sig(1e3 * float(np.mean(values))) for values in pair]
            body.append([words, str(batch), *means, f"{ends[0]} % [{ends[1]}, {ends[2]}]"])
    head = ["work", "batch", "random weights, mJ per token", "trained statistics, mJ per token", "change [95 %]"]
    return table(head, body)


TABLES = {
    "weights-dense": lambda: weights_table("dense"),
    "weights-experts": lambda: weights_table("experts"),
}
