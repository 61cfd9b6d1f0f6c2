"""A small search on the simulated server, with short probes."""

import sys

SHORT = {"MIN_PROBE_S": 1.0, "MIN_REQUESTS": 3, "_FILLS": 1, "MIN_REFINE_S": 1.5, "MIN_REFINES": 2}
"""Constants of `loadgen.load_search.plan`."""

WORDS = [
    "search", "--input", "20", "--output", "20", "--goodput", "ttft:400", "--attainment", "0.8", "--start", "3",
    "--budget", "9s", "--idle", "0.1", "--warmup", "1",
]  # fmt: skip
"""A request takes 0.1 s of a server that answers one at a time."""

PROGRAM = f"""
from loadgen.load_search import plan
for name, value in {SHORT!r}.items():
    setattr(plan, name, value)
from loadgen.cli import main
main()
"""

COMMAND = [sys.executable, "-c", PROGRAM, *WORDS]
