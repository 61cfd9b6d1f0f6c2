"""The main job, from a schedule to a recorded run. Everything is settled before the first byte is sent."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, closing, contextmanager

import uvloop

from loadgen import clock
from loadgen.client.server_probe import probe
from loadgen.results.run_folder import RunWriter
from loadgen.run.config import PreparedRun, RunConfig, open_client
from loadgen.run.metering import Metering
from loadgen.run.pacer import LEAD_S
from loadgen.run.processes import check_sending, open_sender
from loadgen.run.progress import View, progress_at, ticking
from loadgen.run.run_info import info_after, info_before
from loadgen.run.sender import ScheduleSender, warm_up
from loadgen.units import NS_PER_S
from loadgen.workload.prompts import prompt_kind
from loadgen.workload.schedule import Schedule


def replay(schedule: Schedule, config: RunConfig, view: View) -> None:
    """Run the schedule and record it in the folder `config.out`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(_replay(schedule, config, view))


async def _replay(schedule: Schedule, config: RunConfig, view: View) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_client(config))
        probed = await probe(
            client,
            config.endpoint,
            {prompt_kind(request.workload) for request in schedule.requests},
            model=config.model,
            tokenizer=config.tokenizer,
            extra_body=config.extra_body,
            check=lambda server: server.check_fits(schedule.requests),
        )
        server = probed.server
        metering = await stack.enter_async_context(Metering(config, server))
        info = info_before(schedule, config, server, probed.lengths_from, metering)
        prepared = PreparedRun(info.run_id, config, server, probed.vocabularies)
        check_sending(config, len(schedule.requests))
        writer = stack.enter_context(closing(RunWriter(config.out, info, schedule, overwrite=config.overwrite)))
        await warm_up(schedule, prepared, client)
        sender = await stack.enter_async_context(open_sender(schedule, prepared, client, writer))
        async with metering.recording(writer):
            idle_s = config.idle_s if metering.meter else 0
            start_ns = clock.monotonic_ns() + round((LEAD_S + idle_s) * NS_PER_S)
            update = _updater(schedule, sender, metering, writer, view, start_ns)
            with _signals(sender), view:
                async with ticking(update):
                    cost = await sender.run(start_ns)
            end_ns = clock.monotonic_ns()
        writer.write_info(info_after(info, start_ns, end_ns, sender, cost, metering))


def _updater(
    schedule: Schedule, sender: ScheduleSender, metering: Metering, writer: RunWriter, view: View, start_ns: int
) -> Callable[[], None]:
    """Return what is done at every tick: hand the lines written so far to the kernel, show the progress."""
    last_offset_s = schedule.requests[-1].offset_ns / NS_PER_S

    def update() -> None:
        writer.flush()
        power = metering.latest()
        view.update(
            progress_at(
                (clock.monotonic_ns() - start_ns) / NS_PER_S,
                sender.tallies,
                scheduled=len(schedule.requests),
                last_offset_s=last_offset_s,
                watts=power.total_watts if power else None,
                joules=sum(power.joules.values()) if power and power.total_watts is not None else None,
            )
        )

    return update


@contextmanager
def _signals(sender: ScheduleSender) -> Iterator[None]:
    """Stop `sender` at the first Ctrl-C or SIGTERM, so that it drains, and abort it at the second. The old handlers
    come back afterwards."""
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if sender.stopped_by == "completed":
            sender.stop("interrupted")
        else:
            sender.abort()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
