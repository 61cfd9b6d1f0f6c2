"""loadgen export: each format to a file and to standard output, and bad input in one line."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from loadgen.cli import cli
from loadgen.cli.export import FORMATS
from loadgen.errors import LoadgenError
from loadgen.results import run_folder
from loadgen.workload.schedule import encode_schedule
from support import sample_runs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as a run leaves it."""
    made, folder = sample_runs.run(num_requests=30, failing=0.1), tmp_path / "demo"
    folder.mkdir()
    run_folder.write_json(folder / "run.json", made.info)
    (folder / "schedule.jsonl").write_bytes(encode_schedule(made.schedule))
    writer = run_folder.LineWriter(folder, records=folder / "records.jsonl")
    for record in made.records:
        writer.record(record)
    writer.close()
    return folder


def export(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_is_the_same_in_a_file_and_on_standard_output(run: Path, kind: str) -> None:
    named = export(run, "--as", kind)
    path = run.with_name(f"demo.{FORMATS[kind]}")
    assert f"wrote {path}" in named.stderr
    assert export(run, "--as", kind, "-o", "-").stdout_bytes == path.read_bytes() != b""


def test_a_file_that_would_change_is_replaced_only_on_request(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("mine")
    with pytest.raises(LoadgenError, match="exists and would change; pass --overwrite"):
        export(run, "--as", "csv", "-o", path)
    assert path.read_text() == "mine"
    export(run, "--as", "csv", "-o", path, "--overwrite")
    assert path.read_text().startswith("index,workload,")


def test_the_lists_of_vllm_are_there_on_request(run: Path) -> None:
    assert "ttfts" in json.loads(export(run, "--as", "vllm", "--detailed", "-o", "-").stdout)
    assert "ttfts" not in json.loads(export(run, "--as", "vllm", "-o", "-").stdout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--as", "csv", "--detailed"], "--detailed is for --as vllm, not for csv"),
        (["--as", "csv", "-o", "http://me:secret@host"], r"--output http://host: only --as otlp is sent to a URL"),
        (["--as", "otlp", "-o", "http://127.0.0.1:9"], "is an OTLP receiver there"),
        (["--as", "csv", "-o", "/nowhere/x"], "cannot write /nowhere/x"),
    ],
)
def test_what_cannot_be_written_is_one_line(run: Path, options: list[str], message: str) -> None:
    with pytest.raises(LoadgenError, match=message):
        export(run, *options)


def test_what_is_no_run_and_no_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match=r"is not a run folder: it has no run\.json"):
        export(tmp_path, "--as", "csv")
    refused = export(tmp_path, "--as", "xlsx")
    assert refused.exit_code == 2 and "'csv', 'parquet', 'vllm', 'br0.2', 'otlp'" in refused.stderr


@pytest.mark.parametrize(
    ("kind", "package", "extra"), [("parquet", "pyarrow", "parquet"), ("otlp", "opentelemetry", "sidecar")]
)
def test_a_missing_extra_is_named(
    run: Path, kind: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LoadgenError, match=f"--as {kind} needs the extra '{extra}': "):
        export(run, "--as", kind, "-o", "-")
