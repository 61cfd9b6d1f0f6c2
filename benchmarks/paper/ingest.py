#!/usr/bin/env python3
"""What was measured elsewhere, into docs/results/h200-2026, small: summaries and counter samples, no logs or requests.

    python -m benchmarks.paper.ingest FOLDER docs/results/h200-2026/GROUP/NAME

FOLDER is what measure_offline.py, `loadgen replay` or `loadgen study` wrote.
"""

import argparse
import gzip
import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from loadgen.energy.series import EnergySample, EnergySeries, align_to_counter_clock, series_by_domain

FOLDER = Path(__file__).parents[2] / "docs/results/h200-2026"


def take(source: Path, target: Path) -> None:
    """Summary and counter samples of a folder, small."""
    target.mkdir(parents=True, exist_ok=True)
    if (source / "study.json").exists():
        shutil.copyfile(source / "results.csv", target / "results.csv")
        return
    (target / "energy.jsonl.gz").write_bytes(gzip.compress((source / "energy.jsonl").read_bytes(), mtime=0))
    summary = json.loads((source / "summary.json").read_text())
    if (source / "run.json").exists():
        shutil.copyfile(source / "run.json", target / "run.json")
    else:
        summary = settled(summary, counter(target))
    (target / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def settled(summary: dict[str, Any], series: list[EnergySeries]) -> dict[str, Any]:
    """A sitting's cells with the joules that the counter told only later."""
    late: list[str] = []
    for cell in summary["cells"]:
        for part in cell["full"] + cell["prefill"]:
            if part["joules"] is None and (found := joules_of(part, series)) is not None:
                part["joules"], part["u_joules"] = found
                part["watts"] = found[0] / part["seconds"]
                late.append(f"{cell['input_tokens']}x{cell['output_tokens']}@{cell['batch']}")
        cell.update(means(cell))
    summary["taken"] = {"joules_from_energy_jsonl": late}
    return summary


def means(cell: dict[str, Any]) -> dict[str, float | None]:
    """A cell's own means, over its repeats as they are now; named as measure_offline.py names them."""
    size = cell["batch"] * cell["output_tokens"]
    known = [one for one in cell["full"] if one["joules"] is not None]
    each = [one["joules"] / one["batches"] / size for one in known]
    prefill = [one["joules"] / one["batches"] for one in cell["prefill"] if one["joules"] is not None]
    return {
        "joules_per_output_token": mean(each),
        "spread": spread(each),
        "output_tokens_per_s": mean([one["batches"] * size / one["seconds"] for one in cell["full"]]),
        "mean_w": mean([one["watts"] for one in known]),
        "batch_s": mean([one["seconds"] / one["batches"] for one in cell["full"]]),
        "prefill_joules_per_batch": mean(prefill),
    }


def counter(folder: Path) -> list[EnergySeries]:
    lines = gzip.decompress((folder / "energy.jsonl.gz").read_bytes()).splitlines()
    samples = [msgspec.json.decode(line, type=EnergySample) for line in lines]
    return [align_to_counter_clock(one) for one in series_by_domain(samples).values()]


def joules_of(part: dict[str, Any], series: list[EnergySeries]) -> tuple[float, float] | None:
    """(joules, bound of their error) of a window, all GPUs together; None when the counter does not cover it."""
    found = [
        (one.energy_mj(part["start_ns"], part["end_ns"]), one.u_mj(part["start_ns"], part["end_ns"])) for one in series
    ]
    if any(energy is None or u is None for energy, u in found):
        return None
    return sum(energy or 0.0 for energy, _ in found) / 1e3, sum(u or 0.0 for _, u in found) / 1e3


def mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    return (max(values) - min(values)) / fmean(values) if len(values) > 1 else None


# ---------------------------------------------------------------- what was taken in


@cache
def sitting(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "frameworks" / name / "summary.json").read_text())
    return found


@cache
def online(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(summary, run) of an online run."""
    folder = FOLDER / "online" / name
    return json.loads((folder / "summary.json").read_text()), json.loads((folder / "run.json").read_text())


# ---------------------------------------------------------------- the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    take(options.folder, options.target)


if __name__ == "__main__":
    main()
