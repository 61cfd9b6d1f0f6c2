"""Locust users that send requests to an LLM server: chat and code in a closed loop, or a trace on its own schedule.

locust -f loadgen/locustfile.py --headless -u 20 --host http://127.0.0.1:8000
locust -f loadgen/locustfile.py --headless -u 1 --trace traces/chat.jsonl --rps 4 --host http://127.0.0.1:8000
"""

import sys
from pathlib import Path

if sys.path[0] == str(Path(__file__).parent):
    # Locust puts a locustfile's own folder first on the path while it imports the file. The folder above it instead
    # makes a checkout work from anywhere, with this package and not another one that may be installed.
    sys.path[0] = str(Path(__file__).parents[1])

from loadgen.errors import LoadgenError
from loadgen.extras import importing

try:
    with importing("loadgen's locustfile", "locust"):
        from loadgen.locust.hooks import listen
        from loadgen.locust.users import ChatUser, CodeUser, TraceReplay
except LoadgenError as err:
    sys.exit(f"loadgen: {err}")

__all__ = ["ChatUser", "CodeUser", "TraceReplay"]

listen()
