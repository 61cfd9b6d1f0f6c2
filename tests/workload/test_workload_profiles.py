"""Every shipped workload says whose it is; the reconstructed ones match what was published within 2 %."""

from pathlib import Path

import numpy as np
import pytest

from loadgen.workload.token_bins import read_bins, sample_lengths

FOLDER = Path(__file__).parents[2] / "profiles" / "workloads"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))

PUBLISHED = {  # mean, median, p99 of input and of output: arXiv 2504.17674, table 1
    "azure-2024-code": ((2511.28, 1930, 7685), (22.69, 8, 271)),
    "azure-2024-chat": ((1631.58, 928, 6683), (105.51, 41, 694)),
    "burstgpt": ((256.80, 215, 1038), (35.10, 7, 478)),
}
TASKS = {
    "translation-wmt14": (49.96, 64),
    "generation-wikitext2": (136.89, 64),
    "classification-imdb": (292.48, 1),
    "summarization-cnndm": (838.49, 64),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_reconstructed_workloads_have_the_published_moments(name: str) -> None:
    drawn = sample_lengths(read_bins(FOLDER / f"{name}.json"), 200_000, np.random.default_rng(0))
    for lengths, (mean, median, p99) in zip(drawn, PUBLISHED[name], strict=True):
        assert lengths.mean() == pytest.approx(mean, rel=0.02)
        assert np.percentile(lengths, 50) == pytest.approx(median, rel=0.02)
        assert np.percentile(lengths, 99) == pytest.approx(p99, rel=0.02)


@pytest.mark.parametrize("name", TASKS)
def test_classical_tasks_have_the_paper_s_means(name: str) -> None:
    bins = read_bins(FOLDER / f"{name}.json")
    assert (bins.mean_input, bins.mean_output) == pytest.approx(TASKS[name], rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_every_workload_says_where_it_comes_from_and_can_be_drawn(name: str) -> None:
    bins = read_bins(FOLDER / f"{name}.json")
    assert {"source", "licence"} <= bins.provenance.keys() and {"how", "command"} & bins.provenance.keys()
    assert ("reconstructed" in bins.provenance.get("how", "")) == (name in PUBLISHED or name in TASKS)
    inputs, outputs = sample_lengths(bins, 100, np.random.default_rng(1))
    assert inputs.min() >= 1 and outputs.min() >= 1
