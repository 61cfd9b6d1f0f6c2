"""Write results.csv and report.html from the summaries of measure_offline.

    python -m benchmarks.paper.offline_table OUT SUMMARY.json...

Several summaries, of other sessions, shapes or lengths, become one page. Only the summaries are read.
"""

import argparse
import csv
import json
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from loadgen.energy_model.estimate import flops
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.report.study_page import render_study_page
from loadgen.results.study_table import Row, StudyInfo

HARDWARE = {"NVIDIA H200": "h200", "NVIDIA H100 80GB HBM3": "h100"}
"""Map the driver's name of a GPU to its profile in profiles/hardware."""
MOST_BOUND = 0.10
"""Largest error bound (the counter's step at each end) of a valid window, as a share of its joules."""

COLUMNS = Row.__struct_fields__[: Row.__struct_fields__.index("idle_watts") + 1]
"""Columns of results.csv. The later ones of Row are known of runs of `loadgen study` only."""


def rows_of(summary: dict[str, Any], prefix: str = "") -> list[Row]:
    """Return a row per repeat of a cell; prefill is measured by batches of one output token, decode is the rest."""
    return [
        _row(summary, cell, repeat, part, prefix)
        for cell in summary["cells"]
        for repeat, part in enumerate(cell["full"])
        if part["joules"] is not None
    ]


def _row(summary: dict[str, Any], cell: dict[str, Any], repeat: int, part: dict[str, Any], prefix: str) -> Row:
    in_each, out_each = cell["input_tokens"], cell["output_tokens"]
    workload = f"{in_each}x{out_each}"
    requests = cell["batch"] * part["batches"]
    output, inputs = requests * out_each, requests * in_each
    prefill = cell["prefill_joules_per_batch"]
    first_s = _mean([p["seconds"] / p["batches"] for p in cell["prefill"]])
    rest_s = part["seconds"] / part["batches"] - first_s if first_s is not None else None
    gpus = _measured(summary, cell["gpus"])
    ideal = idealized_joules(summary, in_each, out_each, requests)
    stage = cell["stage"] + _variant(summary, cell["stage"])
    return Row(
        cell=f"{prefix}{stage}-{workload}-b{cell['batch']}-r{repeat}",
        server=stage,
        model=summary["shape"],
        workload=workload,
        batch=cell["batch"],
        rps=None,
        repeat=repeat,
        simulated=False,
        completed=requests,
        failed=0,
        duration_s=part["seconds"],
        input_tokens=inputs,
        output_tokens=output,
        output_tokens_per_s=output / part["seconds"],
        measured_joules=part["joules"],
        prefill_joules=prefill * part["batches"] if prefill is not None else None,
        decode_joules=part["joules"] - prefill * part["batches"] if prefill is not None else None,
        idle_joules=None,
        unattributed_joules=None,
        mean_watts=part["watts"],
        joules_per_output_token=part["joules"] / output,
        joules_per_request=part["joules"] / requests,
        ttft_p50_s=first_s,
        ttft_p99_s=None,
        tpot_p50_s=rest_s / (out_each - 1) if rest_s and out_each > 1 else None,
        tpot_p99_s=None,
        e2e_p50_s=part["seconds"] / part["batches"],
        goodput_ratio=None,
        good_requests_per_joule=None,
        idealized_joules=ideal,
        measured_over_idealized=part["joules"] / ideal if ideal else None,
        energy_valid=part["u_joules"] is not None and part["u_joules"] < MOST_BOUND * part["joules"],
        gpu=", ".join(gpu["name"] for gpu in gpus) or None,
        temperature_c=max((gpu["temperature_c"] for gpu in gpus if "temperature_c" in gpu), default=None),
    )


def _measured(summary: dict[str, Any], gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the GPUs of the host whose counter was read ("gpu:1"), or all where the summary does not list them."""
    read = [domain["name"].partition(":")[2] for domain in summary.get("energy", {}).get("domains", [])]
    return [gpu for index, gpu in enumerate(gpus) if str(index) in read] or gpus


def _variant(summary: dict[str, Any], stage: str) -> str:
    """Return the part of a server's name that separates sessions: GPUs, speculation, sampling, engine arguments."""
    sampling = summary.get("sampling", {})
    settings = {key: sampling[key] for key in ("num_beams", "temperature", "top_p") if key in sampling}
    start = ""
    if stage.startswith("vllm"):
        start = f"-tp{summary['tensor_parallel']}" if summary["tensor_parallel"] > 1 else ""
        start += speculation(summary)
        settings |= {key: value for key, value in summary.get("vllm_args", {}).items() if key != "speculative_config"}
    return start + "".join(f"-{key}={value}" for key, value in sorted(settings.items()))


def speculation(summary: dict[str, Any]) -> str:
    """Return the speculation method, and for a fixed rate the acceptance of a step's first token: "-draft=0.7"."""
    config = summary.get("vllm_args", {}).get("speculative_config")
    if config is None:
        return ""
    rates = config.get("synthetic_acceptance_rates")
    return f"-{config['method'].removesuffix('_model')}" + (f"={rates[0]}" if rates else "")


def idealized_joules(summary: dict[str, Any], in_each: int, out_each: int, requests: int) -> float | None:
    """Return the joules of the same FLOPs at the dense peak and power limit; None without a model or GPU profile."""
    hardware = next((HARDWARE.get(gpu["name"]) for gpu in summary["gpus"]), None)
    if hardware is None or summary["shape"] not in ("llama-3.1-8b",):
        return None
    peak, model = read_hardware(hardware), read_model(summary["shape"])
    lengths = (np.array([in_each]), np.array([out_each]))
    return requests * float(flops(*lengths, model).sum()) * peak.limit_w / peak.peak_flops


def csv_of(rows: Iterable[Row]) -> str:
    """Return the text of results.csv, one line per row."""
    file = StringIO()
    table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(msgspec.to_builtins(row) for row in rows)
    return file.getvalue()


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("summaries", type=Path, nargs="+")
    parser.add_argument("--title", default="Frameworks by batch")
    parser.add_argument("--baseline", default="hf-eager")
    options = parser.parse_args()
    rows = [
        row
        for number, path in enumerate(options.summaries)
        for row in rows_of(json.loads(path.read_text()), f"{number}-" if len(options.summaries) > 1 else "")
    ]
    description = (
        "Offline, in-process, random weights, fixed lengths; GPU energy by its own counter. Each run is whole batches."
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.html").write_text(
        render_study_page(StudyInfo(options.title, description, options.baseline), rows)
    )
    (options.out / "results.csv").write_text(csv_of(rows))
    print(f"{len(rows)} rows: {options.out / 'results.csv'}, {options.out / 'report.html'}")


if __name__ == "__main__":
    main()
