"""Tables and figures of docs/results.md on choices: guessing ahead, experts, decoding strategies, classical tasks."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from benchmarks.paper.ingest import sitting
from benchmarks.paper.offline_results import (
    SHAPE,
    batches_of,
    cells,
    per_token,
    percent,
    percents,
    plus_minus,
    saved,
    sig,
    table,
)
from benchmarks.paper.plots import Line, alone, batch_axis, by_batch, picture, scaled, share_axis
from loadgen.energy_model.estimate import JOULES_PER_KWH
from loadgen.stats.intervals import Interval

KWH_PER_1024 = 1024 / JOULES_PER_KWH
"""kWh of 1,024 examples from J of one."""

# ---------------------------------------------------------------- what the paper published

SPECULATIVE_KWH = {
    "greedy/AR": {1: 0.091, 2: 0.05773, 4: 0.03243, 8: 0.019, 16: 0.01291, 32: 0.009402, 64: 0.007896, 128: 0.00714},
    "speculative(gamma=4)": {1: 0.06418, 2: 0.04672, 4: 0.02964, 8: 0.019, 16: 0.01421, 32: 0.01073, 64: 0.01012,
                             128: 0.008965},
}  # fmt: skip
"""Figure 3, RTX A6000, Llama-3.1-8B guessed by Llama-3.2-1B, kWh, digitised."""
EXPERTS_KWH = {
    "OLMo-1B": {1: 0.01425, 8: 0.00281, 16: 0.001931, 32: 0.001511, 128: 0.001219, 256: 0.001165, 512: 0.001147},
    "OLMoE-1B-7B": {1: 0.01551, 8: 0.004059, 16: 0.002942, 32: 0.002338, 128: 0.001708, 256: 0.00157, 512: 0.0015},
}
"""Figure 4, kWh, digitised."""
TASKS = {
    "translation, WMT-14": "50x64",
    "generation, Wikitext-2": "137x64",
    "classification, IMDB": "292x1",
    "summarization, CNN-DM": "838x64",
}
"""The paper's tasks at their mean lengths."""
TASKS_KWH = {
    "50x64": {1: 0.096, 8: 0.0133, 128: 0.0042},
    "137x64": {1: 0.0927, 8: 0.0156, 128: 0.006},
    "292x1": {1: 0.0055, 8: 0.0072, 128: 0.0158},
    "838x64": {1: 0.1055, 8: 0.0286, 128: 0.0237},
}
"""Figure 12, vLLM on an RTX A6000, kWh of 1,024 examples, digitised."""
BEST_KWH = {
    "50x64": (0.0135, 0.0065),
    "137x64": (0.0131, 0.0069),
    "292x1": (0.0405, 0.0053),
    "838x64": (0.0558, 0.0266),
}
"""Figure 8, each task's best run: PyTorch eager, vLLM; kWh of 1,024 examples, digitised."""


def paper_change(base: dict[int, float], other: dict[int, float], batch: int) -> float | None:
    return other[batch] / base[batch] - 1 if batch in base and batch in other else None


def paper_points(kwh: dict[str, dict[int, float]], batches: Sequence[int]) -> list[tuple[float, Interval]]:
    """The second against the first, in per cent, for a figure."""
    found = {batch: paper_change(*kwh.values(), batch) for batch in batches}
    return [(float(batch), alone(100 * value)) for batch, value in found.items() if value is not None]


# ---------------------------------------------------------------- guessing ahead

GREEDY, DRAFT, ASYNC = "vllm-graphs", "vllm-graphs-draft=0.7", "vllm-graphs-draft=0.7-async_scheduling=True"
AHEAD = 4


def change(base: str, other: str, batch: int) -> Interval | None:
    """How much less the other takes per output token at 512 in, 128 out."""
    return saved(per_token(base, SHAPE, batch), per_token(other, SHAPE, batch))


def draft_change(batch: int) -> Interval | None:
    return change(GREEDY, DRAFT, batch)


def speculation() -> str:
    body = []
    for batch in batches_of(SHAPE, [DRAFT]):
        paper = paper_change(*SPECULATIVE_KWH.values(), batch)
        line = [str(batch), *(plus_minus(per_token(name, SHAPE, batch)) for name in (GREEDY, DRAFT))]
        line += [percents(change(GREEDY, DRAFT, batch), -1), percent(paper, True)]
        body.append([*line, plus_minus(per_token(ASYNC, SHAPE, batch)), percents(change(GREEDY, ASYNC, batch), -1)])
    head = ["batch", "greedy", "draft model", "change [95 %]", "paper, A6000", "draft, asynchronous", "change [95 %]"]
    return table(head, body)


def speculation_steps() -> str:
    """What a step of guessing took, against a greedy one, and the rate at which guessing would begin to save."""
    counted = {cell["batch"]: cell["speculation"] for cell in sitting("vllm-graphs-draft")["cells"]}
    body = []
    for batch in batches_of(SHAPE, [DRAFT]):
        both = [cells()[name, SHAPE, batch] for name in (GREEDY, DRAFT)]
        seconds = [_decode_s(group.mean("e2e_p50_s"), group.mean("ttft_p50_s")) for group in both]
        tokens = 1 + counted[batch]["accepted_tokens"] / counted[batch]["drafts"]
        per_step = [seconds[0] / 127, seconds[1] / 127 * tokens]
        watts = [group.mean("mean_watts") or 0.0 for group in both]
        body.append(
            [
                str(batch),
                f"{tokens:.2f}",
                f"{1e3 * per_step[0]:.1f}, {1e3 * per_step[1]:.1f}",
                f"{watts[0]:.0f}, {watts[1]:.0f}",
                break_even(batch, tokens),
            ]
        )
    head = ["batch", "tokens a step, counted", "ms of a step: greedy, draft", "W: greedy, draft"]
    return table([*head, "saves from this rate on, estimate"], body)


def _decode_s(whole: float | None, first: float | None) -> float:
    return (whole or 0.0) - (first or 0.0)


def break_even(batch: int, tokens: float) -> str:
    """Acceptance at which guessing costs what greedy does, if a step's joules do not depend on it; "never" above 1.

    Decode joules fall as 1 / (tokens a step), and those are 1 + a + ... + a^4 where each guess is accepted at rate a.
    """
    greedy, draft = (cells()[name, SHAPE, batch] for name in (GREEDY, DRAFT))
    whole = [fmean(group.values("joules_per_request")) for group in (greedy, draft)]
    prefill = fmean(row.prefill_joules / row.completed for row in draft.rows if row.prefill_joules)
    wanted = tokens * (whole[1] - prefill) / (whole[0] - prefill)
    rates = [a / 1000 for a in range(1001) if sum((a / 1000) ** i for i in range(AHEAD + 1)) >= wanted]
    return f"{rates[0]:.2f}" if rates else "never"


def acceptance() -> str:
    """Stated and counted, by position, over every cell."""
    stated = sitting("vllm-graphs-draft")["vllm_args"]["speculative_config"]["synthetic_acceptance_rates"]
    names = ("vllm-graphs-draft", "vllm-graphs-draft-async")
    found = [cell["speculation"] for name in names for cell in sitting(name)["cells"]]
    drafts = sum(one["drafts"] for one in found)
    counted = [sum(one[f"accepted_at_{i}"] for one in found) / drafts for i in range(len(stated))]
    body = [["stated", *(f"{a:.4g}" for a in stated)], [f"counted, {drafts:,} drafts", *(f"{a:.4f}" for a in counted)]]
    return table(["accepted up to guess", *(str(i + 1) for i in range(len(stated)))], body)


def speculation_figure() -> str:
    batches = batches_of(SHAPE, [DRAFT])
    paper = paper_points(SPECULATIVE_KWH, batches)
    lines = [
        Line("here, 0.7 accepted", by_batch(batches, lambda b: scaled(change(GREEDY, DRAFT, b), -100)), 0),
        Line("here, asynchronous", by_batch(batches, lambda b: scaled(change(GREEDY, ASYNC, b), -100)), 2),
        Line("paper's A6000, digitised", paper, 0, 2),
    ]
    title = "A draft model guessing 4 tokens, against greedy: energy per token; bars: 95 %"
    return picture(title, "batch", lines, batch_axis(), share_axis(-40, 60))


# ---------------------------------------------------------------- experts

DENSE, SPARSE = "olmo-1b", "olmoe-1b-7b"


def experts_change(batch: int) -> Interval | None:
    return saved(*(per_token(GREEDY, SHAPE, batch, model) for model in (DENSE, SPARSE)))


def experts() -> str:
    body = []
    for batch in batches_of(SHAPE, [GREEDY], SPARSE):
        both = [cells(model)[GREEDY, SHAPE, batch] for model in (DENSE, SPARSE)]
        read = [weights_read(sitting(model)["config"], batch) for model in (DENSE, SPARSE)]
        line = [str(batch), *(plus_minus(per_token(GREEDY, SHAPE, batch, model)) for model in (DENSE, SPARSE))]
        line += [percents(experts_change(batch), -1), percent(paper_change(*EXPERTS_KWH.values(), batch), True)]
        line += [f"{_ratio([group.mean('e2e_p50_s') for group in both]):.1f}", f"{read[1] / read[0]:.1f}"]
        body.append([*line, ", ".join(f"{group.mean('mean_watts'):.0f}" for group in both)])
    head = ["batch", "OLMo-1B", "OLMoE-1B-7B", "change [95 %]", "paper", "time ×", "weights read × (estimate)"]
    return table([*head, "W: dense, experts"], body)


def _ratio(values: Sequence[float | None]) -> float:
    return (values[1] or 0.0) / (values[0] or 1.0)


def weights_read(config: dict[str, Any], batch: int) -> float:
    """Weights that a decode step of `batch` tokens reads, if each token's experts are any k of n alike.

    An expert is left out by one token with 1 - k / n, by all of them with (1 - k / n)^batch.
    """
    h, layers = config["hidden_size"], config["num_hidden_layers"]
    shared = config["num_key_value_heads"] / config["num_attention_heads"]
    touched = 1.0
    if "num_experts" in config:
        touched = config["num_experts"] * (1 - (1 - config["num_experts_per_tok"] / config["num_experts"]) ** batch)
    each = 2 * h * h * (1 + shared) + 3 * h * config["intermediate_size"] * touched
    return float(layers * each + config["vocab_size"] * h)


def distinct() -> str:
    """The fewest different tokens that a batch's answers ended in: experts would be few if they all became one."""
    every = sorted(sitting(SPARSE)["cells"], key=lambda cell: cell["batch"])
    fewest = (min(part["distinct_last"] for part in cell["full"]) for cell in every)
    head = ["batch", *(str(cell["batch"]) for cell in every)]
    return table(head, [["different last tokens, at least", *map(str, fewest)]])


def experts_figure() -> str:
    batches = batches_of(SHAPE, [GREEDY], SPARSE)
    paper = paper_points(EXPERTS_KWH, batches)
    lines = [
        Line("here", by_batch(batches, lambda b: scaled(experts_change(b), -100)), 0),
        Line("paper, digitised", paper, 0, 2),
    ]
    title = "OLMoE-1B-7B against OLMo-1B: energy per token; bars: 95 %"
    return picture(title, "batch", lines, batch_axis(), share_axis(0, 240))


# ---------------------------------------------------------------- decoding strategies

EAGER, SAMPLED, BEAMS = "hf-eager", "hf-eager-temperature=0.7-top_p=0.9", "hf-eager-num_beams=4"


def decoding() -> str:
    body = []
    for batch in batches_of(SHAPE, [SAMPLED, BEAMS]):
        line = [str(batch), plus_minus(per_token(EAGER, SHAPE, batch))]
        for name in (SAMPLED, BEAMS):
            line += [plus_minus(per_token(name, SHAPE, batch)), percents(change(EAGER, name, batch), -1)]
        body.append([*line, ", ".join(_prefill_each(name, batch) for name in (EAGER, BEAMS))])
    head = ["batch", "greedy", "temperature 0.7, top-p 0.9", "change [95 %]", "4 beams", "change [95 %]"]
    return table([*head, "prefill, J/request: greedy, beams"], body)


def _prefill_each(server: str, batch: int) -> str:
    group = cells().get((server, SHAPE, batch))
    return sig(fmean(row.prefill_joules / row.completed for row in group.rows if row.prefill_joules) if group else None)


# ---------------------------------------------------------------- the classical tasks


def per_request(server: str, workload: str, batch: int) -> list[float]:
    found = cells().get((server, workload, batch))
    return found.values("joules_per_request") if found else []


def tasks() -> str:
    body = []
    for task, lengths in TASKS.items():
        for batch in batches_of(lengths, [EAGER, GREEDY]):
            eager, vllm = (per_request(name, lengths, batch) for name in (EAGER, GREEDY))
            mine, paper = fmean(vllm) * KWH_PER_1024, TASKS_KWH[lengths][batch]
            line = [task, str(batch), plus_minus(eager), plus_minus(vllm), percents(saved(eager, vllm))]
            body.append([*line, sig(mine), sig(paper), f"{paper / mine:.1f}"])
    head = ["task", "batch", "transformers, eager, J/example", "vLLM, J/example", "vLLM saves [95 %]"]
    return table([*head, "vLLM, kWh of 1,024", "paper, A6000", "paper ÷ here"], body)


def tasks_best() -> str:
    """Each framework at the batch that costs it least."""
    body = []
    for task, lengths in TASKS.items():
        best = []
        for name in (EAGER, GREEDY):
            each = {batch: per_request(name, lengths, batch) for batch in batches_of(lengths, [name])}
            batch = min(each, key=lambda b: fmean(each[b]))
            best.append((batch, each[batch]))
        eager, vllm = BEST_KWH[lengths]
        told = ", ".join(f"{sig(fmean(values) * KWH_PER_1024)} (batch {batch})" for batch, values in best)
        line = [task, told, percents(saved(best[0][1], best[1][1]))]
        body.append([*line, f"{sig(eager)}, {sig(vllm)}", percent(1 - vllm / eager)])
    head = ["task", "kWh of 1,024: transformers, vLLM", "saved [95 %]", "paper, kWh", "paper, saved"]
    return table(head, body)


TABLES = {
    "speculation": speculation,
    "speculation-steps": speculation_steps,
    "acceptance": acceptance,
    "experts": experts,
    "distinct": distinct,
    "decoding": decoding,
    "tasks": tasks,
    "tasks-best": tasks_best,
}
FIGURES = {"speculation": speculation_figure, "experts": experts_figure}
