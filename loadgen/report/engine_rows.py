"""The accounts of several engines in words, for the terminal and the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.report.format import UNKNOWN, clean, count, joules, percent, watts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.results.summary import EngineEnergy

ENGINE_HEADINGS = ("engine", "requests", "measured", "idle", "prefill", "decode", "unattributed", "at rest")


def engine_rows(engines: Sequence[EngineEnergy]) -> list[list[str]]:
    """Return a row of cells for each engine, in the order of ENGINE_HEADINGS."""
    return [
        [
            clean(engine.name) + (f" ({engine.role})" if engine.role else ""),
            count(engine.requests),
            *(
                joules(part)
                for part in (
                    engine.measured_joules,
                    engine.idle_joules,
                    engine.prefill_joules,
                    engine.decode_joules,
                    engine.unattributed_joules,
                )
            ),
            UNKNOWN if engine.idle_watts is None else watts(engine.idle_watts),
        ]
        for engine in engines
    ]


def engine_note(engines: Sequence[EngineEnergy], sent: int) -> str:
    """Return how it is known which engine served a request, and of how many of those that were sent it is not."""
    total: dict[str, int] = {}
    for engine in engines:
        for evidence, requests in engine.named_by.items():
            total[evidence] = total.get(evidence, 0) + requests
    words = {
        "header": "by a response header",
        "span": "by the engine's span",
        "only engine": "since no other engine can have served them",
        "counters": "as the likeliest by the engines' counters",
    }
    unplaced = sent - sum(engine.requests for engine in engines if engine.role != "prefill")
    placements = sum(total.values()) + unplaced
    told = [f"{percent(total[evidence] / placements)} {words[evidence]}" for evidence in words if evidence in total]
    sentences = ["Each engine has a law, an idle power and a conservation of its own."]
    if told:
        sentences.append(f"Requests are placed {', '.join(told)}.")
    if unplaced:
        sentences.append(
            f"{count(unplaced)} of {count(sent)} are at no engine and have no joules: nothing says which served them."
        )
    return " ".join(sentences)
