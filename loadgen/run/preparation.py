"""The preparation of a run: its server is asked for all that its schedule depends on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from loadgen.client.server_probe import ServerProbe, probe
from loadgen.client.tokenizer_file import TokenizerFile
from loadgen.client.word_counts import Counter, FileCounter, ServerCounter, count_words
from loadgen.errors import LoadgenError
from loadgen.run.config import PreparedRun
from loadgen.workload.routes import endpoints_of, routed
from loadgen.workload.session_graphs import fit_sessions
from loadgen.workload.words import WordsReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.client.client import Client
    from loadgen.client.server_info import ServerInfo
    from loadgen.run.config import RunConfig
    from loadgen.run.progress import StageTimer
    from loadgen.workload.schedule import Schedule


class Preparation(NamedTuple):
    schedule: Schedule
    """The schedule as it will be sent: each request knows its endpoint, and its lengths where they could be counted."""
    probed: ServerProbe
    word_lengths_from: str | None = None
    """Origin of the lengths that were counted."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """Numbers of sessions that were too long, and of their requests that are not in the schedule, for run.json; and its
    numbers of the schedule, without these."""


async def prepare(
    schedule: Schedule, config: RunConfig, client: Client, stages: StageTimer, say: Callable[[str], None]
) -> Preparation:
    """Ask the server for what a run needs to know of it. `say` gets a line about whatever is not as the user asked.

    LoadgenError: the server does not answer, or some request does not fit it.
    """
    schedule = routed(schedule, config.endpoint)
    endpoint, *others = endpoints_of(schedule, config.endpoint)
    is_refused = config.too_long == "refuse"
    planned = schedule
    probed = await probe(
        client,
        endpoint,
        schedule.prompt_kinds,
        others=others,
        model=config.model,
        tokenizer=config.tokenizer,
        extra_body=config.extra_body,
        check=lambda server: server.check_fits(planned.requests, config.max_context) if is_refused else None,
        say=say,
        wait=stages.wait,
        announce=stages.begin,
    )
    left_out: dict[str, int] = {}
    if not is_refused:
        schedule, left_out = _fitted(schedule, config, probed.server, say)
        probed.server.check_fits(schedule.requests)
    if config.words is None:
        return Preparation(schedule, probed, None, left_out)
    counters: list[Counter] = [ServerCounter(client)]
    if config.tokenizer is not None:
        counters.append(FileCounter(TokenizerFile(config.tokenizer)))
    make_message = PreparedRun("", config, probed.server, probed.vocabularies).message_maker(schedule.seed)
    words = WordsReader(config.words)
    counted, source = await count_words(
        schedule, words, make_message, counters, config.count, say, partial(stages.begin, "counting prompts")
    )
    probed.server.check_fits(counted.requests)
    return Preparation(counted, probed, source, left_out)


def _fitted(
    schedule: Schedule, config: RunConfig, server: ServerInfo, say: Callable[[str], None]
) -> tuple[Schedule, dict[str, int]]:
    """Return the schedule without what is longer than the model's context, and how much that was."""
    assert config.too_long != "refuse"
    limit = min((n for n in (server.max_model_len, config.max_context) if n is not None), default=None)
    if limit is None:
        raise LoadgenError(
            f"--too-long {config.too_long}: the server does not report the length of its context; say it with "
            "--max-context"
        )
    fitted = fit_sessions(schedule, limit, config.too_long)
    what = "are left out" if config.too_long == "leave-out" else "end before such a request"
    say(
        f"{fitted.sessions:,} sessions have a request of more than {limit:,} tokens and {what}: "
        f"{fitted.requests:,} of {len(schedule.requests):,} requests are not sent"
        if fitted.sessions
        else f"no session is longer than {limit:,} tokens"
    )
    counts = {
        "unstreamed": sum(request.streamed is False for request in fitted.schedule.requests),
        "warmed": len(fitted.schedule.warmed),
    }
    counted = {name: count for name, count in counts.items() if name in config.plan}
    return fitted.schedule, {
        "too_long_sessions": fitted.sessions, "too_long_requests": fitted.requests, **counted
    }  # fmt: skip
