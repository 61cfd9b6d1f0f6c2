"""A run is a folder: write it as things happen, read it back whole."""

from dataclasses import dataclass
from typing import Any

import msgspec

from loadgen.attribution import RunAttribution
from loadgen.clock import Anchor
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.record import RequestRecord
from loadgen.schedule import ScheduledRequest
from loadgen.summary import Summary


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """run.json: what was asked, of what, on what, and how it ended."""

    run_id: str
    loadgen_version: str
    config: dict[str, Any]
    """The options of the run, secrets left out."""
    seed: int
    schedule_sha256: str
    anchor: Anchor
    host: dict[str, Any]
    versions: dict[str, str]
    server: dict[str, Any]
    """base_url, model, engine, simulated."""
    domains: list[EnergyDomain]
    energy_reasons: list[str] = []
    """Why there is no energy source, when there is none."""
    start_ns: int | None = None
    """The instant that schedule offsets count from."""
    end_ns: int | None = None
    stopped_by: str | None = None
    """"completed", "duration", "interrupted" or "aborted"; None while it runs, or when it was killed."""
    instrument: dict[str, Any] = {}


@dataclass(frozen=True)
class RunResult:
    """A run folder in memory: the argument of every view."""

    info: RunInfo
    schedule: list[ScheduledRequest]
    records: list[RequestRecord]
    energy: list[EnergySample]
    engine: list[dict[str, Any]]
    attribution: RunAttribution | None
    summary: Summary | None
