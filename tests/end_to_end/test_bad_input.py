"""Bad input is reported on one line with status 2, by every command of the energy model and of traces."""

import json
from pathlib import Path

import pytest

from loadgen.cli import main

ROOT = Path(__file__).parents[2]
SIM = "h200-sim-llama-3.1-8b"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write traces, bins and profiles with one fault each."""
    monkeypatch.chdir(tmp_path)
    valid = json.loads((ROOT / "profiles" / "energy" / f"{SIM}.json").read_text())
    middle = [c for c in valid["cells"] if (c["input"], c["output"], c["batch"]) == (512, 128, 32)]
    files = {
        "empty.jsonl": "",
        "blank.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n",
        "zeros.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,0,44\n",
        "long.jsonl": '{"timestamp":0,"input_length":900000,"output_length":5}\n',
        "one.jsonl": '{"timestamp":0,"input_length":512,"output_length":128}\n',
        "object.json": "{}",
        "text.json": "text",
        "no-bins.json": (
            '{"name":"b","provenance":{},"edges":"log2","input_edges":[],"output_edges":[],"count":0,"bins":[]}'
        ),
        "no-cells.json": json.dumps(valid | {"cells": []}),
        "hole.json": json.dumps(valid | {"cells": [c for c in valid["cells"] if c not in middle]}),
    }
    assert middle
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (f"estimate empty.jsonl --profile {SIM}", "empty.jsonl has no requests in it"),
        (f"estimate zeros.csv --profile {SIM}", "zeros.csv has no requests to replay: its only row has 0 input tokens"),
        (f"estimate no-bins.json --profile {SIM}", "no-bins.json: no bins in it"),
        (f"estimate object.json --profile {SIM}", "object.json: not token bins (`loadgen trace fit` makes them)"),
        (f"estimate one.jsonl --profile {SIM}", "how busy is the engine? These lengths have no rate: give --rps"),
        (
            f"estimate long.jsonl --profile {SIM} --batch 32",
            "900000 + 5 tokens exceeds the context of llama-3.1-8b: 131072",
        ),
        ("estimate one.jsonl --profile nowhere", "no energy profile called 'nowhere'; there are: "),
        ("estimate one.jsonl --profile text.json", "text.json: not an energy profile (`loadgen profile` makes them)"),
        ("estimate one.jsonl --profile no-cells.json", "no-cells.json: no cells in it"),
        (
            "estimate one.jsonl --profile hole.json --batch 32",
            "no measurement of 512 input and 128 output tokens at batch 32, which this workload needs: measure it with "
            "`loadgen profile --bins 512x128 --batch 32`",
        ),
        (f"estimate one.jsonl --profile {SIM} --batch 4096", "batch 4096 is outside what profile"),
        (f"estimate one.jsonl --profile {SIM} --batch 32 --hardware l5", "no hardware profile called 'l5'"),
        (
            f"estimate one.jsonl --profile {SIM} --batch 32 --model qwen3-30b-a3b",
            "with model llama-3.1-8b, not qwen3-30b-a3b",
        ),
        (
            "profile --virtual-time --bins 200000x8 --batch 1 --out p.json",
            "bin 200000x8 is longer than llama-3.1-8b takes: 131072 tokens",
        ),
        ("profile --virtual-time --bins 8x8 --gpu abacus --out p.json", "called 'abacus'; there are: h100, h200, l4"),
        ("profile --virtual-time --bins 8x8 --model oracle --out p.json", "called 'oracle'; there are: llama-3.1-70b"),
        ("profile --virtual-time --bins 8y8 --out p.json", "--bins '8y8': expected INPUTSxOUTPUTS"),
        ("trace show empty.jsonl", "empty.jsonl has no requests in it"),
        ("trace show blank.csv --html page.html", "blank.csv has no requests in it"),
        ("trace show one.jsonl --html none/page.html", "cannot write none/page.html"),
        ("trace show one.jsonl --compare empty.jsonl", "empty.jsonl has no requests in it"),
        ("trace show object.json", "object.json: not token bins"),
        ("trace fit zeros.csv --out b.json", "zeros.csv has no requests to replay: its only row has 0 input tokens"),
        ("trace fit one.jsonl --out none/b.json", "cannot write none: No such file"),
        ("trace import blank.csv --out t.jsonl", "blank.csv has no requests in it"),
        ("trace sample no-bins.json --num-requests 1 --rps 1 --out t.jsonl", "no-bins.json: no bins in it"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_nothing_is_written(
    files: Path, capsys: pytest.CaptureFixture[str], args: str, message: str
) -> None:
    before = sorted(path.name for path in files.iterdir())
    with pytest.raises(SystemExit) as exit_:
        main(args.split())
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert err.startswith("loadgen: ") and message in err and err.count("\n") == 1
    assert sorted(path.name for path in files.iterdir()) == before
