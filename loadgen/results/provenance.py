"""The origin of a run in short, so that its summary.json can be read without the folder it came from."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from loadgen.results.summary import Provenance
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunInfo


def provenance_of(info: RunInfo) -> Provenance:
    """Return the origin of the run that `info` describes."""
    server, config = info.server, info.config
    return Provenance(
        loadgen_version=info.loadgen_version,
        command=info.command,
        started=_utc(info),
        simulated=bool(server.get("simulated")),
        model=server.get("model"),
        engine=server.get("engine"),
        engine_version=server.get("engine_version"),
        endpoint=config.get("endpoint"),
        trace=config.get("trace") or config.get("workload"),
        trace_sha256=config.get("trace_sha256"),
        schedule_sha256=info.schedule_sha256,
        seed=info.seed,
        system=info.host.get("system"),
        cpus=info.host.get("cpus"),
        devices=[f"{domain.name} {domain.device}" if domain.device else domain.name for domain in info.domains],
    )


def _utc(info: RunInfo) -> str | None:
    if info.start_ns is None:
        return None
    wall_s = (info.start_ns + info.anchor.offset_ns) / NS_PER_S
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
