"""loadgen trace: import public formats, describe traces, fit token bins and sample traces from them."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadgen.cli.options import BINS_NAMES, SOURCE_NAMES, TRACE_NAMES, FiniteRange, key_values
from loadgen.errors import LoadgenError

if TYPE_CHECKING:  # numpy and rich are imported when a command runs, not when help is printed
    from loadgen.workload.trace_formats import Format

OUT = click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace --out if it exists with other content.")
LENGTHS = ("azure", "burstgpt", "mooncake", "bailian", "jsonl")
WORDS = (
    "conversations",
    "openai-batch",
    "aiperf-single-turn",
    "aiperf-multi-turn",
    "aiperf-raw-payload",
    "aiperf-inputs",
    "aiperf-mooncake",
    "litellm",
    "otel",
)
TABLES = ("csv", "parquet", "dataset")
SESSIONS = "weka"
"""AIPerf's name of the recorded sessions of coding agents."""
FORMAT = click.option(
    "--format",
    "format_",
    type=click.Choice(LENGTHS),
    help="Format of the file.  [default: detected from its first line]",
)


@click.group()
def trace() -> None:
    """Import, show, fit and sample traces.

    A trace is one JSON object a line: "timestamp" (ms), "input_length", "output_length" and optionally "workload",
    "session_id", "hash_ids" and "block_size", and what a request of an agent session comes after; .gz and .zst are read
    and written too.
    """


@trace.command("import")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@OUT
@click.option(
    "--format",
    "format_",
    type=click.Choice([*LENGTHS, SESSIONS, *WORDS, *TABLES]),
    help="Format of the file; dataset: SOURCE is the name of a data set on Hugging Face, or a folder with one.  "
    "[default: detected from its first row]",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    callback=key_values,
    metavar="FIELD=COLUMN",
    help="Column of a table that is a field of the trace: prompt=question, output_length=n; message=question makes a "
    "message of a chat, system=COLUMN the one before it. Repeatable.",
)
@click.option("--subset", metavar="NAME", help="Subset of a data set.")
@click.option("--split", metavar="NAME", default="train", show_default=True, help="Split of a data set.")
@click.option("--workload", help="Workload name of every request.")
@click.option("--model", help="Model that every request names, instead of the one that was recorded.")
@click.option(
    "--keep-models",
    is_flag=True,
    help="Requests of agent sessions name the models that were recorded, each as a workload of its own.",
)
@OVERWRITE
def import_(
    sources: tuple[str, ...],
    out: Path,
    format_: Any,
    columns: dict[str, str],
    subset: str | None,
    split: str,
    workload: str | None,
    model: str | None,
    keep_models: bool,
    overwrite: bool,
) -> None:
    """Convert a public data set, a log of your own traffic, or a table of prompts to a trace.

    Of lengths: Azure CSV (2023 and 2024), BurstGPT CSV, Mooncake JSONL and Bailian (Qwen) JSONL; rows of 0 tokens are
    dropped and counted. Recorded agent sessions (weka): several files or folders are one trace. Of words: conversations
    (ShareGPT, files for fine-tuning), OpenAI Batch files, AIPerf's inputs, logs of LiteLLM, OpenTelemetry's gen_ai
    spans, CSV, Parquet, and data sets of Hugging Face.
    """
    from loadgen.workload.agent_sessions import holds_sessions
    from loadgen.workload.trace import check_workload
    from loadgen.workload.trace_columns import iter_columns, write_columns
    from loadgen.workload.worded_import import imported_rows, write_rows

    check_workload(workload)
    source = sources[0]
    if format_ == SESSIONS or (format_ is None and all(holds_sessions(Path(name)) for name in sources)):
        if columns or (model and keep_models):
            raise LoadgenError("agent sessions have no --column, and either --model or --keep-models")
        _import_sessions(sources, out, workload, model, keep_models, overwrite)
        return
    if len(sources) > 1:
        raise LoadgenError(f"{sources[1]}: several files are imported at a time only if each has agent sessions")
    if keep_models:
        raise LoadgenError(f"--keep-models: {source} has no agent sessions; a log's requests name the recorded models")
    replaced = {name: value for name, value in (("workload", workload), ("model", model)) if value is not None}
    dropped: Counter[str] = Counter()
    rows = imported_rows(source, format_, columns, dropped, replaced=replaced, subset=subset, split=split)
    if rows is not None:
        written = write_rows(out, source, rows, dropped, overwrite=overwrite)
        rest = ", ".join(f"{count} {what}" for what, count in dropped.items())
        click.echo(f"wrote {written} requests to {out}" + (f"; left out: {rest}" if rest else ""))
        return
    if columns or model:
        raise LoadgenError(f"{source} is a trace of lengths: it has no --column and no --model")
    chunks = iter_columns(Path(source), dropped, format=format_, workload=workload)
    written = write_columns(out, chunks, overwrite=overwrite)
    reasons = "".join(f" ({count} with {reason})" for reason, count in dropped.items())
    click.echo(f"read {written + dropped.total()} rows, dropped {dropped.total()}{reasons}, wrote {written} to {out}")


def _import_sessions(
    sources: tuple[str, ...], out: Path, workload: str | None, model: str | None, keep_models: bool, overwrite: bool
) -> None:
    """Write recorded agent sessions as one trace."""
    from msgspec.structs import replace

    from loadgen.workload.agent_sessions import read_sessions
    from loadgen.workload.trace import write_trace

    dropped: Counter[str] = Counter()
    read = read_sessions([Path(name) for name in sources], dropped, workload=workload, keeps_models=keep_models)
    requests = [replace(request, model=model) for request in read.requests] if model else read.requests
    written = write_trace(out, requests, overwrite=overwrite)
    sessions = len({request.session_id for request in requests})
    reasons = ", ".join(f"{count} with {reason}" for reason, count in dropped.items())
    left_out = f"; left out: {reasons}" if reasons else ""
    click.echo(f"wrote {written} requests of {sessions} sessions to {out}{left_out}")


@trace.command()
@click.argument("trace_", metavar="TRACE", shell_complete=TRACE_NAMES)
@OUT
@click.option(
    "--edges",
    type=click.Choice(["paper", "log2", "quantile"]),
    default="quantile",
    show_default=True,
    help="The paper's edges, powers of 2, or 32 quantiles a side (close enough to sample similar traces from).",
)
@click.option("--name", help="Name of the bins.  [default: the stem of --out]")
@click.option("--source", help="Source of the trace, for the provenance.")
@click.option("--licence", help="Licence of the trace, for the provenance.")
@click.option("--cite", help="Publication to cite, for the provenance.")
@FORMAT
@OVERWRITE
def fit(
    trace_: str,
    out: Path,
    edges: Any,
    name: str | None,
    source: str | None,
    licence: str | None,
    cite: str | None,
    format_: "Format | None",
    overwrite: bool,
) -> None:
    """Fit joint (input, output) token bins to a trace.

    TRACE is a file in any format that import reads, or the name of a shipped trace. Its lengths are kept beside --out
    while the bins are fitted.
    """
    from loadgen.files import replacing
    from loadgen.workload.length_source import source_path, spooled_lengths
    from loadgen.workload.token_bins import bins_json, fit_bins
    from loadgen.workload.trace import check_rereadable, file_sha256

    file = source_path(trace_)
    check_rereadable(file)
    stated = {key: value for key, value in (("source", source), ("licence", licence), ("cite", cite)) if value}
    made = {
        "file": file.name,
        "file_sha256": file_sha256(file),
        "command": f"loadgen trace fit {file.name} --edges {edges} --out {out.name}",
    }
    try:
        spool = tempfile.TemporaryFile(dir=out.parent)  # noqa: SIM115 (closed below; here only its errors are caught)
    except OSError as err:
        raise LoadgenError(f"cannot write {out.parent}: {err.strerror or err}") from err
    with spool:
        bins = fit_bins(name or out.stem, spooled_lengths(file, format_, spool), edges, stated | made)
    with replacing(out, overwrite=overwrite) as draft:
        draft.write(bins_json(bins))
    click.echo(f"{bins.count} requests in {len(bins.bins)} bins, wrote {out}")


@trace.command()
@click.argument("bins", metavar="BINS", shell_complete=BINS_NAMES)
@click.option("--num-requests", "--num-prompts", required=True, type=click.IntRange(min=1), help="Requests to draw.")
@click.option(
    "--rps", "--request-rate", required=True, type=FiniteRange(min=0, min_open=True), help="Mean requests per second."
)
@click.option(
    "--arrival",
    type=click.Choice(["poisson", "gamma", "constant"]),
    default="poisson",
    show_default=True,
    help="Arrival process.",
)
@click.option(
    "--burstiness",
    type=FiniteRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Shape of --arrival gamma: 1 is Poisson, smaller is burstier.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random draws.")
@click.option("--workload", help="Workload name of every request.  [default: the name of the bins]")
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
    """Sample a trace from bins.

    BINS is a file, or a name in profiles/workloads. The same arguments give the same bytes.
    """
    from numpy.random import SeedSequence, default_rng

    from loadgen.files import profile_path
    from loadgen.workload.arrivals import offsets
    from loadgen.workload.token_bins import read_bins, sample_lengths
    from loadgen.workload.trace import TraceRequest, check_workload, write_trace

    check_workload(workload)
    fitted = read_bins(profile_path("workloads", bins, "json"))
    rng_arrivals, rng_lengths = (default_rng(s) for s in SeedSequence(seed).spawn(2))
    arrivals = offsets(arrival, rps, rng_arrivals, burstiness=burstiness, count=num_requests)
    inputs, outputs = sample_lengths(fitted, num_requests, rng_lengths)
    requests = (
        TraceRequest(arrival_s=t, input_tokens=i, output_tokens=o, workload=workload or fitted.name)
        for t, i, o in zip(arrivals.round(6).tolist(), inputs.tolist(), outputs.tolist(), strict=True)
    )
    click.echo(f"wrote {write_trace(out, requests, overwrite=overwrite)} requests to {out}")


@trace.command()
@click.argument("file", metavar="TRACE|BINS", shell_complete=SOURCE_NAMES)
@click.option(
    "--compare",
    metavar="TRACE|BINS",
    shell_complete=SOURCE_NAMES,
    help="Second trace or bins, to compare with side by side.",
)
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Also write a page with figures.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@FORMAT
def show(file: str, compare: str | None, html: Path | None, as_json: bool, format_: "Format | None") -> None:
    """Describe a trace or bins.

    A trace is in any format that import reads; bins are a .json file, or a name in profiles/workloads.
    """
    import json

    from loadgen.report.trace_facts import describe_source, differences

    traces = [describe_source(name, format_) for name in (file, compare) if name is not None]
    difference = differences(traces[0][1], traces[1][1]) if compare else {}
    if html is not None:
        from loadgen.files import replace_file
        from loadgen.report.trace_page import render_trace_page

        replace_file(html, render_trace_page(traces, difference).encode())
    if as_json:
        described = [facts for facts, _ in traces]
        click.echo(json.dumps({"traces": described} | difference if compare else described[0], indent=1))
        return
    from rich.console import Console

    from loadgen.report.trace_terminal import print_traces

    print_traces(Console(highlight=False), traces, difference)
