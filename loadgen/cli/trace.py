"""loadgen trace: public formats in, descriptions and bins out, new traces drawn from bins."""

import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # numpy and rich are imported when a command runs, not when help is printed
    from rich.console import RenderableType

    from loadgen.bins import Pairs, TokenBins
    from loadgen.trace import Format

OUT = click.option("--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace --out if it exists with other content.")
FORMAT = click.option(
    "--format",
    "format_",
    type=click.Choice(["azure", "burstgpt", "mooncake", "jsonl"]),
    help="What the file is. [default: what its first line says]",
)
FILE = click.Path(path_type=Path)


@click.group()
def trace() -> None:
    """Import, show, fit and sample traces.

    A trace is one JSON object a line: "timestamp" (ms), "input_length", "output_length" and optionally "workload",
    "session_id" and "hash_ids"; .gz and .zst are read and written too.
    """


@trace.command("import")
@click.argument("file", type=FILE)
@OUT
@FORMAT
@click.option("--workload", help="Name every request so.")
@OVERWRITE
def import_(file: Path, out: Path, format_: "Format | None", workload: str | None, overwrite: bool) -> None:
    """Make a trace of a public data set.

    Read are Azure CSV (2023 and 2024), BurstGPT CSV and Mooncake JSONL. Rows of 0 tokens are dropped and counted.
    """
    from loadgen.trace import check_workload, iter_import, write_trace

    check_workload(workload)
    dropped: Counter[str] = Counter()
    requests = iter_import(file, dropped, format=format_, workload=workload)
    written = write_trace(out, requests, overwrite=overwrite)
    reasons = "".join(f" ({count} with {reason})" for reason, count in dropped.items())
    click.echo(f"read {written + dropped.total()} rows, dropped {dropped.total()}{reasons}, wrote {written} to {out}")


@trace.command()
@click.argument("file", metavar="TRACE", type=FILE)
@OUT
@click.option(
    "--edges",
    type=click.Choice(["paper", "log2", "quantile"]),
    default="quantile",
    show_default=True,
    help="The paper's, powers of 2, or 32 quantiles a side (close enough to draw look-alikes from).",
)
@click.option("--name", help="Name of the bins. [default: the stem of --out]")
@click.option("--source", help="Where the trace comes from.")
@click.option("--licence", help="The licence of the trace.")
@click.option("--cite", help="What to cite.")
@FORMAT
@OVERWRITE
def fit(
    file: Path,
    out: Path,
    edges: Any,
    name: str | None,
    source: str | None,
    licence: str | None,
    cite: str | None,
    format_: "Format | None",
    overwrite: bool,
) -> None:
    """Make joint (input, output) token bins.

    TRACE is in any format that import reads. It is read twice.
    """
    from loadgen.bins import fit, in_chunks, to_json
    from loadgen.trace import check_rereadable, file_sha256, iter_import, replacing

    check_rereadable(file)
    bins = fit(
        name or out.stem,
        lambda: in_chunks(iter_import(file, Counter(), format=format_)),  # read twice
        edges,
        {key: value for key, value in (("source", source), ("licence", licence), ("cite", cite)) if value}
        | {
            "file": file.name,
            "file_sha256": file_sha256(file),
            "command": f"loadgen trace fit {file.name} --edges {edges} --out {out.name}",
        },
    )
    with replacing(out, overwrite=overwrite) as draft:
        draft.write(to_json(bins))
    click.echo(f"{bins.count} requests in {len(bins.bins)} bins, wrote {out}")


@trace.command()
@click.argument("bins", metavar="BINS")
@click.option("--num-requests", "--num-prompts", required=True, type=click.IntRange(min=1))
@click.option("--rps", "--request-rate", required=True, type=float, help="Mean requests per second.")
@click.option("--arrival", type=click.Choice(["poisson", "gamma", "constant"]), default="poisson", show_default=True)
@click.option("--burstiness", type=float, default=1.0, show_default=True, help="Gamma's shape; smaller is burstier.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--workload", help="Name of the requests' workload. [default: the name of the bins]")
@OUT
@OVERWRITE
def sample(
    bins: str,
    num_requests: int,
    rps: float,
    arrival: Any,
    burstiness: float,
    seed: int,
    workload: str | None,
    out: Path,
    overwrite: bool,
) -> None:
    """Draw a trace from bins.

    BINS is a file, or a name in profiles/workloads. The same arguments make the same bytes.
    """
    from numpy.random import SeedSequence, default_rng

    from loadgen.arrivals import offsets
    from loadgen.bins import read_bins
    from loadgen.bins import sample as draw
    from loadgen.paths import profile_path
    from loadgen.trace import TraceRequest, check_workload, write_trace

    check_workload(workload)
    fitted = read_bins(profile_path("workloads", bins, "json"))
    when, how_long = (default_rng(s) for s in SeedSequence(seed).spawn(2))
    arrivals = offsets(arrival, rps, when, burstiness=burstiness, count=num_requests)
    inputs, outputs = draw(fitted, num_requests, how_long)
    requests = (
        TraceRequest(arrival_s=t, input_tokens=i, output_tokens=o, workload=workload or fitted.name)
        for t, i, o in zip(arrivals.round(6).tolist(), inputs.tolist(), outputs.tolist(), strict=True)
    )
    click.echo(f"wrote {write_trace(out, requests, overwrite=overwrite)} requests to {out}")


# -- show -------------------------------------------------------------------------------------------------------------


@trace.command()
@click.argument("file", metavar="TRACE|BINS")
@click.option("--compare", metavar="TRACE|BINS", help="Set another one beside it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@FORMAT
def show(file: str, compare: str | None, as_json: bool, format_: "Format | None") -> None:
    """Describe a trace or bins.

    A trace is in any format that import reads; bins are a .json file, or a name in profiles/workloads.
    """
    import json

    about = [_describe(name, format_) for name in (file, compare) if name is not None]
    between = _between(about[0][1], about[1][1]) if compare else {}
    if as_json:
        described = [facts for facts, _ in about]
        click.echo(json.dumps({"traces": described} | between if compare else described[0], indent=1))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_table([facts for facts, _ in about]))
    for label, value in between.items():
        console.print(f"{label.replace('_', ' ')}: {value:.4f}" if value is not None else f"{label}: unknown")
    for facts, pairs in about:
        console.print(_heat_map(facts["name"], pairs, console.encoding), soft_wrap=True)


def length_chunks(name: str) -> "Iterator[Pairs]":
    """The lengths of a trace in any format, or DRAWS stratified ones of bins (a file, or in profiles/workloads)."""
    from loadgen.bins import in_chunks
    from loadgen.trace import iter_import

    path = _path(name)
    if path.suffix == ".json":
        yield _draw(path)[1]
    else:
        yield from in_chunks(iter_import(path, Counter()))


def _path(name: str) -> Path:
    """A file, or bins in profiles/workloads."""
    from loadgen.paths import profile_path

    path = Path(name)
    if path.name == name and not path.suffix and not path.exists():
        return profile_path("workloads", name, "json")
    return path


def _draw(path: Path) -> "tuple[TokenBins, Pairs]":
    from numpy.random import default_rng

    from loadgen.bins import read_bins, sample

    bins = read_bins(path)
    return bins, sample(bins, DRAWS, default_rng(0))


def _describe(name: str, format_: "Format | None") -> "tuple[dict[str, Any], Pairs]":
    """Facts about a trace or bins, None where it has none, and its lengths."""
    path = _path(name)
    if path.suffix == ".json":
        return _describe_bins(path)
    return _describe_trace(path, format_)


DRAWS = 100_000
"""How many draws stand for bins where their percentiles are asked."""


def _describe_bins(path: Path) -> "tuple[dict[str, Any], Pairs]":
    bins, pairs = _draw(path)
    facts = {"name": bins.name, "kind": f"{len(bins.bins)} bins, percentiles of {DRAWS} draws", "requests": bins.count}
    means = {"input_mean": bins.mean_input, "output_mean": bins.mean_output}
    return facts | _lengths(pairs) | means | bins.provenance, pairs


def _describe_trace(path: Path, format_: "Format | None") -> "tuple[dict[str, Any], Pairs]":
    from array import array

    import numpy as np

    from loadgen.trace import iter_import

    arrivals, inputs, outputs = array("d"), array("q"), array("q")
    dropped: Counter[str] = Counter()
    workloads: Counter[str] = Counter()
    sessions: set[str] = set()
    blocks: set[int] = set()
    blocks_asked = 0
    for request in iter_import(path, dropped, format=format_):
        arrivals.append(request.arrival_s)
        inputs.append(request.input_tokens)
        outputs.append(request.output_tokens)
        workloads[request.workload] += 1
        if request.session_id is not None:
            sessions.add(request.session_id)
        blocks_asked += len(request.prefix_ids)
        blocks.update(request.prefix_ids)
    pairs = np.array(inputs), np.array(outputs)
    facts = {
        "name": path.name,
        "kind": "trace",
        "requests": len(arrivals),
        "dropped": dropped.total(),
        "workloads": dict(workloads),
        "sessions": len(sessions) or None,
        "prefix_block_reuse": 1 - len(blocks) / blocks_asked if blocks_asked else None,
    }
    return facts | _times(np.array(arrivals)) | _lengths(pairs), pairs


RATE_PARTS = 48
"""Equal parts of a trace's duration whose rates are shown."""


def _times(arrivals_s: Any) -> dict[str, Any]:
    import numpy as np

    from loadgen.arrivals import index_of_dispersion

    duration_s = float(arrivals_s[-1] - arrivals_s[0])
    counts = np.histogram(arrivals_s, RATE_PARTS)[0] if duration_s > 0 else None
    return {
        "duration_s": duration_s,
        "rate_over_time_rps": None if counts is None else (counts * (RATE_PARTS / duration_s)).tolist(),
        "mean_rps": (len(arrivals_s) - 1) / duration_s if duration_s > 0 else None,
        "index_of_dispersion_1s": index_of_dispersion(arrivals_s, 1.0),
        "index_of_dispersion_10s": index_of_dispersion(arrivals_s, 10.0),
    }


def _lengths(pairs: "Pairs") -> dict[str, Any]:
    import numpy as np

    from loadgen.bins import spearman

    facts: dict[str, Any] = {}
    for side, lengths in zip(("input", "output"), pairs, strict=True):
        p50, p90, p99 = np.percentile(lengths, (50, 90, 99)).tolist()
        facts[f"{side}_mean"] = float(lengths.mean())
        facts |= {f"{side}_p50": p50, f"{side}_p90": p90, f"{side}_p99": p99, f"{side}_max": int(lengths.max())}
    return facts | {"spearman": spearman(*pairs)}


def _between(a: "Pairs", b: "Pairs") -> dict[str, float | None]:
    from loadgen.bins import ks_distance, spearman

    rho_a, rho_b = spearman(*a), spearman(*b)
    return {
        "ks_input": ks_distance(a[0], b[0]),
        "ks_output": ks_distance(a[1], b[1]),
        "spearman_difference": None if rho_a is None or rho_b is None else abs(rho_a - rho_b),
    }


def _table(about: list[dict[str, Any]]) -> "RenderableType":
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for key in dict.fromkeys(key for facts in about for key in facts):
        table.add_row(key.replace("_", " "), *(escape(_cell(facts.get(key))) for facts in about))
    return table


def _spark(values: list[float]) -> str:
    """One character each, from nothing to the highest."""
    highest = max(values)
    steps = " ▁▂▃▄▅▆▇█" if (sys.stdout.encoding or "").lower().startswith("utf") else " .:-=+*#@"
    return "".join(steps[math.ceil(8 * value / highest)] for value in values) + f" up to {highest:,.3g}"


def _cell(value: Any) -> str:
    match value:
        case list():
            return _spark(value)
        case None:
            return "-"
        case float():
            return f"{value:,.3f}".rstrip("0").rstrip(".")
        case int():
            return f"{value:,}"
        case dict():
            return ", ".join(f"{name} {count:,}" for name, count in list(value.items())[:20])
        case _:
            return str(value)


SHARES = (0.0, 0.003, 0.01, 0.03)
"""Above which share of all requests a cell of the heat map takes its next shade."""


def _heat_map(name: str, pairs: "Pairs", encoding: str) -> "RenderableType":
    """Powers of 2 of the input to the right, of the output upwards; the shade is the share of requests."""
    import numpy as np
    from rich.text import Text

    shades = " ░▒▓█" if encoding.lower().startswith("utf") else " .:+#"
    x, y = (np.ceil(np.log2(lengths)).astype(int) for lengths in pairs)
    cells = np.zeros((y.max() + 1, x.max() + 1))
    np.add.at(cells, (y, x), 1 / len(x))
    level = np.searchsorted(SHARES, cells)
    first = int(x.min())
    lines = [f"\n{name}: output tokens up, input tokens right, both up to the power of 2 shown"]
    for row in range(int(y.max()), int(y.min()) - 1, -1):
        lines.append(f"{_power(row):>5} |" + "".join(shades[k] * 5 for k in level[row, first:]))
    lines.append(f"{'':>5} +" + "".join(f"{_power(column):>5}" for column in range(first, int(x.max()) + 1)))
    lines.append("       share: " + ", ".join(f"{s} over {t:.1%}" for s, t in zip(shades[1:], SHARES, strict=True)))
    return Text("\n".join(lines))


def _power(k: int) -> str:
    return f"{2**k}" if k < 10 else f"{2 ** (k - 10)}k" if k < 20 else f"{2 ** (k - 20)}M"
