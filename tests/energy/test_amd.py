"""AMD's counters through the real amdsmi bindings, on a stand-in for their library (tests/support/fake_amdsmi.c)."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
NEVER = 1e9
CHILD = """
import ctypes, json, os, sys
from loadgen.energy.amd import open_amd
from loadgen.errors import MeterError
from loadgen.energy.series import series_by_domain
gpus, environ, until_s = json.load(sys.stdin)
now = [0]
try:
    meter = open_amd(gpus, environ=environ, clock=lambda: now[0])
except MeterError as err:
    print(json.dumps({"refused": str(err)}))
    sys.exit()
library = ctypes.CDLL("libamd_smi.so")
library.fake_amdsmi_set_time.argtypes = [ctypes.c_double]
samples, errors, resets = [], [], 0
while now[0] < until_s * 1e9:
    library.fake_amdsmi_set_time(now[0] / 1e9)
    reading = meter.read()
    samples += reading.samples
    errors += reading.errors
    resets += reading.resets
    now[0] += round(meter.poll_s * 1e9)
series = series_by_domain(samples)
print(json.dumps({
    "domains": [(d.name, d.source, d.uuid) for d in meter.domains], "notes": meter.notes, "errors": errors,
    "resets": resets, "total_j": {name: one.total_mj / 1000 for name, one in series.items()},
    "known_s": {name: (one.t_ns[-1] - one.t_ns[0] - one.unknown_ns) / 1e9 for name, one in series.items()},
    "gaps": sum(sample.gap for sample in samples),
}))
meter.close()
"""

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libamd_smi.so that does as its script says."""
    found = importlib.util.find_spec("amdsmi")
    if found is None or found.origin is None or shutil.which("gcc") is None:
        pytest.skip("no amdsmi, or no gcc to build the stand-in for its library with")
    wrapper = (Path(found.origin).parent / "amdsmi_wrapper.py").read_text()
    source = (SUPPORT / "fake_amdsmi.c").read_text()
    wanted = sorted(set(re.findall(r"_libraries\['libamd_smi\.so'\]\.(\w+)", wrapper)))
    stubs = [f"int {name}(void) {{ return 2; }}" for name in wanted if f"int {name}(" not in source]
    folder = tmp_path_factory.mktemp("amdsmi")
    (folder / "all.c").write_text(source + "\n".join(stubs) + "\n")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", folder / "libamd_smi.so", folder / "all.c"], check=True)
    return folder


@pytest.fixture
def run(library: Path) -> Run:
    def scripted(
        *script: str, gpus: list[str] | None = None, environ: dict[str, str] | None = None, path: Path = library
    ) -> dict[str, Any]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("ROCM")}
        env |= {"LD_LIBRARY_PATH": str(path), "PYTHONPATH": str(ROOT), "FAKE_AMDSMI": ";".join(script)}
        ask = json.dumps([gpus, environ or {}, 10.0]).encode()
        out = subprocess.run([sys.executable, "-c", CHILD], input=ask, env=env, capture_output=True, timeout=30)
        assert out.returncode == 0, out.stderr.decode()
        said: dict[str, Any] = json.loads(out.stdout)
        return said

    return scripted


def test_joules_are_the_accumulator_times_its_resolution(run: Run) -> None:
    said = run(f"aa-1 300 {NEVER} 0", f"bb-2 500 {NEVER} 0")
    assert said["domains"] == [["gpu:0", "amdsmi-counter", "aa-1"], ["gpu:1", "amdsmi-counter", "bb-2"]]
    for name, watts in (("gpu:0", 300), ("gpu:1", 500)):
        assert said["total_j"][name] == pytest.approx(watts * said["known_s"][name], abs=0.01)
    assert (said["errors"], said["resets"]) == ([], 0)
    assert "not on a card" in said["notes"][0]


@pytest.mark.parametrize(
    ("gpus", "environ", "chosen"),
    [
        (None, {}, ["gpu:0", "gpu:1"]),
        (["1"], {}, ["gpu:1"]),
        (["bb"], {"HIP_VISIBLE_DEVICES": "0"}, ["gpu:1"]),
        (None, {"HIP_VISIBLE_DEVICES": "1"}, ["gpu:1"]),
        (None, {"ROCR_VISIBLE_DEVICES": "0"}, ["gpu:0"]),
    ],
)
def test_choosing(run: Run, gpus: list[str] | None, environ: dict[str, str], chosen: list[str]) -> None:
    said = run(f"aa-1 300 {NEVER} 0", f"bb-2 500 {NEVER} 0", gpus=gpus, environ=environ)
    assert [name for name, _, _ in said["domains"]] == chosen


def test_a_counter_that_restarts_leaves_a_gap(run: Run) -> None:
    said = run("aa-1 300 5.02 0")
    assert (said["resets"], said["gaps"]) == (1, 1)
    assert said["total_j"]["gpu:0"] == pytest.approx(300 * said["known_s"]["gpu:0"], abs=0.01)


def test_a_gpu_without_a_counter_is_left_out_and_named(run: Run) -> None:
    said = run(f"aa-1 300 {NEVER} 2", f"bb-2 500 {NEVER} 0")
    assert [name for name, _, _ in said["domains"]] == ["gpu:1"]
    assert said["notes"][1] == "gpu:0 is left out: Feature not supported"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ((), "no AMD GPU can be measured: amdsmi answers, but lists none"),
        ((f"aa-1 300 {NEVER} 2",), "no AMD GPU can be measured: gpu:0 is left out: Feature not supported"),
        (("nonsense",), "amdsmi does not start: Invalid parameters"),
    ],
)
def test_refusals_say_why(run: Run, script: tuple[str, ...], why: str) -> None:
    assert run(*script) == {"refused": why}


def test_without_the_library_nothing_is_printed_but_the_reason(run: Run, tmp_path: Path) -> None:
    assert run(path=tmp_path) == {"refused": "no AMD driver library here (libamd_smi.so not found)"}
