"""Tables and the figure of docs/results/tensor-parallel.md."""

import csv
from statistics import fmean

from benchmarks.paper.ingest import FOLDER
from benchmarks.paper.offline_results import SHAPE, batches_of, cells, per_token, saved
from benchmarks.paper.plots import Line, alone, batch_axis, by_batch, picture, scaled, share_axis
from benchmarks.paper.published import TP_AT_1, TP_KWH
from benchmarks.paper.words import percent, percents, plus_minus, sig, table
from loadgen.stats.intervals import Interval

TP2 = "vllm-graphs-tp2"


def tp_saved(batch: int) -> tuple[Interval | None, Interval | None]:
    """Return (energy per token, time of a batch) that two GPUs save."""
    single, double = (cells()[name, SHAPE, batch] for name in ("vllm-graphs", TP2))
    fields = ("joules_per_output_token", "e2e_p50_s")
    energy, time = (saved(single.values(field), double.values(field)) for field in fields)
    return energy, time


def tensor_parallel() -> str:
    body = []
    for batch in batches_of(SHAPE, [TP2]):
        energy, time = tp_saved(batch)
        paper = TP_KWH[2][batch] / TP_KWH[1][batch] - 1 if batch in TP_KWH[2] else None
        latency = TP_AT_1[2][1] if batch == 1 else None
        line = [str(batch), *(plus_minus(per_token(name, SHAPE, batch)) for name in ("vllm-graphs", TP2))]
        body.append([*line, percents(energy, -1), percent(paper, True), percents(time, -1), percent(latency, True)])
    return table(["batch", "1 GPU", "2 GPUs", "energy [95 %]", "paper", "time of a batch [95 %]", "paper"], body)


def four_gpus() -> str:
    energy, time = tp_saved(1)
    measured = {
        2: (percents(energy, -1), percents(time, -1)),
        4: ("not run: no host with four GPUs at hand", "not run"),
    }
    body = [
        [str(n), measured[n][0], percent(TP_AT_1[n][0], True), measured[n][1], percent(TP_AT_1[n][1], True)]
        for n in (2, 4)
    ]
    return table(["GPUs, batch 1, against 1 GPU", "energy", "paper", "latency", "paper"], body)


def simulated_rows() -> list[dict[str, str]]:
    with (FOLDER / "tensor-parallel-simulated/results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def four_simulated() -> str:
    rows = simulated_rows()
    assert all(row["simulated"] == "True" for row in rows), "the table says simulated"

    def values(server: str, batch: int, field: str) -> list[float]:
        return [float(r[field]) for r in rows if r["server"] == server and int(r["batch"]) == batch]

    body = []
    for batch in sorted({int(row["batch"]) for row in rows}):
        line = [str(batch)]
        for field in ("joules_per_output_token", "e2e_p50_s"):
            base, two, four = (values(f"tp{n}", batch, field) for n in (1, 2, 4))
            line += [sig(fmean(base)), *(percent(fmean(variant) / fmean(base) - 1, True) for variant in (two, four))]
        body.append(line)
    return table(["batch, SIMULATED", "J/token, 1 GPU", "2", "4", "latency s, 1 GPU", "2", "4"], body)


def tensor_parallel_figure() -> str:
    batches = batches_of(SHAPE, [TP2])
    paper = [(float(b), alone(100 * (joules / TP_KWH[1][b] - 1))) for b, joules in TP_KWH[2].items()]
    lines = [
        Line("energy per token, here", by_batch(batches, lambda b: scaled(tp_saved(b)[0], -100)), 0),
        Line("energy, paper's Figure 6, digitised", paper, 0, 2),
        Line("time of a batch, here", by_batch(batches, lambda b: scaled(tp_saved(b)[1], -100)), 2),
        Line("latency, paper's text", [(1.0, alone(100 * TP_AT_1[2][1]))], 2, joined=False),
    ]
    return picture("Two GPUs against one; bars: 95 %", "batch", lines, batch_axis(), share_axis(-60, 40))
