"""The main job, from a schedule to a recorded run. Everything is settled before the first byte is sent.

run.json states the run's options, and the client, server and host that it ran on.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import math
import os
import platform
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from loadgen import __version__, clock
from loadgen.client.socket_poller import reads_tokens
from loadgen.results.metrics import distribution_s
from loadgen.results.run_folder import SCHEMA_VERSION, RunInfo, RunWriter
from loadgen.run.config import PreparedRun, RunConfig, limits_of, open_client, recorded_command, recorded_options
from loadgen.run.metering import Metering
from loadgen.run.preparation import Preparation, prepare
from loadgen.run.processes import check_sending, open_sender
from loadgen.run.progress import Plan, Stage, StageLog, StageTimer, Tallies, View, progress_at, stage_at, ticking
from loadgen.run.sender import ScheduleSender, warm_prefixes, warm_up
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.run.process_stats import SendingCost
    from loadgen.workload.schedule import Schedule

_log = logging.getLogger(__name__)

Interruptible = Callable[[Callable[[], None]], AbstractContextManager[None]]
"""Returns a context in which interrupts call the function, in the event loop."""

Judge = Callable[[Tallies, float], bool]
"""Returns whether a run has nothing more to say, from its counts and the seconds since its first instant."""

_LEAD_S = 0.1
"""Time between the last preparation and the first request."""
_DECIDED_DRAIN_S = 1.0
"""Time that requests in flight have to complete when a judge ends the run. Those that remain are cancelled."""


async def replay(
    schedule: Schedule,
    config: RunConfig,
    view: View,
    interruptible: Interruptible | None = None,
    judge: Judge | None = None,
    ready_s: float | None = None,
) -> Schedule:
    """Run the schedule and record it in the folder `config.out`, on a loop of uvloop; return it as it was sent.

    interruptible: by default, Ctrl-C and SIGTERM interrupt the sending. judge: asked four times a second whether to end
    the run, which is then stopped by "decided". ready_s: time in which the server must be prepared and warmed up;
    NotReadyError says that it was not.
    """
    view = StageLog(view)
    stages = StageTimer(view)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_client(config))
        async with ticking(stages.show), stages.within(ready_s):
            preparation = await prepare(schedule, config, client, stages, view.say)
            schedule, probed = preparation.schedule, preparation.probed
            config = msgspec.structs.replace(
                config,
                base_url=client.url.text,  # where the probe found the API
                plan={**config.plan, **preparation.left_out},
            )
            stages.begin("opening the energy meter")
            metering = await stack.enter_async_context(Metering(config, probed.server))
            info = info_before(preparation, config, metering)
            prepared = PreparedRun(info.run_id, config, probed.server, probed.vocabularies)
            check_sending(config, len(schedule.requests))
            kept = config.words if config.keep_bodies else None
            writer = RunWriter(
                config.out, info, schedule, overwrite=config.overwrite, words=kept, answers=config.keep_answers,
                spans=config.otlp is not None,
            )  # fmt: skip
            stack.enter_context(closing(writer))
            await warm_up(schedule, prepared, client, stages.begin)
            await warm_prefixes(schedule, prepared, client, stages.begin)
            sender = await stack.enter_async_context(open_sender(schedule, prepared, client, writer))
        async with metering.recording(writer):
            plan = plan_of(schedule, prepared, has_meter=metering.meter is not None)
            start_ns = clock.monotonic_ns() + round((_LEAD_S + plan.idle_s) * NS_PER_S)
            begin = {"folder": str(config.out), "requests": plan.scheduled, "idle_s": plan.idle_s}
            _log.info("recording %(requests)d requests in %(folder)s, after %(idle_s)s s at rest", begin)
            show = _shower(plan, sender, metering, view, start_ns)
            with (interruptible or _signals)(partial(_interrupt, sender, show)):
                show()
                decide = [_decider(sender, judge, start_ns)] if judge else []
                async with ticking(writer.flush, show, *decide):
                    cost = await sender.run(start_ns)
            view.update(Stage("reading the last counters"))
            end_ns = clock.monotonic_ns()
        ended = {
            "stopped_by": sender.stopped_by,
            "completed": sender.tallies.completed,
            "failed": sender.tallies.failed,
        }
        _log.info("the run is %(stopped_by)s: %(completed)d requests completed, %(failed)d failed", ended)
        writer.write_info(info_after(info, start_ns, end_ns, sender, cost, metering))
    return schedule


def plan_of(schedule: Schedule, prepared: PreparedRun, *, has_meter: bool) -> Plan:
    """Return what a view shows of a run that does not change while it lasts."""
    config, server = prepared.config, prepared.server
    limits_ms = [limits_of(config, workload) for workload in {request.workload for request in schedule.requests}]
    engine = f" ({server.engine})" if server.engine else ""
    return Plan(
        target=f"{server.model} at {server.base_url}{engine}",
        limits_ms=limits_ms[0] if all(limits == limits_ms[0] for limits in limits_ms) else {},
        scheduled=len(schedule.requests),
        total_s=schedule.requests[-1].offset_ns / NS_PER_S,
        idle_s=config.idle_s if has_meter else 0.0,
    )


def _shower(plan: Plan, sender: ScheduleSender, metering: Metering, view: View, start_ns: int) -> Callable[[], None]:
    """Return a function that shows the progress of the sending. The joules that it shows are those since `start_ns`."""
    joules_before = 0.0

    def show() -> None:
        nonlocal joules_before
        power, tallies, now_ns = metering.latest(), sender.tallies, clock.monotonic_ns()
        if power and now_ns < start_ns:
            joules_before = power.total_joules
        view.update(
            stage_at((now_ns - start_ns) / NS_PER_S, plan, tallies, sender.stopped_by),
            progress_at(
                now_ns,
                start_ns,
                plan,
                tallies,
                sender.oldest,
                watts=power.total_watts if power else None,
                joules=power.total_joules - joules_before if power and power.total_watts is not None else None,
            ),
        )

    return show


def _decider(sender: ScheduleSender, judge: Judge, start_ns: int) -> Callable[[], None]:
    """Return a function that ends the sending when `judge` says so, and cancels what is in flight a little later."""
    decided_s = math.inf

    def decide() -> None:
        nonlocal decided_s
        elapsed_s = (clock.monotonic_ns() - start_ns) / NS_PER_S
        if sender.stopped_by == "decided" and elapsed_s > decided_s + _DECIDED_DRAIN_S:
            sender.abort("decided")
        elif sender.stopped_by == "completed":
            sender.count_overdue()
            if judge(sender.tallies, elapsed_s):
                decided_s = elapsed_s
                _log.info("the run is decided after %(seconds).1f s", {"seconds": elapsed_s})
                sender.stop("decided")

    return decide


def _interrupt(sender: ScheduleSender, show: Callable[[], None]) -> None:
    """Stop `sender` the first time, so that it drains, and abort it the second; `show` shows it at once."""
    _log.info("interrupted with %(in_flight)d requests in flight", {"in_flight": sender.tallies.in_flight})
    if sender.stopped_by == "completed":
        sender.stop("interrupted")
    else:
        sender.abort()
    show()


@contextmanager
def _signals(interrupt: Callable[[], None]) -> Iterator[None]:
    """Call `interrupt` at each Ctrl-C and SIGTERM while the block runs. The old handlers come back afterwards."""
    loop = asyncio.get_running_loop()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            loop.remove_signal_handler(number)  # which sets the default handler
            signal.signal(number, handler)


# -- run.json -----------------------------------------------------------------------------------------------------


def info_before(preparation: Preparation, config: RunConfig, metering: Metering) -> RunInfo:
    """Return the part of run.json that is known before the first request is sent. The run gets its id here."""
    schedule, probed = preparation.schedule, preparation.probed
    server = probed.server
    return RunInfo(
        schema_version=SCHEMA_VERSION,
        run_id=secrets.token_hex(6),
        loadgen_version=__version__,
        command=recorded_command(config),
        config=recorded_options(config),
        seed=schedule.seed,
        requested_rps=schedule.rate_rps,
        schedule_sha256=schedule.sha256,
        asked=list(schedule.requested_arrivals),
        anchor=clock.anchor(),
        host={
            "hostname": socket.gethostname(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        versions={name: importlib.metadata.version(name) for name in ("aiohttp", "uvloop", "msgspec", "numpy")},
        server={
            "base_url": server.base_url,
            "model": server.model,
            "engine": server.engine,
            "simulated": server.simulated,
            "engine_version": server.engine_version,
            "max_model_len": server.max_model_len,
            "addresses": list(server.addresses),
            "proxy": server.proxy,
            "ignore_eos": server.dialect.ignore_eos,
            "min_tokens": server.dialect.min_tokens,
            "max_completion_tokens": server.dialect.max_completion_tokens,
            "prompt_lengths_from": probed.lengths_from if probed.vocabularies else None,
            "word_lengths_from": preparation.word_lengths_from,
            "common_prompt_tokens": max((round(v.common_tokens) for v in probed.vocabularies.values()), default=None),
        },
        engines=[engine.public() for engine in metering.engines],
        domains=metering.meter.domains if metering.meter else [],
        energy_reasons=metering.reasons,
    )


def info_after(
    info: RunInfo, start_ns: int, end_ns: int, sender: ScheduleSender, cost: SendingCost, metering: Metering
) -> RunInfo:
    """Return `info` of a run that has ended, completed with how it went and what the measuring itself cost."""
    report = metering.report
    instrument = {
        "loop_delay_s": msgspec.to_builtins(distribution_s(cost.late_ns)),
        "waited_s": cost.waited_s,
        "stamped_by": cost.stamped_by,
        "compiled": reads_tokens(),
        "cpu_s": cost.cpu_s,
        "max_rss_bytes": cost.max_rss_bytes,
        "sampler_period_s": report.period_s if report else None,
        "sampler": msgspec.to_builtins(report) if report else None,
        **({"spans": cost.spans} if cost.spans else {}),
        **({"processes": sender.processes} if sender.processes else {}),
    }
    return msgspec.structs.replace(
        info,
        start_ns=start_ns,
        end_ns=end_ns,
        stopped_by=sender.stopped_by,
        server={**info.server, "metrics": metering.engine_page},
        domains=metering.meter.domains if metering.meter else [],
        energy_notes=metering.meter.notes if metering.meter else [],
        instrument=instrument,
    )
