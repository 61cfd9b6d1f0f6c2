"""Measure the CPU time of the thread that samples the energy counter, as a share of one core.

    python -m benchmarks.instrument.sampler_cost [--seconds 60] [--stand-in GPUS]

It reads this machine's GPUs, or with --stand-in that many scripted ones (tests/support/fake_nvml.c, built with gcc),
whose reads cost next to nothing, so that the rest is loadgen's own cost.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--stand-in", type=int, metavar="GPUS")
    options = parser.parse_args()
    if options.stand_in is None:
        measure(options.seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--seconds", str(options.seconds)]
        subprocess.run(command, check=True, env=stand_in(Path(folder), options.stand_in))


def stand_in(folder: Path, gpus: int) -> dict[str, str]:
    """Return the environment in which NVML is the scripted library, in real time."""
    source, library = ROOT / "tests" / "support" / "fake_nvml.c", folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-lm"], check=True)
    script = folder / "script"
    script.write_text("real\n" + "".join(f"gpu GPU-{i}\npoint {i} 0 300\n" for i in range(gpus)))
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_NVML_SCRIPT": str(script), "PYTHONPATH": str(ROOT)}


def measure(seconds: float) -> None:
    from loadgen.energy.nvml import open_nvml
    from loadgen.energy.sampler import Sampler

    meter = open_nvml()
    sampler = Sampler(meter, lambda samples: None)
    sampler.start()
    time.sleep(seconds)
    report = sampler.stop()
    gpus = len(meter.domains)
    share = report.cpu_s / seconds / gpus
    rates = f"{report.reads / seconds:.1f} reads/s, {report.samples / seconds / gpus:.1f} updates/s and GPU"
    read_cost = f"one read takes {(report.read_cost_s or 0) * 1000:.2f} ms"
    print(f"{gpus} GPUs, {seconds:g} s: {rates}, {share:.2%} of one core per GPU; {read_cost}")
    meter.close()


if __name__ == "__main__":
    main()
