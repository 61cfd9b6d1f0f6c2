"""Compare the energy model with the simulated server's joules: Azure 2023 conversation and code at full batches.

    python -m benchmarks.accuracy.energy_model [--originals DIR] [--write docs/concepts/energy-model]

Everything here is simulated, in virtual time: the profile's cells and the workloads' true joules come from the same
simulated GPU, which sees every request of the trace, one batch of 128 at a time, and no bins. --originals holds the
CSV files of the Azure LLM inference traces of 2023; without it, the two traces that are drawn from them are used.
"""

import argparse
import math
from collections import Counter
from pathlib import Path

import numpy as np

from loadgen.energy_model.energy_profile import EnergyProfile, read_energy_profile
from loadgen.energy_model.estimate import Estimate, estimates, surface
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.energy_model.waves import RequestShape
from loadgen.simulator.virtual_profile import closed_loop
from loadgen.workload.token_bins import count_pairs
from loadgen.workload.trace_columns import iter_columns

ROOT = Path(__file__).parents[2]
PROFILE = "h200-sim-llama-3.1-8b"
BATCHES = (8, 32, 128)
METHODS = ("interpolated", "two-phase", "ceiling", "ideal, dense", "ideal, sparse")
ORIGINALS = {
    "Azure 2023 conversation": "AzureLLMInferenceTrace_conv.csv",
    "Azure 2023 code": "AzureLLMInferenceTrace_code.csv",
}
SHIPPED = {"traces/chat.jsonl": ROOT / "traces/chat.jsonl", "traces/code.jsonl": ROOT / "traces/code.jsonl"}


def true_joules(lengths: list[RequestShape], profile: EnergyProfile, batch: int) -> float:
    """Return the joules of the whole workload in a closed loop of `batch`, as the simulated counter would show them."""
    run = closed_loop(lengths, read_hardware(profile.gpu), read_model(profile.model), batch)
    return run.step_j


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--originals", type=Path)
    parser.add_argument("--write", type=Path, metavar="STEM", help="Also write STEM-error.svg and STEM-surface.svg.")
    args = parser.parse_args()
    files = dict(SHIPPED)
    if args.originals:
        files |= {name: args.originals / file for name, file in ORIGINALS.items()}
    profile = read_energy_profile(PROFILE)
    hardware, model = read_hardware(profile.gpu), read_model(profile.model)
    rows: list[tuple[str, int, float, list[Estimate]]] = []
    print(f"profile {profile.name} (simulated), {len(profile.cells)} cells; estimate / measured - 1\n")
    print("| workload | requests | batch | measured J/request | " + " | ".join(METHODS) + " |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, path in files.items():
        chunks = [(columns.input_tokens, columns.output_tokens) for columns in iter_columns(path, Counter())]
        pairs = count_pairs(chunks)
        lengths = [
            RequestShape(int(n), int(o)) for inputs, outputs in chunks for n, o in zip(inputs, outputs, strict=True)
        ]
        for batch in BATCHES:
            measured = true_joules(lengths, profile, batch)
            by_method = estimates(pairs, profile, batch, hardware, model)
            rows.append((name, batch, measured, by_method))
            errors = " | ".join(f"{e.joules / measured - 1:+.1%}" for e in by_method)
            print(f"| {name} | {len(lengths):,} | {batch} | {measured / len(lengths):.2f} | {errors} |", flush=True)
    print("\ncoefficients of the two-phase model, in joules:", surface(profile, 128).fit)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.with_name(args.write.name + "-error.svg").write_text(error_figure(rows))
        args.write.with_name(args.write.name + "-surface.svg").write_text(surface_figure(profile))


# -- figures: plain SVG that reads on light and on dark ---------------------------------------------------------------

STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #1f2328 } .axis { stroke: #8c959f; stroke-width: 1 }
.faint { opacity: .35 }
.a { --c: #0969da } .b { --c: #1a7f37 } .c { --c: #cf222e } .d { --c: #8250df } .e { --c: #9a6700 }
rect.a,rect.b,rect.c,rect.d,rect.e { fill: var(--c) } path { fill: none; stroke: var(--c); stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 }
.a { --c: #58a6ff } .b { --c: #3fb950 } .c { --c: #ff7b72 } .d { --c: #d2a8ff } .e { --c: #d29922 } }
</style>"""
CLASSES = "abcde"


def svg(width: int, height: int, label: str, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
    return "\n".join([head, STYLE, *parts, "</svg>", ""])


def error_figure(rows: list[tuple[str, int, float, list[Estimate]]]) -> str:
    """Draw bars of estimate / measured at batch 128, one group per workload."""
    shown = [(name, measured, by_method) for name, batch, measured, by_method in rows if batch == max(BATCHES)]
    height, margin, width, top = 300, 50, 180, 40
    bottom = height - 40
    y = lambda ratio: bottom - (bottom - top) * ratio / 1.6  # noqa: E731
    parts = [f'<text x="{margin}" y="20">estimate / measured at batch {max(BATCHES)} (simulated)</text>']
    right = margin + width * len(shown) + 20
    for tick in (0, 0.5, 1.0, 1.5):
        faint = "" if tick == 1.0 else " faint"
        parts.append(f'<line class="axis{faint}" x1="{margin}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{margin - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for group, (name, measured, by_method) in enumerate(shown):
        x = margin + 15 + group * width
        for i, estimate in enumerate(by_method):
            ratio = estimate.joules / measured
            parts.append(
                f'<rect class="{CLASSES[i]}" x="{x + i * 31}" y="{y(ratio):.1f}" width="24" '
                f'height="{bottom - y(ratio):.1f}"><title>{estimate.method}: {ratio:.3f}</title></rect>'
                f'<text x="{x + i * 31 + 12}" y="{y(ratio) - 4:.1f}" text-anchor="middle">'
                f"{ratio:.2f}</text>"
            )
        parts.append(f'<text x="{x + 75}" y="{bottom + 18}" text-anchor="middle">{name}</text>')
    for i, estimate in enumerate(shown[0][2]):
        parts.append(f'<rect class="{CLASSES[i]}" x="{margin + i * 140}" y="{height - 14}" width="10" height="10"/>')
        parts.append(f'<text x="{margin + i * 140 + 15}" y="{height - 5}">{estimate.method}</text>')
    return svg(right, height + 4, "estimates over measured energy", parts)


def surface_figure(profile: EnergyProfile) -> str:
    """Draw J per request over the output length at each batch, a line per input length, log-log."""
    batches = sorted({cell.batch for cell in profile.cells})
    inputs = sorted({cell.input for cell in profile.cells})[::2]
    outputs = np.unique(np.geomspace(8, 1024, 60).astype(np.int64))
    width, height, margin, top = 190, 260, 45, 45
    parts = ['<text x="45" y="18">J/request over output tokens, by input tokens and batch (simulated; log-log)</text>']
    for k, batch in enumerate(batches):
        fitted = surface(profile, batch)
        x0 = margin + k * (width + 15)
        x = lambda o, x0=x0: x0 + (width - 10) * math.log(o / 8) / math.log(128)  # noqa: E731
        y = lambda j: height - (height - top) * math.log10(j / 0.3) / math.log10(3000 / 0.3)  # noqa: E731
        for tick in (1, 10, 100, 1000):
            parts.append(
                f'<line class="axis faint" x1="{x0}" x2="{x0 + width - 10}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            )
            if k == 0:
                parts.append(f'<text x="{margin - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
        for i, n in enumerate(inputs):
            joules = fitted.joules(np.full(len(outputs), n), outputs)
            points = " L".join(f"{x(o):.1f} {y(j):.1f}" for o, j in zip(outputs.tolist(), joules.tolist(), strict=True))
            parts.append(f'<path class="{CLASSES[i]}" d="M{points}"><title>{n} input tokens</title></path>')
        parts.append(f'<text x="{x0}" y="{top - 6}">batch {batch}</text>')
        for o in (8, 128, 1024):
            parts.append(f'<text x="{x(o):.1f}" y="{height + 16}" text-anchor="middle">{o}</text>')
    for i, n in enumerate(inputs):
        parts.append(f'<rect class="{CLASSES[i]}" x="{margin + i * 130}" y="{height + 28}" width="10" height="10"/>')
        parts.append(f'<text x="{margin + i * 130 + 15}" y="{height + 37}">{n:,} input tokens</text>')
    return svg(margin + len(batches) * (width + 15), height + 45, "energy per request by length and batch", parts)


if __name__ == "__main__":
    main()
