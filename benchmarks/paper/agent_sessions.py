"""Tables of docs/results/agent-sessions.md: what sessions of coding agents cost with and without prefix caching."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.paper.added_load import with_error
from benchmarks.paper.ingest import FOLDER
from benchmarks.paper.words import percent, sig, table

PAIR = FOLDER / "agent-sessions/pair.json"
NAMES = {"on": "with caching", "off": "without"}
PRICES = {
    "prefill_token_j": ("prompt token, mJ", 1e3),
    "prefill_context_j": ("prompt token x context, µJ", 1e6),
    "step_j": ("step, J", 1.0),
    "decode_token_j": ("decoded token, mJ", 1e3),
    "decode_context_j": ("decoded token x context, µJ", 1e6),
}


def runs() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(PAIR.read_text())
    return read


def accounts() -> str:
    """Return the account of each run, whole."""
    body = []
    for name, run in runs().items():
        whole, mj = run["sums"]["all"], run["mj"]
        counts = [f"{whole['completed']} of {whole['requests']}", f"{run['duration_s']:,.0f} s"]
        parts = [f"{mj[part] / 1e3:,.3f}" for part in ("measured", "idle", "attributed", "unattributed")]
        limits = [f"{run['mean_watts']:,.0f}", percent(run["at_limit_share"])]
        body.append([NAMES[name], *counts, *parts, *limits])
    head = ["run", "requests", "lasted", "measured, J", "idle, J", "attributed, J", "unattributed, J", "mean W"]
    return table([*head, "at the power limit"], body)


def costs() -> str:
    """Return the joules of a session and of a turn, over the requests that both runs answered."""
    body = []
    for name, run in runs().items():
        both, cached = run["sums"]["both"], run["sums"]["both"]["cached_tokens"]
        if cached is None and not run["counters"]["cached_tokens"]:
            cached = 0
        body.append([
            NAMES[name], str(both["requests"]), f"{both['input_tokens']:,}",
            percent(None if cached is None else cached / both["input_tokens"]), f"{both['joules']:,.0f}",
            sig(both["joules"] / len(of_part(run, "session"))), sig(both["joules"] / both["requests"]),
            percent(both["prefill_joules"] / both["joules"]),
        ])  # fmt: skip
    head = ["run", "turns", "prompt tokens", "cached", "J", "J per session", "J per turn", "share of prefill"]
    return table(head, body)


def saving() -> str:
    """Return what caching saved, over the requests that both runs answered: as measured, and by the law of each run."""
    on, off = (run["sums"]["both"] for run in runs().values())
    measured_j = off["joules"] - on["joules"]
    measured_se_j = float(np.hypot(on["se_joules"], off["se_joules"]))
    of_on, of_off = on["cache"], off["cache"]
    laws = [(of_on["saved_joules"], of_on["saved_se_joules"]), (of_off["recomputed_joules"],
            of_off["recomputed_se_joules"])]  # fmt: skip
    body = [["measured", with_error(measured_j, measured_se_j), "", ""]]
    for name, (law_j, law_se_j) in zip(
        ("saved, by the law with caching", "computed again, by the law without"), laws, strict=True
    ):
        off_j = law_j - measured_j
        in_errors = f"{off_j / np.hypot(law_se_j, measured_se_j):+.1f}".replace("-", "−")
        body.append([name, with_error(law_j, law_se_j), percent(off_j / measured_j, True), in_errors])
    prefill_j, decode_j = (off[part] - on[part] for part in ("prefill_joules", "decode_joules"))
    body += [
        ["measured, of prefills", f"{prefill_j:,.0f}", "", ""],
        ["measured, of decodes", f"{decode_j:,.0f}", "", ""],
    ]
    return table(["", "J", "off by", "in s.e."], body)


def of_part(run: dict[str, Any], part: str) -> dict[str, Any]:
    """Return the sums of a part, "session" or "turn", by their names within it."""
    named = {name.partition(" "): account for name, account in run["sums"].items()}
    return {rest: account for (head, _, rest), account in named.items() if head == part}


def by_part(part: str, heading: str, name: Callable[[str], str]) -> str:
    """Return a row for each sum of a part: joules in both runs, and what the cache saved."""
    on, off = (of_part(run, part) for run in runs().values())
    body = []
    for key, cached in on.items():
        plain, saved = off[key], cached["cache"]
        measured_j = plain["joules"] - cached["joules"]
        body.append([
            name(key), str(cached["requests"]), f"{cached['input_tokens'] / cached['requests']:,.0f}",
            percent(cached["cached_tokens"] / cached["input_tokens"]),
            *(sig(account["joules"] / account["requests"]) for account in (cached, plain)),
            *(percent(account["prefill_joules"] / account["joules"]) for account in (cached, plain)),
            *(f"{account['joules']:,.0f}" for account in (cached, plain)), f"{measured_j:,.0f}",
            with_error(saved["saved_joules"], saved["saved_se_joules"]),
        ])  # fmt: skip
    pairs = [f"{what}, {which}" for what in ("J per turn", "prefill") for which in ("with", "without")]
    head = [heading, "turns", "tokens a prompt", "cached", *pairs, "J, with", "J, without", "saved, measured"]
    return table([*head, "saved, by the law"], body)


def sessions() -> str:
    return by_part("session", "session", lambda key: key.removeprefix("trace_"))


def turns() -> str:
    return by_part("turn", "turn", lambda key: key if key == "1" else f"{key} to {2 * int(key) - 1}")


def counters() -> str:
    """Return vLLM's counters beside the usage of the answers."""
    body = []
    for name, run in runs().items():
        whole, counted = run["sums"]["all"], run["counters"]
        for what, of_usage in (("prompt", "input"), ("cached", "cached"), ("generation", "output")):
            usage = whole[f"{of_usage}_tokens"]
            by_counter = int(counted[f"{what}_tokens"])
            difference = None if usage is None else by_counter - usage
            cells = [f"{by_counter:,}", *("-" if value is None else f"{value:,}" for value in (usage, difference))]
            body.append([NAMES[name], what, *cells])
    return table(["run", "tokens", "vLLM's counter", "usage of the answers", "difference"], body)


def prices() -> str:
    """Return the fitted prices of both runs, with one standard error."""
    body = []
    for price, (words, scale) in PRICES.items():
        row = [words]
        for run in runs().values():
            value, error = run["coefficients"][price], run["coefficients_se"].get(price)
            row.append(f"{sig(value * scale)} ± {sig(error * scale, 2)}" if error is not None else "0, at its bound")
        body.append(row)
    body.append(["R² of windows held out", *(f"{run['held_out_r_squared']:.4f}" for run in runs().values())])
    return table(["price of a", *NAMES.values()], body)


TABLES = {
    "agent-accounts": accounts,
    "agent-costs": costs,
    "agent-saving": saving,
    "agent-sessions": sessions,
    "agent-turns": turns,
    "agent-counters": counters,
    "agent-prices": prices,
}
