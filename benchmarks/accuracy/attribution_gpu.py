"""Attribution on a real GPU: experiments whose truth is known without a model.

    python -m benchmarks.accuracy.attribution_gpu run DIR [--base-url URL] [--seconds 240] [--only NAME]
    python -m benchmarks.accuracy.attribution_gpu analyse DIR
    python -m benchmarks.accuracy.attribution_gpu figure DIR > docs/attribution-windows.svg

`run` replays against a live server, one run folder each:

    mix        conversations at 4/s and code at 2/s, together
    chat       the mix's conversations alone, at their own instants
    code       the mix's code requests alone
    identical  bursts of 8 equal requests: each must get 1/8 of its burst

`analyse` needs no GPU: it reads the folders. Those of docs/results are of an H200.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.cost_model import align_phase, cost_shares, fit_coefficients, member_features, overlap
from loadgen.attribution.engine_steps import EngineSteps
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
PARTS = {"identical": 1.0, "mix": 1.0, "chat": 0.4, "code": 0.4}
"""Share of the mix's seconds that each run takes."""


def make_traces(folder: Path, seconds: float) -> None:
    """The four traces, in `folder`."""
    mix: list[TraceRequest] = []
    for seed, (kind, rps) in enumerate(RATES.items()):
        plan = build_schedule(
            read_trace(TRACES / f"{kind}.jsonl"), seed=seed, rps=rps, arrival="poisson", duration_s=seconds
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


def run(folder: Path, base_url: str, seconds: float, only: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    make_traces(folder, seconds)
    for name in [only] if only else PARTS:
        command = ["replay", folder / f"{name}.jsonl", "--base-url", base_url, "--out", folder / name, "--ui", "none",
                   "--extra-body", '{"temperature": 0}', "--idle", 5]  # fmt: skip
        subprocess.run([sys.executable, "-m", "loadgen", *map(str, command)], check=False)


# -- analysis --------------------------------------------------------------------------------------------------------


def load(path: Path) -> RunResult:
    return load_run(path)


def identical(result: RunResult) -> dict[str, float]:
    """How far each request of a burst is from its burst's mean, and whether that is within two standard errors."""
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
    """Measured joules of the run's first `seconds`, and what attribution gave the requests that were due in them."""
    assert result.attribution is not None
    start_ns, _ = span(result)
    end_ns = start_ns + round(seconds * NS_PER_S)
    measured = sum(series.energy_mj(start_ns, end_ns) or 0.0 for series in outermost_series(result)) / 1000
    given: dict[str, float] = {}
    for share, record in zip(result.attribution.requests, result.records, strict=True):
        if record.scheduled_ns < end_ns:
            given[record.workload] = given.get(record.workload, 0.0) + share.joules
    return measured, given


def paired(mix: RunResult, alone: RunResult, extra: str, seconds: float) -> dict[str, float]:
    """The same background with and without a class: what it really added, and what it was given and modelled to add."""
    with_extra, given = until(mix, seconds)
    without, background = until(alone, seconds)
    (kept,) = [kind for kind in given if kind != extra]
    return {
        "seconds": seconds,
        "measured_difference_j": with_extra - without,
        "given_to_extra_j": given[extra],
        "background_in_mix_j": given[kept],
        "background_alone_j": background[kept],
        "modelled_difference_j": modelled(mix, seconds) - modelled(alone, seconds, mix),
    }


def modelled(result: RunResult, seconds: float, coefficients_of: RunResult | None = None) -> float:
    """Joules of the first `seconds` under the fitted law: steps, tokens, and idle power in between."""
    source = (coefficients_of or result).attribution
    assert source is not None
    (found,) = source.coefficients
    work = engine_steps_of(result.records, result.engine)
    start_ns, _ = span(result)
    end_ns = start_ns + round(seconds * NS_PER_S)
    inside = work.end_ns[work.step] <= end_ns
    steps = work.end_ns <= end_ns
    busy_s = float((work.end_ns - work.start_ns)[steps].sum()) / NS_PER_S
    return float((member_features(work)[inside] @ found.values).sum()) + (found.idle_w or 0.0) * (seconds - busy_s)


def report(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    results = {name: load(folder / name) for name in PARTS if (folder / name / "run.json").exists()}
    for name, result in results.items():
        assert result.summary is not None
        assert result.attribution is not None
        energy, counts = result.summary.energy, result.summary.requests
        accounts = [result.attribution.idle_mj, result.attribution.attributed_mj, result.attribution.unattributed_mj]
        found[name] = {
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
        found["experiment identical"] = identical(results["identical"])
    if {"mix", "chat", "code"} <= results.keys():
        for alone, extra in (("chat", "code"), ("code", "chat")):
            last = max(record.scheduled_ns for record in results[alone].records) - span(results[alone])[0]
            seconds = float(int(last / NS_PER_S))
            found[f"experiment {alone} with and without {extra}"] = paired(
                results["mix"], results[alone], extra, seconds
            )
    return found


# -- figure ----------------------------------------------------------------------------------------------------------

STYLE = """text{font:12px system-ui,sans-serif;fill:#1f2328}.axis{stroke:#8c959f}
.same{stroke:#cf222e;stroke-dasharray:4 3}circle{fill:#0969da;opacity:.35}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}circle{fill:#58a6ff}}"""
SIZE, TOP_J = 300, 90.0


def figure(result: RunResult) -> str:
    """Two panels: each window's measured joules against the fitted law's, as polled and on the counter's own clock."""
    work = engine_steps_of(result.records, result.engine)
    (polled,) = outermost_series(result)
    panels = [("as polled", polled), ("on its own clock, in phase", align_phase(align_to_counter_clock(polled), work))]
    body = "".join(_panel(40 + i * (SIZE + 70), title, series, work) for i, (title, series) in enumerate(panels))
    size = f'width="{2 * SIZE + 150}" height="{SIZE + 90}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{body}</svg>\n'


def _panel(x: float, title: str, series: EnergySeries, work: EngineSteps) -> str:
    found = fit_coefficients(series, work)
    step, window, share = overlap(series.t_ns, work.start_ns, work.end_ns)
    owed = np.bincount(work.step, cost_shares(work, found), minlength=work.count)
    modelled = np.bincount(window, share * owed[step], minlength=len(series) - 1)
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
    head = f'<text x="{x}" y="24">{title}: R² {found.r_squared:.2f}</text>'
    said = "J in a window, by the law (across) and measured (up)"
    foot = f'<text x="{x + SIZE / 2}" y="{76 + SIZE}" text-anchor="middle">{said}</text>'
    return frame + same + dots + ticks + head + foot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "analyse", "figure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--only", choices=list(PARTS))
    options = parser.parse_args()
    if options.what == "run":
        run(options.folder, options.base_url, options.seconds, options.only)
    elif options.what == "figure":
        print(figure(load(options.folder / "mix")), end="")
    else:
        print(json.dumps(report(options.folder), indent=1))


if __name__ == "__main__":
    main()
