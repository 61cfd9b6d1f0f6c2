"""Runs in a process of its own, with the stand-in for libnvidia-ml.so.1 on its library path: the real pynvml calls.

Reads {"until_s", "gpus", "visible", "fork_s", "every_s"} from stdin; writes what the meter said as JSON.
"""

import ctypes
import json
import os
import random
import sys
from typing import Any

import msgspec

from loadgen.energy.nvml import NvmlMeter, open_nvml
from loadgen.errors import MeterError

library = ctypes.CDLL("libnvidia-ml.so.1")
library.fake_nvml_time.restype = ctypes.c_int64
library.fake_nvml_set_time.argtypes = [ctypes.c_int64]


def poll(meter: NvmlMeter, until_s: float) -> dict[str, Any]:
    """Polls in scripted time, each pause up to 30 % late, as on a busy machine."""
    late = random.Random(7)
    samples, errors, resets, costs, throttled = [], [], 0, [], []
    while (start_ns := library.fake_nvml_time()) < until_s * 1e9:
        reading = meter.read()
        samples += reading.samples
        errors += reading.errors
        throttled += reading.throttled
        resets += reading.resets
        costs.append(library.fake_nvml_time() - start_ns)
        due_ns = start_ns + round(meter.poll_s * (1 + 0.3 * late.random()) * 1e9)
        library.fake_nvml_set_time(max(due_ns, library.fake_nvml_time()))
    tallies = {"resets": resets, "reads": len(costs), "read_ns": sum(costs)}
    return {"samples": samples, "errors": errors, "throttled": throttled, **tallies}


def polled_in_child(meter: NvmlMeter, until_s: float) -> dict[str, Any]:
    out, into = os.pipe()
    if os.fork() == 0:
        os.write(into, msgspec.json.encode(poll(meter, until_s)))
        os._exit(0)
    os.close(into)
    os.wait()
    with os.fdopen(out, "rb") as pipe:
        return msgspec.json.decode(pipe.read())


def main() -> None:
    ask = json.load(sys.stdin)
    environ = {} if ask["visible"] is None else {"CUDA_VISIBLE_DEVICES": ask["visible"]}
    try:
        meter = open_nvml(ask["gpus"], environ=environ, clock=library.fake_nvml_time, every_s=ask["every_s"])
    except MeterError as err:
        print(json.dumps({"refused": str(err)}))
        return
    said = (polled_in_child if ask["fork"] else poll)(meter, ask["until_s"])
    said |= {"domains": meter.domains, "notes": meter.notes, "poll_s": meter.poll_s, "power_w": meter.power_w()}
    meter.close()
    sys.stdout.buffer.write(msgspec.json.encode(said))


main()
