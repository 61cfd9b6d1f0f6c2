"""The table of docs/results/README.md: each of the paper's claims beside what was measured here."""

from collections.abc import Callable

from benchmarks.paper.case_study import CASE_BATCHES, case_saved, cases, coefficients, fits
from benchmarks.paper.moe import moe_change
from benchmarks.paper.offline_results import SHAPE, per_token, saved
from benchmarks.paper.published import (
    EXPERTS_KWH,
    GAIN_A100,
    ONLINE_SAVED,
    SPECULATIVE_KWH,
    TABLE_4,
    TP_AT_1,
    paper_change,
    paper_saved,
)
from benchmarks.paper.serving import beside_figure_9
from benchmarks.paper.speculative_decoding import draft_change
from benchmarks.paper.tensor_parallel import tp_saved
from benchmarks.paper.words import percent, percents, table


def agreement() -> str:
    """Return the table of the paper's claims that were measured here."""

    def here(base: str, variant: str, *batches: int) -> str:
        shares = ((b, percents(saved(per_token(base, SHAPE, b), per_token(variant, SHAPE, b)))) for b in batches)
        return "; ".join(f"batch {b}: {share}" for b, share in shares)

    def paper(base: str, variant: str, *batches: int) -> str:
        return "; ".join(f"batch {b}: {percent(paper_saved(base, variant, b))}" for b in batches)

    def by_batch(value: Callable[[int], str]) -> str:
        return "; ".join(f"batch {b}: {value(b)}" for b in (1, 8, 128))

    energy, time = tp_saved(1)
    few, many = (next(c for c in cases() if (c.trace, c.batch) == ("burstgpt", batch)) for batch in CASE_BATCHES)
    equal, unlike = (percents(case_saved(few.needs_rounded_up, c.needs_rounded_up)) for c in (few, many))
    vllm = float(coefficients(fits()[1]) @ many.needs_rounded_up)
    above = percent(vllm / many.sparse_rounded_up - 1, True)
    body = [
        [
            "vLLM with CUDA graphs saves, against eager PyTorch (A100, digitised)",
            paper("hf-eager", "vllm-graphs", 1, 8, 64),
            here("hf-eager", "vllm-graphs", 1, 8, 64),
        ],
        ["compiling saves (A100)", percent(GAIN_A100["hf-compile"]), here("hf-eager", "hf-compile", 1, 8, 32)],
        [
            "CUDA graphs in vLLM save (A100)",
            percent(GAIN_A100["vllm-graphs"]),
            here("vllm-eager", "vllm-graphs", 1, 8, 128),
        ],
        [
            "two GPUs, batch 1: energy, latency",
            f"{percent(TP_AT_1[2][0], True)}, {percent(TP_AT_1[2][1], True)}",
            f"{percents(energy, -1)}, {percents(time, -1)}",
        ],
        [
            "speculative decoding with 4 draft tokens, against greedy (A6000, digitised)",
            by_batch(lambda b: percent(paper_change(*SPECULATIVE_KWH.values(), b), True)),
            "0.7 accepted: " + by_batch(lambda b: percents(draft_change(b), -1)),
        ],
        [
            "mixture of experts (OLMoE-1B-7B) against dense (OLMo-1B) (digitised)",
            by_batch(lambda b: percent(paper_change(*EXPERTS_KWH.values(), b), True)),
            by_batch(lambda b: percents(moe_change(b), -1)),
        ],
        [
            "online against offline with as many in flight, per token",
            "; ".join(f"batch {batch}: {percent(-ONLINE_SAVED[batch], True)}" for batch in (8, 128)),
            beside_figure_9(),
        ],
        [
            "BurstGPT, vLLM saves (estimate)",
            percent(TABLE_4["burstgpt"][2]),
            f"both at 8: {equal}; 8 against 64: {unlike}",
        ],
        [
            "BurstGPT, vLLM above the ideal, sparse peak (estimate)",
            percent(TABLE_4["burstgpt"][1], True),
            f"at 64: {above}",
        ],
    ]
    return table(["claim", "paper", "here [95 %]"], body)
