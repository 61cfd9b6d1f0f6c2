"""Tables of docs/results/gpus.md on transfer: the energy profile of a card, carried over to the other card."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.paper.gpus import H100, PROFILES
from benchmarks.paper.ingest import FOLDER
from benchmarks.paper.words import percent, table
from loadgen.energy_model.energy_profile import EnergyProfile, GridKey, read_energy_profile
from loadgen.energy_model.hardware import read_hardware
from loadgen.energy_model.transfer import Transfer, transferred
from loadgen.report.estimate_facts import comparable_run, mean_decoding, measured_facts

WAYS = (("h200", "h100"), ("h100", "h200"))
FIVE = (GridKey(32, 256, 1), GridKey(32, 256, 64), GridKey(512, 64, 16), GridKey(4096, 8, 64), GridKey(4096, 256, 64))
"""Cells that show the costs apart: decoding alone and in a large batch, prefill alone, both with long contexts, and a
cell of the middle."""
CHOICES: dict[str, Sequence[GridKey]] = {
    "data sheets alone": (),
    "and the corners and the middle": FIVE,
    "and four, of one command": tuple(GridKey(n, o, batch) for n, o in ((32, 256), (4096, 8)) for batch in (1, 64)),
    "and five around the middle": tuple(
        GridKey(*key) for key in ((512, 64, 4), (1024, 64, 4), (512, 64, 16), (1024, 64, 16), (1024, 128, 16))
    ),
    "and five at batch 1": tuple(GridKey(n, o, 1) for n, o in ((32, 8), (32, 256), (512, 64), (4096, 8), (4096, 256))),
    "and five at batch 64": tuple(
        GridKey(n, o, 64) for n, o in ((32, 8), (32, 256), (512, 64), (4096, 8), (4096, 256))
    ),
    "and five of 8 output tokens": tuple(
        GridKey(n, 8, batch) for n, batch in ((32, 1), (32, 4), (32, 16), (32, 64), (128, 1))
    ),
}
DRAWS = 200
HELD_OUT = {"h100": H100 / "held-out", "h200": FOLDER / "held-out"}


class CellErrors(NamedTuple):
    """Relative errors of the joules per request over the cells that were not used: estimate / measured - 1."""

    mean: float
    median: float
    p90: float
    largest: float
    """Median, 90th percentile and maximum of the errors' sizes."""

    def words(self) -> list[str]:
        return [percent(self.mean, signed=True), *(percent(value) for value in self[1:])]


def profile_of(card: str) -> EnergyProfile:
    return read_energy_profile(PROFILES[card])


def carried(source: str, target: str, keys: Sequence[GridKey]) -> tuple[EnergyProfile, Transfer]:
    """Return the source card's profile on the target card, corrected by the target's own cells of these keys."""
    cells = [cell for cell in profile_of(target).cells if cell.key in keys]
    assert len(cells) == len(keys)
    return transferred(profile_of(source), read_hardware(source), read_hardware(target), cells)


def cell_errors(estimated: EnergyProfile, measured: EnergyProfile, used: Sequence[GridKey] = ()) -> CellErrors:
    joules = {cell.key: cell.joules_per_request for cell in measured.cells}
    errors = np.array(
        [cell.joules_per_request / joules[cell.key] - 1 for cell in estimated.cells if cell.key not in used]
    )
    sizes = np.abs(errors)
    return CellErrors(float(errors.mean()), float(np.median(sizes)), float(np.quantile(sizes, 0.9)), float(sizes.max()))


def cells_table() -> str:
    body = []
    for source, target in WAYS:
        way, measured = f"{source.upper()} to {target.upper()}", profile_of(target)
        body.append([way, "not transferred", "1", "1", *cell_errors(profile_of(source), measured).words()])
        for name, keys in CHOICES.items():
            estimated, transfer = carried(source, target, keys)
            factors = [f"{factor:.3f}" for factor in (transfer.reads, transfer.products)]
            body.append([way, name, *factors, *cell_errors(estimated, measured, keys).words()])
        body.append([way, f"and five at random: median of {DRAWS}", "-", "-", *random_errors(source, target, 0.5)])
        body.append([way, "and five at random: 95 % are below", "-", "-", *random_errors(source, target, 0.95)])
    head = ["", "profile", "reads ×", "products ×", "mean error", "median size", "90 % below", "largest"]
    return table(head, body)


def random_errors(source: str, target: str, quantile: float) -> list[str]:
    """Return a quantile, over random choices of five cells, of each size of error."""
    rng = np.random.default_rng(0)
    keys, measured = [cell.key for cell in profile_of(target).cells], profile_of(target)
    draws = []
    for _ in range(DRAWS):
        chosen = [keys[i] for i in rng.choice(len(keys), len(FIVE), replace=False)]
        draws.append(cell_errors(carried(source, target, chosen)[0], measured, chosen)[1:])
    return ["-", *(percent(float(value)) for value in np.quantile(draws, quantile, axis=0))]


def held_out_table() -> str:
    body = []
    for source, target in WAYS:
        profiles = [profile_of(target), profile_of(source), *(carried(source, target, keys)[0] for keys in ((), FIVE))]
        for load in ("chat", "code"):
            run = comparable_run(HELD_OUT[target] / load, profiles[0])
            batch = mean_decoding(run)
            facts = [measured_facts(run, profile, batch, (None, None), load) for profile in profiles]
            errors = [percent(each["ratios"]["interpolated"] - 1, signed=True) for each in facts]
            joules = facts[0]["joules"] / facts[0]["requests"]
            body.append([f"{target.upper()}, held-out/{load}", f"{joules:.2f}", *errors])
    head = ["run", "measured J/request", "its own 120 cells", "the other card's", "by data sheets", "and by five cells"]
    return table(head, body)


TABLES = {"gpus-transfer-cells": cells_table, "gpus-transfer-held-out": held_out_table}
