"""Tables of docs/results/own-words.md: n-gram speculation on real text and on made-up words."""

import json
from functools import cache
from typing import Any

from benchmarks.paper.ingest import FOLDER
from benchmarks.paper.words import percent, sig, table

DATA = FOLDER.parent / "h100-2026/own-words/own-words.json"
PROMPTS = {
    "quote": "real text, to be copied out",
    "summary": "real text, to be summarized",
    "made-up": "loadgen's own words",
    "natural": "real text, to be summarized; ends by itself",
}


@cache
def runs() -> dict[tuple[str, str], dict[str, Any]]:
    """Return the numbers of each run, by server and prompts."""
    return {(run["server"], run["prompts"]): run for run in json.loads(DATA.read_text())}


def own_words() -> str:
    body = []
    for prompts, words in PROMPTS.items():
        plain, ngram = runs()["plain", prompts], runs()["ngram", prompts]
        joules = [run["joules_per_output_token"] for run in (plain, ngram)]
        body.append([
            words,
            percent(ngram["acceptance"]),
            f"{ngram['accepted_per_output_token']:.2f}",
            ", ".join(sig(1e3 * run["tpot_p50_s"]) for run in (plain, ngram)),
            ", ".join(sig(1e3 * value) for value in joules),
            percent(joules[1] / joules[0] - 1, True),
        ])  # fmt: skip
    head = ["prompts", "draft tokens accepted", "accepted per output token", "TPOT p50, ms: plain, n-gram"]
    return table([*head, "mJ per output token: plain, n-gram", "change"], body)


def own_words_accounts() -> str:
    body = []
    for (server, prompts), run in sorted(runs().items()):
        ended = ", ".join(f"{count} {reason}" for reason, count in sorted(run["ended_by"].items()))
        accounts = [sig(run[f"{name}_joules"], 4) for name in ("measured", "idle", "attributed")]
        counts = [str(run["requests"]), str(run["failed"]), f"{run['output_tokens']:,}", ended]
        body.append([f"{server}, {prompts}", *counts, *accounts, str(run["left_over_mj"])])
    head = ["run", "completed", "failed", "output tokens", "ended by", "measured J", "idle J", "attributed J"]
    return table([*head, "left over, mJ"], body)


TABLES = {"own-words": own_words, "own-words-accounts": own_words_accounts}
