"""loadgen trace: public formats in, descriptions and bins out, new traces drawn from bins."""

import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from loadgen.errors import LoadgenError

if TYPE_CHECKING:  # numpy and rich are imported when a command runs, not when help is printed
    from rich.console import RenderableType

    from loadgen.workload.token_bins import CountedPairs, Pairs, TokenBins
    from loadgen.workload.trace_formats import Format
    from loadgen.workload.trace_stats import Counts, Description

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
    from loadgen.workload.trace import check_workload
    from loadgen.workload.trace_columns import iter_columns, write_columns

    check_workload(workload)
    dropped: Counter[str] = Counter()
    written = write_columns(out, iter_columns(file, dropped, format=format_, workload=workload), overwrite=overwrite)
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

    TRACE is in any format that import reads. Its lengths are kept beside --out while the bins are made.
    """
    from loadgen.files import replacing
    from loadgen.workload.token_bins import bins_json, fit_bins
    from loadgen.workload.trace import check_rereadable, file_sha256

    check_rereadable(file)
    stated = {key: value for key, value in (("source", source), ("licence", licence), ("cite", cite)) if value}
    made = {
        "file": file.name,
        "file_sha256": file_sha256(file),
        "command": f"loadgen trace fit {file.name} --edges {edges} --out {out.name}",
    }
    with _spool(out.parent) as spool:
        bins = fit_bins(name or out.stem, _twice(file, format_, spool), edges, stated | made)
    with replacing(out, overwrite=overwrite) as draft:
        draft.write(bins_json(bins))
    click.echo(f"{bins.count} requests in {len(bins.bins)} bins, wrote {out}")


def _spool(folder: Path) -> IO[bytes]:
    """A file without a name, gone when it is closed."""
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as err:
        raise LoadgenError(f"cannot write {folder}: {err.strerror or err}") from err


def _twice(file: Path, format_: "Format | None", spool: IO[bytes]) -> "Callable[[], Iterator[Pairs]]":
    """The trace's lengths, parsed the first time; after that from `spool`, 8 bytes a request."""
    import numpy as np

    from loadgen.workload.trace_columns import iter_columns

    parsed = False

    def chunks() -> "Iterator[Pairs]":
        nonlocal parsed
        if parsed:
            spool.seek(0)
            while block := spool.read(2**20):
                inputs, outputs = np.frombuffer(block, np.int32).reshape(-1, 2).T.astype(np.int64)
                yield inputs, outputs
            return
        for columns in iter_columns(file, Counter(), format=format_):
            pairs = columns.input_tokens, columns.output_tokens
            spool.write(np.column_stack(pairs).astype(np.int32).tobytes())
            yield pairs
        parsed = True

    return chunks


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

    from loadgen.files import profile_path
    from loadgen.workload.arrivals import offsets
    from loadgen.workload.token_bins import read_bins
    from loadgen.workload.token_bins import sample_lengths as draw
    from loadgen.workload.trace import TraceRequest, check_workload, write_trace

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
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with figures, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@FORMAT
def show(file: str, compare: str | None, html: Path | None, as_json: bool, format_: "Format | None") -> None:
    """Describe a trace or bins.

    A trace is in any format that import reads; bins are a .json file, or a name in profiles/workloads.
    """
    import json

    about = [_describe(name, format_) for name in (file, compare) if name is not None]
    between = _between(about[0][1], about[1][1]) if compare else {}
    if html is not None:
        from loadgen.files import replacing
        from loadgen.report.trace_page import render_trace_page

        with replacing(html) as page:
            page.write(render_trace_page(about, between).encode())
    if as_json:
        described = [facts for facts, _ in about]
        click.echo(json.dumps({"traces": described} | between if compare else described[0], indent=1))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_table([facts for facts, _ in about]))
    for label, value in between.items():
        shown = "unknown" if value is None else f"{value:.4f}"
        console.print(f"{label.replace('_', ' ')}: {shown}")
    for facts, found in about:
        console.print(_heat_map(facts["name"], found.pairs, console.encoding), soft_wrap=True)


def length_chunks(name: str) -> "Iterator[Pairs]":
    """The lengths of a trace in any format, or DRAWS stratified ones of bins (a file, or in profiles/workloads)."""
    from loadgen.workload.trace_columns import iter_columns

    path = _path(name)
    if path.suffix == ".json":
        yield _draw(path)[1]
    else:
        yield from ((c.input_tokens, c.output_tokens) for c in iter_columns(path, Counter()))


def _path(name: str) -> Path:
    """A file, or bins in profiles/workloads."""
    from loadgen.files import profile_path

    path = Path(name)
    if path.name == name and not path.suffix and not path.exists():
        return profile_path("workloads", name, "json")
    return path


def _draw(path: Path) -> "tuple[TokenBins, Pairs]":
    from numpy.random import default_rng

    from loadgen.workload.token_bins import read_bins, sample_lengths

    bins = read_bins(path)
    return bins, sample_lengths(bins, DRAWS, default_rng(0))


DRAWS = 100_000
"""How many draws stand for bins where their percentiles are asked."""


def _describe(name: str, format_: "Format | None") -> "tuple[dict[str, Any], Description]":
    """Facts about a trace or bins, None where it has none, and what they were taken from."""
    path = _path(name)
    if path.suffix == ".json":
        return _describe_bins(path)
    return _describe_trace(path, format_)


def _describe_bins(path: Path) -> "tuple[dict[str, Any], Description]":
    from loadgen.workload.trace_stats import describe_lengths

    bins, pairs = _draw(path)
    found = describe_lengths(*pairs)
    facts = {"name": bins.name, "kind": f"{len(bins.bins)} bins, percentiles of {DRAWS} draws", "requests": bins.count}
    means = {"input_mean": bins.mean_input, "output_mean": bins.mean_output}
    return facts | _lengths(found) | means | bins.provenance, found


def _describe_trace(path: Path, format_: "Format | None") -> "tuple[dict[str, Any], Description]":
    from loadgen.workload.trace_columns import iter_columns
    from loadgen.workload.trace_stats import Tally

    dropped: Counter[str] = Counter()
    tally = Tally()
    for columns in iter_columns(path, dropped, format=format_):
        tally.add(columns)
    found = tally.describe()
    facts = {
        "name": path.name,
        "kind": "trace",
        "requests": found.requests,
        "dropped": dropped.total(),
        "workloads": found.workloads,
        **_sessions(found),
        "prefix_block_reuse": found.block_reuse,
        "prefix_token_reuse": found.token_reuse,
        "estimated": ", ".join(found.estimated) or None,
    }
    return facts | _times(found) | _lengths(found), found


def _sessions(found: "Description") -> dict[str, Any]:
    sessions = found.sessions
    if sessions is None:
        return {"sessions": None}
    gap_s = sessions.gap_s
    return {
        "sessions": sessions.count,
        "turns_per_session_mean": sessions.turns.mean,
        "turns_per_session_p50": sessions.turns.percentile(50),
        "turns_per_session_max": int(sessions.turns.values[-1]),
        "session_gap_p50_s": None if gap_s is None else gap_s.percentile(50),
    }


def _times(found: "Description") -> dict[str, Any]:
    from loadgen.workload.trace_stats import WINDOWS_S

    duration_s, gaps_s = found.duration_s, found.gaps_s
    return {
        "duration_s": duration_s,
        "rate_over_time_rps": None if found.rates_rps is None else list(found.rates_rps),
        "mean_rps": (found.requests - 1) / duration_s if duration_s else None,
        "gap_cv": gaps_s.std / gaps_s.mean if gaps_s and gaps_s.mean > 0 else None,
        **{f"index_of_dispersion_{w}s": d for w, d in zip(WINDOWS_S, found.dispersion, strict=True)},
    }


def _lengths(found: "Description") -> dict[str, Any]:
    from loadgen.workload.trace_stats import spearman

    facts: dict[str, Any] = {}
    for side, lengths in (("input", found.inputs), ("output", found.outputs)):
        facts[f"{side}_mean"] = lengths.mean
        facts |= {f"{side}_p{p}": lengths.percentile(p) for p in (50, 90, 99)}
        facts[f"{side}_max"] = int(lengths.values[-1])
        facts[f"{side}_shares_by_power_of_2"] = _by_power(lengths)
    return facts | {"spearman": spearman(found.pairs)}


def _by_power(lengths: "Counts") -> list[float]:
    """The share of requests with 2^(k-1) < length <= 2^k, for k from 0 to the longest's."""
    import numpy as np

    shares: list[float] = np.bincount(
        np.ceil(np.log2(lengths.values)).astype(int), lengths.counts / lengths.counts.sum()
    ).tolist()
    return shares


def _between(a: "Description", b: "Description") -> dict[str, float | None]:
    from loadgen.workload.trace_stats import ks_distance, spearman

    rho_a, rho_b = spearman(a.pairs), spearman(b.pairs)
    return {
        "ks_input": ks_distance(a.inputs, b.inputs),
        "ks_output": ks_distance(a.outputs, b.outputs),
        "ks_gap": ks_distance(a.gaps_s, b.gaps_s) if a.gaps_s and b.gaps_s else None,
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


def _heat_map(name: str, pairs: "CountedPairs", encoding: str) -> "RenderableType":
    """Powers of 2 of the input to the right, of the output upwards; the shade is the share of requests."""
    import numpy as np
    from rich.text import Text

    shades = " ░▒▓█" if encoding.lower().startswith("utf") else " .:+#"
    x, y = (np.ceil(np.log2(lengths)).astype(int) for lengths in (pairs.inputs, pairs.outputs))
    cells = np.zeros((y.max() + 1, x.max() + 1))
    np.add.at(cells, (y, x), pairs.counts / pairs.counts.sum())
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
