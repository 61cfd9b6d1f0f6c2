"""loadgen export: write a run in the format of another tool."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult

FORMATS = {"csv": "csv", "parquet": "parquet", "vllm": "vllm.json", "br0.2": "br0.2.json", "otlp": "otlp.jsonl"}
"""Suffix of the file of each format."""


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--as", "kind", type=click.Choice(list(FORMATS)), required=True, help="Format.")
@click.option(
    "-o",
    "--output",
    metavar="FILE|-|URL",
    help="File to write; - is standard output, and an http:// URL, for otlp only, a collector.  "
    "[default: RUN.csv and the like, beside the folder]",
)
@click.option(
    "--detailed", is_flag=True, help="Format vllm: with the lists of every request, as --save-detailed has them."
)
@click.option("--overwrite", is_flag=True, help="Replace FILE.")
def export(run: Path, kind: str, output: str | None, detailed: bool, overwrite: bool) -> None:
    """Write the run folder RUN in the format of another tool.

    csv, parquet: one row for each request; columns in seconds and joules (docs/reference/python.md lists them).
    vllm: the result file of `vllm bench serve`. br0.2: llm-d's Benchmark Report 0.2. otlp: spans and metrics, as OTLP's
    JSON lines, or sent to a collector.

    \b
    loadgen export runs/demo --as csv -o - | head
    loadgen export runs/demo --as otlp -o http://127.0.0.1:4318
    """
    from loadgen.cli.log import say
    from loadgen.client.redact import clean_url
    from loadgen.errors import LoadgenError
    from loadgen.files import replacing
    from loadgen.results.summarize import load_run

    url = output if output and output.startswith(("http://", "https://")) else None
    if url and kind != "otlp":
        raise LoadgenError(f"--output {clean_url(url)}: only --as otlp is sent to a URL; give a file")
    if detailed and kind != "vllm":
        raise LoadgenError(f"--detailed is for --as vllm, not for {kind}")
    result = load_run(run)
    if url:
        from loadgen.export.otlp import send_otlp

        say(f"sent {send_otlp(result, url)} messages to {clean_url(url)}")
        return
    content = _content(result, kind, detailed)
    if output == "-":
        for part in content:
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        return
    path = Path(output) if output else run.resolve().with_name(f"{run.resolve().name}.{FORMATS[kind]}")
    with replacing(path, overwrite=overwrite) as file:
        file.writelines(content)
    say(f"wrote {path}")


def _content(result: RunResult, kind: str, detailed: bool) -> Iterator[bytes]:
    """Yield the bytes of a format. A module is imported only for its own."""
    match kind:
        case "csv":
            from loadgen.export.table_files import csv_lines

            yield from csv_lines(result)
        case "parquet":
            from loadgen.export.table_files import parquet_file

            yield parquet_file(result)
        case "otlp":
            from loadgen.export.otlp import otlp_lines

            yield from otlp_lines(result)
        case "vllm":
            from loadgen.export.vllm_bench import vllm_result

            yield _json(vllm_result(result, detailed=detailed))
        case _:
            from loadgen.export.benchmark_report import benchmark_report

            yield _json(benchmark_report(result))


def _json(value: object) -> bytes:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"
