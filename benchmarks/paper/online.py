"""Tables of docs/results/serving.md that come from the first online runs."""

from typing import Any

from benchmarks.paper.ingest import online
from benchmarks.paper.published import ONLINE_SAVED
from benchmarks.paper.words import percent, sig, table

RUNS = ("rps-2", "rps-12", "rps-16", "rps-32", "closed-loop-baseline")


def per_token_online(summary: dict[str, Any]) -> float:
    """Return measured joules, idle included, per prompt and output token."""
    tokens = summary["tokens"]
    return float(summary["energy"]["measured_joules"] / (tokens["input"] + tokens["output"]))


def online_table() -> str:
    body = []
    for name in RUNS:
        summary, run = online(name)
        energy, tokens, completed = summary["energy"], summary["tokens"], summary["requests"]["completed"]
        steady = energy["steady"]["joules_per_output_token"] if energy["steady"] else None
        measured = energy["measured_joules"]
        body.append(
            [
                f"{run['config']['rps']:g}/s" if run["config"]["arrival"] == "poisson" else "all at once",
                str(completed),
                f"{tokens['input'] / completed:,.0f}, {tokens['output'] / completed:,.0f}",
                sig(measured / tokens["output"]),
                sig(steady),
                sig(per_token_online(summary)),
                percent(energy["idle_joules"] / measured),
                f"{energy['mean_watts']:.0f}",
                f"{tokens['output_per_s']:,.0f}",
                *(sig(1e3 * summary[key]["p50"]) for key in ("ttft_s", "tpot_s")),
                sig(summary["e2e_s"]["p50"]),
            ]
        )
    head = ["arrivals", "requests", "mean tokens in, out", "J/output token", "in steady state", "J/token, in and out"]
    more = ["idle's share", "W", "tokens/s out", "TTFT p50 ms", "TPOT p50 ms", "E2E p50 s"]
    return table(head + more, body)


def online_paper() -> str:
    """Return the paper's row with its sign turned, so that more energy is positive as in the other tables."""
    return table(["batch", *map(str, ONLINE_SAVED)], [["paper", *(percent(-x, True) for x in ONLINE_SAVED.values())]])
