"""The content of run.json: the run's options, and the client, server and host that it ran on."""

import importlib.metadata
import os
import platform
import secrets
import socket

import msgspec

from loadgen import __version__, clock
from loadgen.client.redact import clean_url
from loadgen.client.server_probe import ServerInfo
from loadgen.client.socket_poller import reads_tokens
from loadgen.client.token_counts import LengthSource
from loadgen.results.metrics import distribution_s
from loadgen.results.run_folder import RunInfo
from loadgen.run.config import RunConfig, recorded_options
from loadgen.run.metering import Metering
from loadgen.run.process_stats import SendingCost
from loadgen.run.sender import ScheduleSender
from loadgen.workload.schedule import Schedule


def info_before(
    schedule: Schedule, config: RunConfig, server: ServerInfo, lengths: LengthSource, metering: Metering
) -> RunInfo:
    """Return all that is known before the first request is sent. The run gets its id here."""
    return RunInfo(
        run_id=secrets.token_hex(6),
        loadgen_version=__version__,
        config=recorded_options(config),
        seed=schedule.seed,
        requested_rps=schedule.rate_rps,
        schedule_sha256=schedule.sha256,
        asked=list(schedule.asked),
        anchor=clock.anchor(),
        host={
            "hostname": socket.gethostname(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        versions={name: importlib.metadata.version(name) for name in ("aiohttp", "uvloop", "msgspec", "numpy")},
        server={
            "base_url": clean_url(config.base_url),
            "model": server.model,
            "engine": server.engine,
            "simulated": server.simulated,
            "max_model_len": server.max_model_len,
            "ignore_eos": server.dialect.ignore_eos,
            "min_tokens": server.dialect.min_tokens,
            "prompt_lengths_from": lengths,
        },
        domains=metering.meter.domains if metering.meter else [],
        energy_reasons=[] if metering.meter else metering.reasons,
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
        domains=metering.meter.domains if metering.meter else [],
        energy_notes=metering.meter.notes if metering.meter else [],
        instrument=instrument,
    )
