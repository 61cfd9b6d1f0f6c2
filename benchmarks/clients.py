"""How to make each client put the same load on a server."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

INPUT_TOKENS = 16


@dataclass(frozen=True)
class Load:
    """`requests` of `tokens` output tokens: `rate` a second (Poisson or constant), or `streams` at a time."""

    requests: int
    tokens: int
    rate: float | None = None
    streams: int | None = None
    poisson: bool = False


@dataclass(frozen=True)
class Client:
    installed: Callable[[], bool]
    command: Callable[[str, Load, Path], Sequence[str]]
    """(server's root URL, load, a folder to write into) -> what to run."""
    ttft_ns: Callable[[Path], dict[bytes, int]] | None = None
    env: dict[str, str] = field(default_factory=dict)


def _loadgen(url: str, load: Load, folder: Path) -> list[str]:
    trace = folder / "trace.jsonl"
    line = {"timestamp": 0.0, "input_length": INPUT_TOKENS, "output_length": load.tokens}
    trace.write_text(
        "".join(json.dumps(line | {"timestamp": float(i)}) + "\n" for i in range(min(load.requests, 1000)))
    )
    rate = load.rate or 1e6
    return [
        sys.executable, "-m", "loadgen", "replay", str(trace), "--rps", str(rate),
        "--arrival", "poisson" if load.poisson else "constant", "--num-requests", str(load.requests),
        *(["--max-concurrency", str(load.streams)] if load.streams else []),
        "--base-url", f"{url}/v1", "--energy", "none", "--ui", "none", "--json", "--out", str(folder / "run"),
    ]  # fmt: skip


def _loadgen_ttft(folder: Path) -> dict[bytes, int]:
    run_id = json.loads((folder / "run" / "run.json").read_bytes())["run_id"]
    records = (json.loads(line) for line in (folder / "run" / "records.jsonl").open("rb"))
    return {
        f"{run_id}-{record['index']}".encode(): record["first_token_ns"] - record["sent_ns"]
        for record in records
        if record["first_token_ns"] and not record["error"]
    }


CLIENTS = {"loadgen": Client(lambda: True, _loadgen, _loadgen_ttft)}
