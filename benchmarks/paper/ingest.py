"""Reduce what was measured on a GPU host to what docs/results/h200-2026 keeps: summaries and counter samples.

    python -m benchmarks.paper.ingest FOLDER docs/results/h200-2026/GROUP/NAME

FOLDER is what `measure_offline`, `loadgen replay` or `loadgen study` wrote. A session of `measure_offline` is appended
to `offline/sessions.jsonl` and its counter samples to `offline/energy.jsonl.gz`, under NAME.
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

from loadgen.energy.counter_clock import align_to_counter_clock
from loadgen.energy.series import EnergySample, EnergySeries, series_by_domain

FOLDER = Path(__file__).parents[2] / "docs/results/h200-2026"


def ingest(source: Path, target: Path) -> None:
    """Copy the summary and the counter samples of the folder `source` to `target`."""
    if (source / "study.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "results.csv", target / "results.csv")
    elif (source / "run.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        (target / "energy.jsonl.gz").write_bytes(gzip.compress((source / "energy.jsonl").read_bytes(), mtime=0))
        for name in ("run.json", "summary.json"):
            shutil.copyfile(source / name, target / name)
    else:
        append_session(source, target.parent, target.name)


def append_session(source: Path, offline: Path, name: str) -> None:
    """Append a session of `measure_offline` to the folder `offline`. ValueError when it holds one of that name."""
    samples = [json.loads(line) for line in (source / "energy.jsonl").read_text().splitlines()]
    summary = with_late_joules(json.loads((source / "summary.json").read_text()), _series(samples))
    offline.mkdir(parents=True, exist_ok=True)
    sessions, energy = offline / "sessions.jsonl", offline / "energy.jsonl.gz"
    lines = sessions.read_text().splitlines() if sessions.exists() else []
    if any(json.loads(line)["session"] == name for line in lines):
        raise ValueError(f"{sessions} holds a session {name!r} already")
    line = json.dumps({"session": name, **summary}, separators=(",", ":"), ensure_ascii=False)
    sessions.write_text("\n".join([*lines, line]) + "\n")
    stored = gzip.decompress(energy.read_bytes()) if energy.exists() else b""
    stored += b"".join(msgspec.json.encode({"session": name, **sample}) + b"\n" for sample in samples)
    energy.write_bytes(gzip.compress(stored, mtime=0))


def with_late_joules(summary: dict[str, Any], series: list[EnergySeries]) -> dict[str, Any]:
    """Return the summary with the joules of windows that ended before the counter's next update."""
    late: list[str] = []
    for cell in summary["cells"]:
        for part in cell["full"] + cell["prefill"]:
            if part["joules"] is None and (recounted := joules_of(part, series)) is not None:
                part["joules"], part["u_joules"] = recounted
                part["watts"] = recounted[0] / part["seconds"]
                late.append(f"{cell['input_tokens']}x{cell['output_tokens']}@{cell['batch']}")
        cell.update(means(cell))
    summary["taken"] = {"joules_from_energy_jsonl": late}
    return summary


def means(cell: dict[str, Any]) -> dict[str, float | None]:
    """Return a cell's means over its repeats, named as `measure_offline` names them."""
    size = cell["batch"] * cell["output_tokens"]
    measured = [part for part in cell["full"] if part["joules"] is not None]
    per_token = [part["joules"] / part["batches"] / size for part in measured]
    prefill = [part["joules"] / part["batches"] for part in cell["prefill"] if part["joules"] is not None]
    return {
        "joules_per_output_token": mean(per_token),
        "spread": spread(per_token),
        "output_tokens_per_s": mean([part["batches"] * size / part["seconds"] for part in cell["full"]]),
        "mean_w": mean([part["watts"] for part in measured]),
        "batch_s": mean([part["seconds"] / part["batches"] for part in cell["full"]]),
        "prefill_joules_per_batch": mean(prefill),
    }


def joules_of(part: dict[str, Any], series: list[EnergySeries]) -> tuple[float, float] | None:
    """Return (joules, bound of their error) of a window over all GPUs; None when the counter does not cover it."""
    window = (part["start_ns"], part["end_ns"])
    measured = [(domain.energy_mj(*window), domain.uncertainty_mj(*window)) for domain in series]
    if any(energy is None or u is None for energy, u in measured):
        return None
    return sum(energy or 0.0 for energy, _ in measured) / 1e3, sum(u or 0.0 for _, u in measured) / 1e3


def mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    return (max(values) - min(values)) / fmean(values) if len(values) > 1 else None


@cache
def sessions(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Return {name: summary} of every offline measurement session in `folder`."""
    summaries = map(json.loads, (folder / "offline/sessions.jsonl").read_text().splitlines())
    return {summary["session"]: summary for summary in summaries}


def session(name: str) -> dict[str, Any]:
    return sessions()[name]


@cache
def _samples() -> dict[str, list[dict[str, Any]]]:
    samples: dict[str, list[dict[str, Any]]] = {}
    for line in gzip.decompress((FOLDER / "offline/energy.jsonl.gz").read_bytes()).splitlines():
        sample = json.loads(line)
        samples.setdefault(sample.pop("session"), []).append(sample)
    return samples


def counter(name: str) -> list[EnergySeries]:
    """Return the energy series of an offline session, one per GPU."""
    return _series(_samples()[name])


def _series(samples: list[dict[str, Any]]) -> list[EnergySeries]:
    series = series_by_domain([msgspec.convert(sample, EnergySample) for sample in samples])
    return [align_to_counter_clock(domain) for domain in series.values()]


@cache
def online(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (summary, run) of an online run."""
    folder = FOLDER / "online" / name
    return json.loads((folder / "summary.json").read_text()), json.loads((folder / "run.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    ingest(options.folder, options.target)


if __name__ == "__main__":
    main()
