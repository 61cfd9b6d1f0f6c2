"""Tables and figures of docs/results/frameworks.md: frameworks by batch, other shapes, FP8."""

from collections.abc import Callable
from statistics import fmean

from benchmarks.paper.offline_results import NAMES, SHAPE, batches_of, cells, per_token, saved
from benchmarks.paper.plots import Line, alone, batch_axis, by_batch, picture, scaled, share_axis
from benchmarks.paper.published import ML_ENERGY, paper_saved
from benchmarks.paper.words import percent, percents, plus_minus, sig, table
from loadgen.report import svg
from loadgen.report.format import joules as in_joules
from loadgen.stats.intervals import Interval, interval

FRAMEWORKS = tuple(NAMES)[:4]


def frameworks() -> str:
    def line(batch: int) -> list[str]:
        return [str(batch), *(plus_minus(per_token(name, SHAPE, batch)) for name in FRAMEWORKS)]

    return table(["batch", *(NAMES[name] for name in FRAMEWORKS)], map(line, batches_of(SHAPE, FRAMEWORKS)))


def power() -> str:
    def power_and_rate(server: str, batch: int) -> str:
        g = cells().get((server, SHAPE, batch))
        return f"{g.mean('mean_watts'):.0f} W, {sig(g.mean('output_tokens_per_s'))}/s" if g else "-"

    body = ([str(b), *(power_and_rate(name, b) for name in FRAMEWORKS)] for b in batches_of(SHAPE, FRAMEWORKS))
    return table(["batch", *(NAMES[name] for name in FRAMEWORKS)], body)


PAIRS = (("hf-eager", "vllm-graphs"), ("hf-eager", "hf-compile"), ("vllm-eager", "vllm-graphs"))


def reductions() -> str:
    head = ["batch"]
    for base, variant in PAIRS:
        head += [f"{NAMES[variant]}, against {NAMES[base]}", "paper, A100"]
    body = []
    for batch in batches_of(SHAPE, FRAMEWORKS):
        line = [str(batch)]
        for base, variant in PAIRS:
            line.append(percents(saved(per_token(base, SHAPE, batch), per_token(variant, SHAPE, batch))))
            line.append(percent(paper_saved(base, variant, batch)))
        if any(cell != "-" for cell in line[1:]):
            body.append(line)
    return table(head, body)


def headline() -> str:
    """Return the table of savings from the unoptimized baseline to the best configuration."""
    batches = batches_of(SHAPE, ["hf-eager"])
    best = min((k for k in cells() if k[1] == SHAPE and k[0] in FRAMEWORKS), key=lambda k: fmean(per_token(*k)))
    lowest = min(batches, key=lambda b: fmean(per_token("hf-eager", SHAPE, b)))
    best_name = f"{NAMES[best[0]]}, batch {best[2]}"
    bases = [(1, "one request at a time"), (8, "batch 8"), (lowest, f"its own best batch, {lowest}")]
    body = [
        [f"transformers eager, {label}", best_name, percents(saved(per_token("hf-eager", SHAPE, b), per_token(*best)))]
        for b, label in bases
    ]
    return table(["from", "to", "less energy [95 %]"], body)


def shapes() -> str:
    body = []
    for workload in ("128x32", "2048x128", "128x512"):
        for batch in batches_of(workload, ["hf-eager", "vllm-graphs"]):
            eager, graphs = (per_token(name, workload, batch) for name in ("hf-eager", "vllm-graphs"))
            body.append(
                [
                    workload.replace("x", " in, ") + " out",
                    str(batch),
                    plus_minus(eager),
                    plus_minus(graphs),
                    percents(saved(eager, graphs)),
                    *(prefill_share(name, workload, batch) for name in ("hf-eager", "vllm-graphs")),
                ]
            )
    head = ["tokens", "batch", NAMES["hf-eager"], NAMES["vllm-graphs"], "vLLM saves [95 %]"]
    return table([*head, "prefill's share, transformers", "vLLM"], body)


def prefill_share(server: str, workload: str, batch: int) -> str:
    g = cells().get((server, workload, batch))
    if g is None:
        return "-"
    return percent((g.mean("prefill_joules") or 0) / (g.mean("measured_joules") or 1))


def fp8() -> str:
    variant = "vllm-graphs-quantization=fp8"
    body = []
    for batch in batches_of(SHAPE, [variant]):
        base, x = (per_token(name, SHAPE, batch) for name in ("vllm-graphs", variant))
        speed = [cells()[name, SHAPE, batch].mean("output_tokens_per_s") or 0 for name in ("vllm-graphs", variant)]
        watts = [cells()[name, SHAPE, batch].mean("mean_watts") or 0 for name in ("vllm-graphs", variant)]
        body.append(
            [
                str(batch),
                plus_minus(base),
                plus_minus(x),
                percents(saved(base, x)),
                f"{watts[0]:.0f}, {watts[1]:.0f}",
                percent(speed[1] / speed[0] - 1, signed=True),
            ]
        )
    return table(["batch", "bf16", "FP8", "FP8 saves [95 %]", "W", "tokens/s"], body)


def ml_energy() -> str:
    body = []
    for batch, (joules, watts, speed) in ML_ENERGY.items():
        long = per_token("vllm-graphs", "128x512", batch)
        g = cells()["vllm-graphs", SHAPE, batch]
        body.append(
            [
                str(batch),
                sig(joules),
                plus_minus(per_token("vllm-graphs", SHAPE, batch)),
                plus_minus(long),
                f"{watts}, {g.mean('mean_watts'):.0f}",
                f"{speed:,}, {g.mean('output_tokens_per_s'):,.0f}",
            ]
        )
    head = ["batch", "ML.ENERGY, H100, chat", "here, H200, 512 in, 128 out", "here, 128 in, 512 out"]
    return table([*head, "W: H100, H200 (512x128)", "tokens/s: H100, H200"], body)


def frameworks_figure() -> str:
    def energy_of(name: str) -> Callable[[int], Interval | None]:
        return lambda batch: interval(values) if (values := per_token(name, SHAPE, batch)) else None

    shown = (*FRAMEWORKS, "vllm-graphs-quantization=fp8")
    lines = [
        Line(NAMES[name], by_batch(batches_of(SHAPE, [name]), energy_of(name)), index, index)
        for index, name in enumerate(shown)
    ]
    y = svg.log_axis(0.05, 10, in_joules)
    return picture("J per output token, 512 in, 128 out; bars: 95 % of the repeats", "batch", lines, batch_axis(), y)


def reductions_figure() -> str:
    def here(base: str, variant: str) -> Callable[[int], Interval | None]:
        return lambda batch: scaled(saved(per_token(base, SHAPE, batch), per_token(variant, SHAPE, batch)), 100)

    def paper(base: str, variant: str) -> Callable[[int], Interval | None]:
        return lambda batch: None if (share := paper_saved(base, variant, batch)) is None else alone(100 * share)

    batches = batches_of(SHAPE, FRAMEWORKS)
    short = {name: NAMES[name].replace(",", "").replace("CUDA ", "") for name in FRAMEWORKS}
    lines = []
    for index, (base, variant) in enumerate(PAIRS):
        colour = (0, 3, 2)[index]
        lines.append(Line(f"{short[variant]} against {short[base]}", by_batch(batches, here(base, variant)), colour))
        lines.append(Line("the same, paper's A100, digitised", by_batch(batches, paper(base, variant)), colour, 2))
    title = "Less energy per output token; bars: 95 %, cut at the frame"
    return picture(title, "batch", lines, batch_axis(), share_axis(-40, 80))
