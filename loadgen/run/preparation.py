"""The preparation of a run: its server is asked for all that its schedule depends on."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from loadgen.client.server_probe import ServerProbe, probe
from loadgen.client.tokenizer_file import TokenizerFile
from loadgen.client.word_counts import Counter, FileCounter, ServerCounter, count_words
from loadgen.run.config import PreparedRun
from loadgen.workload.routes import endpoints_of, routed
from loadgen.workload.words import WordsReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.client.client import Client
    from loadgen.run.config import RunConfig
    from loadgen.run.progress import StageTimer
    from loadgen.workload.schedule import Schedule


class Preparation(NamedTuple):
    schedule: Schedule
    """The schedule as it will be sent: each request knows its endpoint, and its lengths where they could be counted."""
    probed: ServerProbe
    word_lengths_from: str | None = None
    """Origin of the lengths that were counted."""


async def prepare(
    schedule: Schedule, config: RunConfig, client: Client, stages: StageTimer, say: Callable[[str], None]
) -> Preparation:
    """Ask the server for what a run needs to know of it. `say` gets a line about whatever is not as the user asked.

    LoadgenError: the server does not answer, or some request does not fit it.
    """
    schedule = routed(schedule, config.endpoint)
    endpoint, *others = endpoints_of(schedule, config.endpoint)
    probed = await probe(
        client,
        endpoint,
        schedule.prompt_kinds,
        others=others,
        model=config.model,
        tokenizer=config.tokenizer,
        extra_body=config.extra_body,
        check=lambda server: server.check_fits(schedule.requests),
        say=say,
        wait=stages.wait,
        announce=stages.begin,
    )
    if config.words is None:
        return Preparation(schedule, probed)
    counters: list[Counter] = [ServerCounter(client)]
    if config.tokenizer is not None:
        counters.append(FileCounter(TokenizerFile(config.tokenizer)))
    make_message = PreparedRun("", config, probed.server, probed.vocabularies).message_maker(schedule.seed)
    words = WordsReader(config.words)
    counted, source = await count_words(
        schedule, words, make_message, counters, config.count, say, partial(stages.begin, "counting prompts")
    )
    probed.server.check_fits(counted.requests)
    return Preparation(counted, probed, source)
