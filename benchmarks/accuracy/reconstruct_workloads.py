"""Reconstruct workload profiles of unavailable data sets from published statistics.

    python -m benchmarks.accuracy.reconstruct_workloads [--out profiles/workloads]

A side (inputs or outputs) is a list of (length, share of requests up to it) and a mean. Its bins lie between the
lengths; inside each, the mean has the same relative position f, solved so that all bins together have the published
mean. Medians and p99s are edges (a short median is a bin of its own), so they hold by construction. Nothing was
published about how input and output depend on each other, so here they are independent.
"""

import argparse
import math
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

from loadgen.workload.token_bins import TokenBin, TokenBins, bins_json

Side = tuple[list[tuple[int, float]], float]
"""A list of (length, share of requests up to it), and the mean."""

PAPER = "Fernandez et al., Energy Considerations of LLM Inference and Efficiency Optimizations, arXiv 2504.17674"
AZURE = {
    "source": "https://github.com/Azure/AzurePublicDataset, Azure LLM inference trace 2024, one week",
    "licence": "CC-BY-4.0",
    "cite": "J. Stojkovic et al., DynamoLLM, HPCA 2025",
}
BURSTGPT = {
    "source": "https://github.com/HPMLL/BurstGPT",
    "licence": "CC-BY-4.0",
    "cite": "Y. Wang et al., BurstGPT, arXiv 2401.17644",
}
GRID_INPUTS, GRID_OUTPUTS = (128, 1024, 4096), (32, 256, 1024)

CDF_CODE = [(32, 0.0182), (64, 0.0289), (128, 0.0504), (256, 0.0906), (512, 0.1484), (1024, 0.2756)]
CDF_CONV = [(32, 0.0027), (64, 0.0069), (128, 0.0206), (256, 0.0798), (512, 0.2367), (928, 0.5), (2048, 0.6842)]
DATA_SETS: dict[str, tuple[dict[str, str], int, Side, Side]] = {
    "azure-2024-code": (
        AZURE | {"how": "reconstructed: input CDF read off the published figure, percentiles and means as published"},
        16_803_695,
        ([*CDF_CODE, (1930, 0.5), (4096, 0.817), (6251, 0.9), (7685, 0.99), (7743, 1.0)], 2511.28),
        ([(7, 0.49), (8, 0.51), (43, 0.9), (79, 0.95), (271, 0.99), (5000, 1.0)], 22.69),
    ),
    "azure-2024-chat": (
        AZURE | {"how": "reconstructed: CDFs read off published figures, percentiles and means as published"},
        27_303_999,
        ([*CDF_CONV, (3830, 0.9), (6683, 0.99), (7999, 1.0)], 1631.58),
        (
            [(8, 0.153), (16, 0.276), (32, 0.448), (41, 0.5), (64, 0.68), (128, 0.77), (256, 0.85), (342, 0.9),
             (455, 0.95), (694, 0.99), (1500, 1.0)],
            105.51,
        ),
    ),
    "burstgpt": (
        BURSTGPT
        | {"how": "reconstructed from mean, median and p99 as published; the longest, 4096 and 2048, are assumed"},
        3_784_200,
        ([(215, 0.5), (1038, 0.99), (4096, 1.0)], 256.80),
        ([(6, 0.49), (7, 0.51), (478, 0.99), (2048, 1.0)], 35.10),
    ),
}  # fmt: skip
TASKS = {
    "translation-wmt14": (49.96, 39.39, 550, 64),
    "generation-wikitext2": (136.89, 93.13, 547, 64),
    "classification-imdb": (292.48, 239.94, 3112, 1),
    "summarization-cnndm": (838.49, 400.70, 2386, 64),
}
"""Input mean, standard deviation and longest; output: the classical tasks of the paper, 1,024 examples of each."""


def marginal(side: Side) -> list[tuple[tuple[int, int], float, float]]:
    """Return ((low, high], share, mean) of every bin, such that all bins together have the side's mean."""
    points, mean = side
    edges = [((lo, hi), b - a) for (lo, a), (hi, b) in pairwise([(0, 0.0), *points])]

    def means(f: float) -> list[float]:
        return [max(lo + 1.0, lo + f * (hi - lo)) for (lo, hi), _ in edges]

    low, high = 0.0, 1.0
    for _ in range(60):
        f = (low + high) / 2
        total = sum(share * m for (_, share), m in zip(edges, means(f), strict=True))
        low, high = (f, high) if total < mean else (low, f)
    return [(span, share, m) for (span, share), m in zip(edges, means(f), strict=True)]


def lognormal(mean: float, deviation: float, longest: int, quantiles: int = 16) -> Side:
    """Return the lognormal lengths with that mean and standard deviation, cut at the longest."""
    sigma = math.sqrt(math.log1p((deviation / mean) ** 2))
    mu = math.log(mean) - sigma**2 / 2
    shares = [k / quantiles for k in range(1, quantiles)]
    points = [(round(math.exp(mu + sigma * NormalDist().inv_cdf(p))), p) for p in shares]
    return [*points, (longest, 1.0)], mean


def joint(name: str, provenance: dict[str, str], count: int, inputs: Side, outputs: Side) -> TokenBins:
    bins = [
        TokenBin(
            input_range=a, output_range=b, count=round(count * p * q), mean_input=round(m, 3), mean_output=round(k, 3)
        )
        for a, p, m in marginal(inputs)
        for b, q, k in marginal(outputs)
        if round(count * p * q)
    ]
    edges = [(0, *(length for length, _ in points)) for points, _ in (inputs, outputs)]
    return TokenBins(
        name=name, provenance=provenance, edges="stated", input_edges=edges[0], output_edges=edges[1], bins=tuple(bins)
    )


def exactly(length: int) -> tuple[int, int]:
    return length - 1, length


def fixed(name: str, provenance: dict[str, str], inputs: tuple[int, ...], outputs: tuple[int, ...]) -> TokenBins:
    """Return the bins of every input length with every output length, equally often."""
    bins = [
        TokenBin(input_range=exactly(n), output_range=exactly(o), count=1, mean_input=float(n), mean_output=float(o))
        for n in inputs
        for o in outputs
    ]
    edges = [tuple(sorted({e for v in side for e in exactly(v)})) for side in (inputs, outputs)]
    return TokenBins(
        name=name, provenance=provenance, edges="stated", input_edges=edges[0], output_edges=edges[1], bins=tuple(bins)
    )


def all_profiles() -> list[TokenBins]:
    made = [joint(name, *published) for name, published in DATA_SETS.items()]
    for name, (mean, deviation, longest, output) in TASKS.items():
        method = f"reconstructed: lognormal inputs of mean {mean}, standard deviation {deviation}, at most {longest}"
        provenance = {"source": PAPER, "licence": "CC-BY-4.0 (the numbers)", "cite": PAPER, "how": method}
        outputs: Side = ([(output - 1, 0.0), (output, 1.0)], float(output)) if output > 1 else ([(1, 1.0)], 1.0)
        made.append(joint(name, provenance, 1024, lognormal(mean, deviation, longest), outputs))
    method = "short, medium and long inputs and outputs, equally often; chosen, not measured"
    return [
        *made,
        fixed(
            "nine-cell-grid", {"source": "loadgen", "licence": "Apache-2.0", "how": method}, GRID_INPUTS, GRID_OUTPUTS
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "profiles" / "workloads")
    out = parser.parse_args().out
    for bins in all_profiles():
        (out / f"{bins.name}.json").write_bytes(bins_json(bins))
        print(f"{bins.name}: {len(bins.bins)} bins, mean {bins.mean_input:.1f} in, {bins.mean_output:.1f} out")


if __name__ == "__main__":
    main()
