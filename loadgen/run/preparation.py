"""The preparation of a run: its server is asked for all that its schedule depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from loadgen.client.server_probe import ServerProbe, probe
from loadgen.workload.routes import endpoints_of, routed

if TYPE_CHECKING:
    from loadgen.client.client import Client
    from loadgen.run.config import RunConfig
    from loadgen.workload.schedule import Schedule


class Preparation(NamedTuple):
    schedule: Schedule
    """The schedule as it will be sent: each request knows its endpoint."""
    probed: ServerProbe


async def prepare(schedule: Schedule, config: RunConfig, client: Client) -> Preparation:
    """Ask the server for what a run needs to know of it.

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
    )
    return Preparation(schedule, probed)
