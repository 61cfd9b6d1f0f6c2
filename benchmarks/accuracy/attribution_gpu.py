"""Test attribution on a real GPU, with experiments whose result is known without a model.

    python -m benchmarks.accuracy.attribution_gpu run DIR [--base-url URL] [--seconds 240] [--load 1] [--only NAME]
    python -m benchmarks.accuracy.attribution_gpu analyse DIR
    python -m benchmarks.accuracy.attribution_gpu figure DIR > docs/concepts/attribution-windows.svg
    python -m benchmarks.accuracy.attribution_gpu prices [DIR ...]

`run` replays against a live server, one run folder each:

    mix        conversations at 4/s and code at 2/s, together
    chat       the conversations of the mix alone, at the same instants
    code       the code requests of the mix alone, at the same instants
    identical  bursts of 8 equal requests: each must get 1/8 of its burst

`analyse` needs no GPU: it reads the folders. Those in docs/results were measured on an H200. `prices` prints ratios of
the prices in run folders, from which the live fit's prior was chosen. By default these are the recordings of a dense
model of 8B in docs/results, without those of equal requests.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.cost_model import cost_shares, member_features, overlap, step_features
from loadgen.attribution.engine_steps import EngineSteps
from loadgen.attribution.step_time import with_pace
from loadgen.attribution.window_fit import align_phase, fit_coefficients
from loadgen.energy.counter_clock import align_to_counter_clock
from loadgen.energy.series import EnergySeries
from loadgen.results.energy_summary import outermost_series
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import load_run, span
from loadgen.units import NS_PER_S
from loadgen.workload.schedule import build_schedule
from loadgen.workload.trace import TraceRequest, read_trace, write_trace

TRACES = Path(__file__).parents[2] / "traces"
RATES = {"chat": 4.0, "code": 2.0}
BURSTS, BURST_SIZE, BURST_EVERY_S = 10, 8, 3.0
RESULTS = Path(__file__).parents[2] / "docs/results"
DENSE = [
    *(RESULTS / f"{gpu}-2026" / kind / name for gpu in ("h100", "h200") for kind in ("attribution", "held-out")
      for name in ("chat", "code", "mix") if (kind, name) != ("held-out", "mix")),
    RESULTS / "h200-2026/soak-5min",
]  # fmt: skip
"""Recordings of a dense model of 8B."""
PARTS = {"identical": 1.0, "mix": 1.0, "chat": 0.4, "code": 0.4}
"""Duration of each run as a share of --seconds."""


def make_traces(folder: Path, seconds: float, load: float) -> None:
    """Write the four traces into `folder`, at `load` times the rates."""
    mix: list[TraceRequest] = []
    for seed, (kind, rps) in enumerate(RATES.items()):
        plan = build_schedule(
            read_trace(TRACES / f"{kind}.jsonl"), seed=seed, rps=load * rps, arrival="poisson", duration_s=seconds
        )
        mix += [
            TraceRequest(
                arrival_s=request.offset_ns / NS_PER_S, input_tokens=request.input_tokens,
                output_tokens=request.output_tokens, workload=kind,
            )
            for request in plan.requests
        ]  # fmt: skip
    mix.sort(key=lambda request: request.arrival_s)
    write_trace(folder / "mix.jsonl", mix)
    for kind in RATES:
        until_s = PARTS[kind] * seconds
        write_trace(folder / f"{kind}.jsonl", [r for r in mix if r.workload == kind and r.arrival_s < until_s])
    bursts = [
        TraceRequest(arrival_s=burst * BURST_EVERY_S, input_tokens=512, output_tokens=128, workload="identical")
        for burst in range(BURSTS)
        for _ in range(BURST_SIZE)
    ]
    write_trace(folder / "identical.jsonl", bursts)


def run(folder: Path, base_url: str, seconds: float, load: float, only: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    make_traces(folder, seconds, load)
    for name in [only] if only else PARTS:
        command = ["replay", folder / f"{name}.jsonl", "--base-url", base_url, "--out", folder / name, "--ui", "none",
                   "--extra-body", '{"temperature": 0}', "--idle", 5]  # fmt: skip
        subprocess.run([sys.executable, "-m", "loadgen", *map(str, command)], check=False)


# -- analysis --------------------------------------------------------------------------------------------------------


def load(path: Path) -> RunResult:
    return load_run(path)


def identical(result: RunResult) -> dict[str, float]:
    """Return the deviation of requests from the mean of their burst, and the share within two standard errors."""
    assert result.attribution is not None
    joules = np.array([share.joules for share in result.attribution.requests]).reshape(-1, BURST_SIZE)
    errors = np.array([share.se_joules or 0.0 for share in result.attribution.requests]).reshape(-1, BURST_SIZE)
    off = joules - joules.mean(axis=1, keepdims=True)
    return {
        "joules_per_request": float(joules.mean()),
        "largest_off_percent": float(100 * np.abs(off / joules.mean(axis=1, keepdims=True)).max()),
        "within_2_se": float(np.mean(np.abs(off) <= 2 * np.maximum(errors, 1e-9))),
        "bursts_cv_percent": float(100 * joules.sum(axis=1).std() / joules.sum(axis=1).mean()),
    }


def until(result: RunResult, seconds: float) -> tuple[float, dict[str, float]]:
    """Return the joules measured in the first `seconds`, and those attributed to requests due in them by workload."""
    assert result.attribution is not None
    start_ns, _ = span(result)
    end_ns = start_ns + round(seconds * NS_PER_S)
    measured = sum(series.energy_mj(start_ns, end_ns) or 0.0 for series in outermost_series(result)) / 1000
    attributed_j: dict[str, float] = {}
    for share, record in zip(result.attribution.requests, result.records, strict=True):
        if record.scheduled_ns < end_ns:
            attributed_j[record.workload] = attributed_j.get(record.workload, 0.0) + share.joules
    return measured, attributed_j


def paired(mix: RunResult, alone: RunResult, extra: str, seconds: float) -> dict[str, float]:
    """Compare a background with and without an extra class: the joules it added, was attributed, and should add."""
    with_extra, attributed_j = until(mix, seconds)
    without, background = until(alone, seconds)
    (kept,) = [kind for kind in attributed_j if kind != extra]
    return {
        "seconds": seconds,
        "measured_difference_j": with_extra - without,
        "given_to_extra_j": attributed_j[extra],
        "background_in_mix_j": attributed_j[kept],
        "background_alone_j": background[kept],
        "modelled_difference_j": modelled(mix, seconds) - modelled(alone, seconds, mix),
    }


def modelled(result: RunResult, seconds: float, coefficients_of: RunResult | None = None) -> float:
    """Return the joules of the first `seconds` under the fitted law: steps, tokens, and idle power in between."""
    source = (coefficients_of or result).attribution
    assert source is not None
    (coefficients,) = source.coefficients
    work = replace(engine_steps_of(result.records, result.engine), experts=coefficients.experts)
    if coefficients.busy_w is not None:
        work = with_pace(work, step_features(work))
    start_ns, _ = span(result)
    end_ns = start_ns + round(seconds * NS_PER_S)
    inside = work.end_ns[work.step] <= end_ns
    steps = work.end_ns <= end_ns
    busy_s = float((work.end_ns - work.start_ns)[steps].sum()) / NS_PER_S
    return float((member_features(work)[inside] @ coefficients.values).sum()) + (coefficients.idle_w or 0.0) * (
        seconds - busy_s
    )


def report(folder: Path) -> dict[str, object]:
    experiments: dict[str, object] = {}
    results = {name: load(folder / name) for name in PARTS if (folder / name / "run.json").exists()}
    for name, result in results.items():
        assert result.summary is not None
        assert result.attribution is not None
        energy, counts = result.summary.energy, result.summary.requests
        accounts = [result.attribution.idle_mj, result.attribution.attributed_mj, result.attribution.unattributed_mj]
        experiments[name] = {
            "requests": counts.completed, "failed": counts.failed, "duration_s": result.summary.duration_s,
            "measured_mj": result.attribution.measured_mj, "accounts_mj": accounts,
            "left_over_mj": result.attribution.measured_mj - sum(accounts),
            "mean_watts": energy.mean_watts, "coverage": energy.coverage, "valid": energy.valid,
            "reasons": energy.reasons, "coefficients": energy.coefficients,
            "joules_by_workload": {kind: part.attributed_joules for kind, part in result.summary.by_workload.items()},
            "ttft_p50_s": result.summary.ttft_s.p50, "tpot_p50_s": result.summary.tpot_s.p50,
            "lag_p99_s": result.summary.schedule_lag_s.p99,
        }  # fmt: skip
    if "identical" in results:
        experiments["experiment identical"] = identical(results["identical"])
    if {"mix", "chat", "code"} <= results.keys():
        for alone, extra in (("chat", "code"), ("code", "chat")):
            last_due_ns = max(record.scheduled_ns for record in results[alone].records) - span(results[alone])[0]
            seconds = float(int(last_due_ns / NS_PER_S))
            experiments[f"experiment {alone} with and without {extra}"] = paired(
                results["mix"], results[alone], extra, seconds
            )
    return experiments


# -- figure ----------------------------------------------------------------------------------------------------------

STYLE = """text{font:12px system-ui,sans-serif;fill:#1f2328}.axis{stroke:#8c959f}
.same{stroke:#cf222e;stroke-dasharray:4 3}circle{fill:#0969da;opacity:.35}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}circle{fill:#58a6ff}}"""
SIZE, TOP_J = 300, 90.0


def figure(result: RunResult) -> str:
    """Draw measured against modelled joules per window in two panels: as polled, and on the counter's own clock."""
    work = engine_steps_of(result.records, result.engine)
    (polled,) = outermost_series(result)
    panels = [("as polled", polled), ("on its own clock, in phase", align_phase(align_to_counter_clock(polled), work))]
    body = "".join(_panel(40 + i * (SIZE + 70), title, series, work) for i, (title, series) in enumerate(panels))
    size = f'width="{2 * SIZE + 150}" height="{SIZE + 90}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{body}</svg>\n'


def _panel(x: float, title: str, series: EnergySeries, work: EngineSteps) -> str:
    coefficients = fit_coefficients(series, work)
    step, window, share = overlap(series.t_ns, work.start_ns, work.end_ns)
    step_j = np.bincount(work.step, cost_shares(work, coefficients), minlength=work.count)
    modelled = np.bincount(window, share * step_j[step], minlength=len(series) - 1)
    measured = np.diff(series.mj) / 1000
    busy = np.flatnonzero(modelled > 0)[::2]
    across = x + np.minimum(modelled / TOP_J, 1) * SIZE
    up = 40 + SIZE - np.minimum(measured / TOP_J, 1) * SIZE
    dots = "".join(f'<circle cx="{across[i]:.1f}" cy="{up[i]:.1f}" r="2"/>' for i in busy)
    frame = f'<path class="axis" fill="none" d="M{x} 40V{40 + SIZE}H{x + SIZE}"/>'
    same = f'<path class="same" d="M{x} {40 + SIZE}L{x + SIZE} 40"/>'
    ticks = "".join(
        f'<text x="{x + j / TOP_J * SIZE:.0f}" y="{56 + SIZE}" text-anchor="middle">{j}</text>'
        f'<text x="{x - 6}" y="{44 + SIZE - j / TOP_J * SIZE:.0f}" text-anchor="end">{j}</text>'
        for j in (0, 30, 60, 90)
    )
    head = f'<text x="{x}" y="24">{title}: R² {coefficients.r_squared:.2f}</text>'
    axes = "J in a window, by the law (across) and measured (up)"
    foot = f'<text x="{x + SIZE / 2}" y="{76 + SIZE}" text-anchor="middle">{axes}</text>'
    return frame + same + dots + ticks + head + foot


def prices(folders: list[Path]) -> str:
    """Return three ratios of prices for each run, and their medians for each GPU.

    They are the prompt tokens that cost as much as a step, the tokens of context that cost as much as a prompt token,
    and the prompt tokens that cost as much as a decoded token.
    """
    ratios: dict[str, list[tuple[float, float, float]]] = {}
    lines = ["run: step / prompt token, prompt token / token of context, decoded token / prompt token"]
    for folder in folders:
        result = load(folder)
        steps = engine_steps_of(result.records, result.engine)
        [series] = outermost_series(result)
        fit = fit_coefficients(align_phase(align_to_counter_clock(series), steps), steps)
        token_j = fit.prefill_token_j
        context = token_j / fit.decode_context_j if fit.decode_context_j else np.inf
        is_published = folder.is_relative_to(RESULTS)
        name = folder.relative_to(RESULTS) if is_published else folder
        gpu = name.parts[0] if is_published else ""
        ratios.setdefault(gpu, []).append((fit.step_j / token_j, context, fit.decode_token_j / token_j))
        lines.append(f"{name}: {' '.join(f'{ratio:.3g}' for ratio in ratios[gpu][-1])}")
    for gpu, rows in ratios.items():
        lines.append(f"median {gpu}: {' '.join(f'{ratio:.3g}' for ratio in np.median(rows, axis=0))}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "analyse", "figure", "prices"])
    parser.add_argument("folder", type=Path, nargs="*")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--load", type=float, default=1.0, help="multiple of the rates")
    parser.add_argument("--only", choices=list(PARTS))
    options = parser.parse_args()
    if options.what == "prices":
        print(prices(options.folder or DENSE))
        return
    if len(options.folder) != 1:
        parser.error(f"{options.what} takes one folder")
    [folder] = options.folder
    if options.what == "run":
        run(folder, options.base_url, options.seconds, options.load, options.only)
    elif options.what == "figure":
        print(figure(load(folder / "mix")), end="")
    else:
        print(json.dumps(report(folder), indent=1))


if __name__ == "__main__":
    main()
