"""The JSON Schemas: they are those of the code, each field is described, and the files of runs are valid."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from loadgen.cli import cli
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from support import sample_runs
from support.schemas import LINES, SCHEMAS, strict

ROOT = Path(__file__).parents[2]
PUBLISHED = sorted((ROOT / "docs/results").glob("*/online/*"))


def plain(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def test_the_schemas_are_those_of_the_code(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "docs/tools/schemas.py", tmp_path], check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in (ROOT / "loadgen/schemas").iterdir()}, "run make schemas"


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_field_is_described(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    structs = {key: struct for key, struct in SCHEMAS[name]["$defs"].items() if "properties" in struct}
    bare = [
        f"{key}.{field}"
        for key, s in structs.items()
        for field, of in s["properties"].items()
        if not of.get("description")
    ]
    assert not bare and all(struct["description"] for struct in structs.values())


@pytest.mark.parametrize(
    "made",
    [
        sample_runs.run(num_requests=40, failing=0.2),
        sample_runs.without_energy(),
        sample_runs.without_completions(),
        sample_runs.single(),
    ],
    ids=["some fail", "without energy", "without completions", "single"],
)
def test_the_files_of_a_run_are_valid(made: RunResult) -> None:
    made = analyse_run(made)
    strict("summary").validate(plain(made.summary))
    strict("run").validate(plain(made.info))
    lines = {"record": made.records, "schedule": made.schedule, "energy": made.energy}
    if made.attribution:
        lines["attribution"] = made.attribution.requests
    for name, values in lines.items():
        for value in values[:20]:
            strict(name).validate(plain(value))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_the_folders_of_older_versions_are_valid(folder: Path) -> None:
    for name in ("summary", "run"):
        if (path := folder / f"{name}.json").exists():
            Draft202012Validator(SCHEMAS[name]).validate(json.loads(path.read_text()))
    for stem, name in LINES.items():
        if (path := folder / f"{stem}.jsonl.gz").exists():
            with gzip.open(path) as file:
                Draft202012Validator(SCHEMAS[name]).validate(json.loads(file.readline()))


def test_a_summary_of_another_shape_is_refused() -> None:
    made = plain(analyse_run(sample_runs.single()).summary)
    assert list(strict("summary").iter_errors(made | {"duration_s": "long"}))
    assert list(strict("summary").iter_errors(made | {"unheard_of": 1}))
    del made["requests"]
    assert list(strict("summary").iter_errors(made))


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_command_prints_the_schema(name: str) -> None:
    assert json.loads(CliRunner().invoke(cli, ["schema", name]).output) == SCHEMAS[name]
