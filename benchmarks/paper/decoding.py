"""Tables of docs/results/decoding-strategies.md and classical-tasks.md."""

from statistics import fmean

from benchmarks.paper.offline_results import SHAPE, batches_of, cells, per_token, saved
from benchmarks.paper.published import BEST_KWH, TASKS, TASKS_KWH
from benchmarks.paper.speculative_decoding import GREEDY, change
from benchmarks.paper.words import percent, percents, plus_minus, sig, table
from loadgen.units import J_PER_KWH

EAGER, SAMPLED, BEAMS = "hf-eager", "hf-eager-temperature=0.7-top_p=0.9", "hf-eager-num_beams=4"

KWH_PER_1024 = 1024 / J_PER_KWH
"""Factor from joules of one example to kWh of 1,024."""


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


def per_request(server: str, workload: str, batch: int) -> list[float]:
    group = cells().get((server, workload, batch))
    return group.values("joules_per_request") if group else []


def tasks() -> str:
    body = []
    for task, lengths in TASKS.items():
        for batch in batches_of(lengths, [EAGER, GREEDY]):
            eager, vllm = (per_request(name, lengths, batch) for name in (EAGER, GREEDY))
            measured, paper = fmean(vllm) * KWH_PER_1024, TASKS_KWH[lengths][batch]
            line = [task, str(batch), plus_minus(eager), plus_minus(vllm), percents(saved(eager, vllm))]
            body.append([*line, sig(measured), sig(paper), f"{paper / measured:.1f}"])
    head = ["task", "batch", "transformers, eager, J/example", "vLLM, J/example", "vLLM saves [95 %]"]
    return table([*head, "vLLM, kWh of 1,024", "paper, A6000", "paper ÷ here"], body)


def tasks_best() -> str:
    """Return the table of each framework at the batch that costs it least."""
    body = []
    for task, lengths in TASKS.items():
        best = []
        for name in (EAGER, GREEDY):
            by_batch = {batch: per_request(name, lengths, batch) for batch in batches_of(lengths, [name])}
            batch = min(by_batch, key=lambda b: fmean(by_batch[b]))
            best.append((batch, by_batch[batch]))
        eager, vllm = BEST_KWH[lengths]
        kwh = ", ".join(f"{sig(fmean(values) * KWH_PER_1024)} (batch {batch})" for batch, values in best)
        line = [task, kwh, percents(saved(best[0][1], best[1][1]))]
        body.append([*line, f"{sig(eager)}, {sig(vllm)}", percent(1 - vllm / eager)])
    head = ["task", "kWh of 1,024: transformers, vLLM", "saved [95 %]", "paper, kWh", "paper, saved"]
    return table(head, body)
