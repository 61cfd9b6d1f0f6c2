"""What a shell completes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from loadgen.cli import COMMANDS, cli
from loadgen.cli.completion import _FILES, names_of
from loadgen.energy.choose import CHOICES
from loadgen.servers import recipe
from loadgen.workload.length_source import shipped_sources


def completed(line: str) -> list[tuple[str, str]]:
    """Return the kind and the value of what completes the last word of a line; a space at its end begins a word."""
    *words, incomplete = line.split(" ")
    items = ShellComplete(cli, {}, "loadgen", "_LOADGEN_COMPLETE").get_completions(words, incomplete)
    return [(item.type, item.value) for item in items]


def plain(line: str) -> list[str]:
    return [value for kind, value in completed(line) if kind == "plain"]


CASES = {
    "": list(COMMANDS),
    "sel": ["selftest"],
    "replay --serve s": ["sim"],
    "serve vl": ["vllm"],
    "profile --serve llam": ["llamacpp"],
    "replay azure-2023": ["azure-2023-chat", "azure-2023-code"],
    "replay mi": ["mix"],
    "replay --stream cha": ["chat"],
    "replay --energy n": ["nvml", "none"],
    "sidecar --energy r": ["rapl"],
    "replay --arrival ga": ["gamma"],
    "replay chat --max-c": ["--max-concurrency", "--max-context"],
    "replay --log": ["--log-file"],
    "estimate --profile h200-s": ["h200-sim-llama-3.1-8b"],
    "estimate --hardware h1": ["h100"],
    "profile --model qwen": ["qwen3-30b-a3b"],
    "trace show burst": ["burstgpt"],
    "trace sample burst": ["burstgpt"],
    "selftest cod": ["code"],
}


@pytest.mark.parametrize(("line", "values"), CASES.items())
def test_a_line_is_completed(line: str, values: list[str]) -> None:
    assert plain(line) == values


@pytest.mark.parametrize("line", ["replay my", "study st", "estimate /tmp/x", "replay --log-file l", "compare runs/"])
def test_a_path_is_completed_by_the_shell(line: str) -> None:
    assert ("file", line.rpartition(" ")[2]) in completed(line)


@pytest.mark.parametrize("kind", _FILES)
def test_no_kind_of_name_is_empty(kind: str) -> None:
    assert names_of(kind)


def test_the_names_are_those_that_the_commands_take() -> None:
    assert names_of("servers") == recipe.names()
    assert {*names_of("traces"), *names_of("mixes"), *names_of("workloads")} == set(shipped_sources())
    assert plain("replay --energy ") == list(CHOICES)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_calls_loadgen(shell: str) -> None:
    command = [sys.executable, "-c", "from loadgen.cli import main; main()"]
    variables = os.environ | {"_LOADGEN_COMPLETE": f"{shell}_source"}
    output = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=60)
    assert f"_LOADGEN_COMPLETE={shell}_complete" in output.stdout and output.stderr == ""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_a_server(tmp_path: Path) -> None:
    (command := tmp_path / "loadgen").write_text(f'#!/bin/sh\nexec {sys.executable} -m loadgen "$@"\n')
    command.chmod(0o755)
    script = """
        eval "$(_LOADGEN_COMPLETE=bash_source loadgen)"
        COMP_WORDS=(loadgen replay --serve vl) COMP_CWORD=3
        _loadgen_completion loadgen; echo "${COMPREPLY[@]}"
    """
    variables = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    output = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, timeout=60)
    assert (output.stdout.strip(), output.stderr) == ("vllm", "")
