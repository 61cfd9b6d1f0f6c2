"""The files of a real run: valid by their schemas, and without a secret in them or in what is exported of them."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadgen.cli.export import FORMATS
from support.schemas import LINES, strict

ROOT = Path(__file__).parents[2]
CHAT = ROOT / "traces" / "chat.jsonl"
SECRETS = ("sk-hush-hush", "quiet-header")


def loadgen(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadgen", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "demo"
    key, header = SECRETS
    secrets = ["--api-key", key, "--header", f"X-Token: {header}"]
    load = ["--rps", 20, "--num-requests", 12, "--idle", 0.5, "--seed", 7]
    loadgen("replay", CHAT, *load, "--serve", "sim", "--ui", "none", "--out", folder, *secrets)
    return folder


def test_each_file_of_a_real_run_is_valid(run: Path) -> None:
    for name in ("summary", "run"):
        strict(name).validate(json.loads((run / f"{name}.json").read_text()))
    for stem, name in LINES.items():
        lines = (run / f"{stem}.jsonl").read_text().splitlines()
        assert lines
        for line in lines:
            strict(name).validate(json.loads(line))


def test_its_summary_is_read_alone(run: Path) -> None:
    origin = json.loads((run / "summary.json").read_text())["run"]
    assert origin["trace_sha256"] == hashlib.sha256(CHAT.read_bytes()).hexdigest()
    assert (origin["simulated"], origin["seed"], origin["trace"]) == (True, 7, str(CHAT))
    unknown = {key for key, value in origin.items() if value in (None, [], "")}
    assert unknown <= {"engine_version"}


@pytest.mark.parametrize("kind", FORMATS)
def test_no_secret_is_in_a_file_or_an_export(run: Path, kind: str) -> None:
    loadgen("export", run, "--as", kind)
    exported = run.with_name(f"demo.{FORMATS[kind]}").read_bytes()
    kept = [(run / name).read_bytes() for name in ("summary.json", "run.json")]
    for secret in SECRETS:
        assert all(secret.encode() not in content for content in (exported, *kept))
