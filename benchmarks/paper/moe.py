"""Tables and the figure of docs/results/moe.md: a mixture of experts against a dense model."""

import json
from typing import Any

from benchmarks.paper.ingest import FOLDER, session
from benchmarks.paper.offline_results import SHAPE, batches_of, cells, per_token, saved
from benchmarks.paper.plots import Line, batch_axis, by_batch, picture, scaled, share_axis
from benchmarks.paper.published import EXPERTS_KWH, paper_change, paper_points
from benchmarks.paper.speculative_decoding import GREEDY
from benchmarks.paper.words import percent, percents, plus_minus, sig, table
from loadgen.stats.intervals import Interval

DENSE, SPARSE = "olmo-1b", "olmoe-1b-7b"
ADDED = FOLDER.parent / "h100-2026/attribution-moe"
LOADS = ("1", "2.5", "5")
RATES = {"chat": 4.0, "code": 2.0}


def moe_change(batch: int) -> Interval | None:
    return saved(*(per_token(GREEDY, SHAPE, batch, model) for model in (DENSE, SPARSE)))


def moe() -> str:
    body = []
    for batch in batches_of(SHAPE, [GREEDY], SPARSE):
        groups = [cells(model)[GREEDY, SHAPE, batch] for model in (DENSE, SPARSE)]
        times = [group.mean("e2e_p50_s") for group in groups]
        read = [weights_read(session(model)["config"], batch) for model in (DENSE, SPARSE)]
        line = [str(batch), *(plus_minus(per_token(GREEDY, SHAPE, batch, model)) for model in (DENSE, SPARSE))]
        line += [percents(moe_change(batch), -1), percent(paper_change(*EXPERTS_KWH.values(), batch), True)]
        line += [f"{(times[1] or 0.0) / (times[0] or 1.0):.1f}", f"{read[1] / read[0]:.1f}"]
        body.append([*line, ", ".join(f"{group.mean('mean_watts'):.0f}" for group in groups)])
    head = ["batch", "OLMo-1B", "OLMoE-1B-7B", "change [95 %]", "paper", "time ×", "weights read × (estimate)"]
    return table([*head, "W: dense, MoE"], body)


def moe_added() -> str:
    """Return what one class of requests added on an H100: by the counter, and by the law fitted to the mixture."""
    body = []
    for load in LOADS:
        runs = json.loads((ADDED / f"load-{load}.json").read_text())
        rates = " and ".join(f"{rate * float(load):g}/s {kind}" for kind, rate in RATES.items())
        fit = sig(runs["mix"]["coefficients"]["r_squared"], 2)
        for alone, extra in (("chat", "code"), ("code", "chat")):
            run = runs[f"experiment {alone} with and without {extra}"]
            measured, modelled = run["measured_difference_j"], run["modelled_difference_j"]
            body.append([rates, fit, extra, f"{run['seconds']:.0f}", sig(measured, 4), sig(modelled, 4),
                         percent(modelled / measured - 1, True), sig(run["given_to_extra_j"], 4)])  # fmt: skip
    head = ["load", "R²", "added", "s", "J added, by the counter", "J added, by the law", "law off by"]
    return table([*head, "attributed to it, J"], body)


def weights_read(config: dict[str, Any], batch: int) -> float:
    """Return how many weights a decode step of `batch` tokens reads, if each token routes to any k of n experts.

    One token leaves an expert out with probability 1 - k / n, all of them with (1 - k / n)^batch.
    """
    h, layers = config["hidden_size"], config["num_hidden_layers"]
    shared = config["num_key_value_heads"] / config["num_attention_heads"]
    activated = 1.0
    if "num_experts" in config:
        activated = config["num_experts"] * (1 - (1 - config["num_experts_per_tok"] / config["num_experts"]) ** batch)
    layer = 2 * h * h * (1 + shared) + 3 * h * config["intermediate_size"] * activated
    return float(layers * layer + config["vocab_size"] * h)


def distinct_tokens() -> str:
    """Return the fewest distinct last tokens in a batch: few experts would be active if all were the same."""
    ordered = sorted(session(SPARSE)["cells"], key=lambda cell: cell["batch"])
    fewest = (min(part["distinct_last"] for part in cell["full"]) for cell in ordered)
    head = ["batch", *(str(cell["batch"]) for cell in ordered)]
    return table(head, [["distinct last tokens, at least", *map(str, fewest)]])


def figure() -> str:
    batches = batches_of(SHAPE, [GREEDY], SPARSE)
    paper = paper_points(EXPERTS_KWH, batches)
    lines = [
        Line("here", by_batch(batches, lambda b: scaled(moe_change(b), -100)), 0),
        Line("paper, digitised", paper, 0, 2),
    ]
    title = "Mixture of experts (OLMoE-1B-7B) against dense (OLMo-1B): energy per token; bars: 95 %"
    return picture(title, "batch", lines, batch_axis(), share_axis(0, 240))
