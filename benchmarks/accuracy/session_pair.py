"""Compare two runs of the same agent sessions, with and without prefix caching: what it saved, by the counters and by
the law of attribution.

    python -m benchmarks.accuracy.session_pair ON OFF > docs/results/h200-2026/agent-sessions/pair.json

ON and OFF are run folders of one schedule. Sums over requests are of those that both runs answered; "all" is of every
request of a run. The law's standard errors are those of the sums. No prompt, length or instant of a single request is
written.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadgen.results.metrics import with_counted_prompts
from loadgen.results.run_attribution import attribute_run
from loadgen.results.run_folder import RunResult, read_run
from loadgen.results.session_accounts import account_of, depth_rows, session_rows
from loadgen.results.summarize import analyse_run, span

COUNTERS = ("prompt_tokens", "cached_tokens", "generation_tokens", "iterations", "preemptions")


def answered_by_both(on: RunResult, off: RunResult) -> list[int]:
    """Return the rows of the requests that both runs answered. ValueError for runs of two schedules."""
    if on.info.schedule_sha256 != off.info.schedule_sha256:
        raise ValueError("the runs had different schedules")
    return [row for row, pair in enumerate(zip(on.records, off.records, strict=True)) if all(r.ok for r in pair)]


def rows_of(on: RunResult, both: Sequence[int]) -> dict[str, list[int]]:
    """Return the rows of each sum, by the name of its part and of the sum within it."""
    kept, sessions = set(both), session_rows(on.schedule)
    rows = {"all": list(range(len(on.records))), "both": list(both)}
    rows |= {f"session {session.session}": [row for row in session.rows if row in kept] for session in sessions}
    return rows | {
        f"turn {first}": [row for row in rows if row in kept] for first, rows in depth_rows(sessions).items()
    }


def account(result: RunResult, rows: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return what a run measured: its totals, the growth of the engine's counters, the law, and each sum."""
    start_ns, end_ns = span(result)
    attribution, _ = attribute_run(result, start_ns, end_ns, rows)
    summary = analyse_run(result).summary
    if attribution is None or summary is None:
        raise ValueError("the run has no energy")
    shares = {share.index: share for share in attribution.requests}
    records = with_counted_prompts(result.schedule, result.records)
    energy = summary.energy
    return {
        "started": summary.run.started,
        "engine_version": summary.run.engine_version,
        "devices": summary.run.devices,
        "duration_s": summary.duration_s,
        "stopped_by": summary.stopped_by,
        "mean_watts": energy.mean_watts,
        "at_limit_share": energy.at_limit_share,
        "mj": {name: getattr(attribution, f"{name}_mj") for name in ("measured", "idle", "attributed", "unattributed")},
        "counters": {name: result.engine[-1][name] - result.engine[0][name] for name in COUNTERS if result.engine},
        "coefficients": energy.coefficients,
        "coefficients_se": energy.coefficients_se,
        "held_out_r_squared": energy.held_out_r_squared,
        "sums": {
            name: msgspec.to_builtins(
                account_of([records[row] for row in part], shares, attribution.sums[name], {}, start_ns)
            )
            for name, part in rows.items()
        },
    }


def pair(on: RunResult, off: RunResult) -> dict[str, Any]:
    rows = rows_of(on, answered_by_both(on, off))
    return {"on": account(on, rows), "off": account(off, rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("on", type=Path)
    parser.add_argument("off", type=Path)
    folders = parser.parse_args()
    print(json.dumps(msgspec.to_builtins(pair(read_run(folders.on), read_run(folders.off))), indent=1))


if __name__ == "__main__":
    main()
