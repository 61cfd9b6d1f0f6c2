"""Published figures, digitised or as printed, that the results are compared with."""

from collections.abc import Sequence

from benchmarks.paper.plots import alone
from loadgen.stats.intervals import Interval

A100 = {
    "hf-eager": {1: 0.09723, 8: 0.0209, 64: 0.009588, 128: 0.009192, 256: 0.009001},
    "hf-compile": {1: 0.06655, 8: 0.01513, 64: 0.007394, 128: 0.00704, 256: 0.006991},
    "vllm-eager": {1: 0.07343, 8: 0.01297, 64: 0.004853, 128: 0.004277, 256: 0.004158, 512: 0.003987},
    "vllm-graphs": {1: 0.05468, 8: 0.01073, 64: 0.004685, 128: 0.004158, 256: 0.004015, 512: 0.003904},
}
"""Figure 5, A100-80GB PCIe, kWh, digitised, ± 3 to 6 %."""

TP_KWH = {
    1: {1: 0.07187, 2: 0.04886, 4: 0.02738, 8: 0.01631, 32: 0.009285, 64: 0.008388, 128: 0.007812, 256: 0.007694,
        512: 0.007932},
    2: {1: 0.09358, 2: 0.0614, 4: 0.03512, 8: 0.0205, 32: 0.01209, 64: 0.01038, 128: 0.00967, 256: 0.009191,
        512: 0.009285},
}  # fmt: skip
"""Figure 6, Llama-3.1-8B by GPUs, kWh, digitised."""

TP_AT_1 = {2: (0.293, -0.4016), 4: (0.5523, -0.6134)}
"""Change of energy and change of latency of tensor parallelism at batch 1, from the text."""

GAIN_A100 = {"hf-compile": 0.2990, "vllm-graphs": 0.2547}
"""torch.compile against eager, and CUDA graphs in vLLM against eager, on the A100, from the text."""

TABLE_4 = {
    "azure-2024-chat": (4.9023, 0.6422, 0.7218),
    "azure-2024-code": (1.0279, 0.2659, 0.3758),
    "burstgpt": (5.0652, 0.6375, 0.7300),
}
"""Table 4: PyTorch above the theoretical, vLLM above it, saved. RTX A6000, sparse peak, lengths rounded up."""

FIGURE_1 = {"azure-2024-chat": (307, 1806, 504), "azure-2024-code": (262, 533, 327), "burstgpt": (6.2, 37.5, 10.1)}
"""Figure 1, kWh: theoretical, PyTorch, vLLM; digitised."""

ONLINE_SAVED = {1: -0.131, 8: -0.038, 128: -0.001, 256: 0.020, 512: 0.026}
"""Figure 9, A100, digitised: how much less energy continuous batching takes than offline batches, by batch."""

ML_ENERGY = {8: (0.455, 486, 1070), 32: (0.165, 560, 3391), 64: (0.119, 610, 5147), 128: (0.0951, 669, 7037),
             256: (0.0766, 691, 9010), 512: (0.0702, 688, 9806)}  # fmt: skip
"""Leaderboard v3, Llama-3.1-8B-Instruct, lm-arena-chat, bf16, one H100, by max_num_seqs: J/token, W, tokens/s."""

SPECULATIVE_KWH = {
    "greedy/AR": {1: 0.091, 2: 0.05773, 4: 0.03243, 8: 0.019, 16: 0.01291, 32: 0.009402, 64: 0.007896, 128: 0.00714},
    "speculative(gamma=4)": {1: 0.06418, 2: 0.04672, 4: 0.02964, 8: 0.019, 16: 0.01421, 32: 0.01073, 64: 0.01012,
                             128: 0.008965},
}  # fmt: skip
"""Figure 3, RTX A6000, Llama-3.1-8B with draft model Llama-3.2-1B, kWh, digitised."""

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


def paper_change(base: dict[int, float], variant: dict[int, float], batch: int) -> float | None:
    return variant[batch] / base[batch] - 1 if batch in base and batch in variant else None


def paper_points(kwh: dict[str, dict[int, float]], batches: Sequence[int]) -> list[tuple[float, Interval]]:
    """Return (batch, change in per cent) of the second series against the first, for a figure."""
    changes = {batch: paper_change(*kwh.values(), batch) for batch in batches}
    return [(float(batch), alone(100 * change)) for batch, change in changes.items() if change is not None]


def paper_saved(base: str, variant: str, batch: int) -> float | None:
    b, x = A100[base].get(batch), A100[variant].get(batch)
    return 1 - x / b if b and x else None
