"""Tables and the figure of docs/results/speculative-decoding.md."""

from statistics import fmean

from benchmarks.paper.ingest import session
from benchmarks.paper.offline_results import SHAPE, batches_of, cells, per_token, saved
from benchmarks.paper.plots import Line, batch_axis, by_batch, picture, scaled, share_axis
from benchmarks.paper.published import SPECULATIVE_KWH, paper_change, paper_points
from benchmarks.paper.words import percent, percents, plus_minus, table
from loadgen.stats.intervals import Interval

GREEDY, DRAFT, ASYNC = "vllm-graphs", "vllm-graphs-draft=0.7", "vllm-graphs-draft=0.7-async_scheduling=True"

DRAFT_TOKENS = 4


def change(base: str, variant: str, batch: int) -> Interval | None:
    """Return how much less energy per output token `other` takes at 512 in, 128 out."""
    return saved(per_token(base, SHAPE, batch), per_token(variant, SHAPE, batch))


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
    """Return the cost of a speculative step beside a greedy one, and the acceptance rate from which drafting saves."""
    counted = {cell["batch"]: cell["speculation"] for cell in session("vllm-graphs-draft")["cells"]}
    body = []
    for batch in batches_of(SHAPE, [DRAFT]):
        groups = [cells()[name, SHAPE, batch] for name in (GREEDY, DRAFT)]
        seconds = [(group.mean("e2e_p50_s") or 0.0) - (group.mean("ttft_p50_s") or 0.0) for group in groups]
        tokens = 1 + counted[batch]["accepted_tokens"] / counted[batch]["drafts"]
        per_step = [seconds[0] / 127, seconds[1] / 127 * tokens]
        watts = [group.mean("mean_watts") or 0.0 for group in groups]
        body.append(
            [
                str(batch),
                f"{tokens:.2f}",
                f"{1e3 * per_step[0]:.1f}, {1e3 * per_step[1]:.1f}",
                f"{watts[0]:.0f}, {watts[1]:.0f}",
                break_even(batch, tokens),
            ]
        )
    head = ["batch", "tokens per step, counted", "ms per step: greedy, draft", "W: greedy, draft"]
    return table([*head, "saves from this acceptance rate, estimate"], body)


def break_even(batch: int, tokens: float) -> str:
    """Return the acceptance rate at which drafting costs what greedy decoding does; "never" above 1.

    An estimate: the joules of a step do not depend on what is accepted. Decode joules then fall as 1 / (tokens a step),
    and a step gives 1 + a + ... + a^4 tokens where each draft token is accepted at rate a.
    """
    greedy, draft = (cells()[name, SHAPE, batch] for name in (GREEDY, DRAFT))
    request_joules = [fmean(group.values("joules_per_request")) for group in (greedy, draft)]
    prefill = fmean(row.prefill_joules / row.completed for row in draft.rows if row.prefill_joules)
    needed = tokens * (request_joules[1] - prefill) / (request_joules[0] - prefill)
    rates = [a / 1000 for a in range(1001) if sum((a / 1000) ** i for i in range(DRAFT_TOKENS + 1)) >= needed]
    return f"{rates[0]:.2f}" if rates else "never"


def acceptance() -> str:
    """Return acceptance as configured and as counted, by draft position, over all cells."""
    stated = session("vllm-graphs-draft")["vllm_args"]["speculative_config"]["synthetic_acceptance_rates"]
    names = ("vllm-graphs-draft", "vllm-graphs-draft-async")
    counters = [cell["speculation"] for name in names for cell in session(name)["cells"]]
    drafts = sum(counter["drafts"] for counter in counters)
    counted = [sum(counter[f"accepted_at_{i}"] for counter in counters) / drafts for i in range(len(stated))]
    body = [
        ["configured", *(f"{a:.4g}" for a in stated)],
        [f"counted, {drafts:,} drafts", *(f"{a:.4f}" for a in counted)],
    ]
    return table(["acceptance at draft position", *(str(i + 1) for i in range(len(stated)))], body)


def figure() -> str:
    batches = batches_of(SHAPE, [DRAFT])
    paper = paper_points(SPECULATIVE_KWH, batches)
    lines = [
        Line("here, 0.7 accepted", by_batch(batches, lambda b: scaled(change(GREEDY, DRAFT, b), -100)), 0),
        Line("here, asynchronous", by_batch(batches, lambda b: scaled(change(GREEDY, ASYNC, b), -100)), 2),
        Line("paper's A6000, digitised", paper, 0, 2),
    ]
    title = "Speculative decoding (4 draft tokens) against greedy: energy per token; bars: 95 %"
    return picture(title, "batch", lines, batch_axis(), share_axis(-40, 60))
