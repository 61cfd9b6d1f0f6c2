"""Options of the sidecar."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadgen.energy.named_engine import NamedEngine
from loadgen.sidecar.accounts import MAX_LABEL_VALUES, AccountKey
from loadgen.sidecar.settlement import KEPT_REQUESTS, KEPT_S
from loadgen.sidecar.watermark import AllowedLateness


@dataclass(frozen=True)
class SidecarOptions:
    """Options of `loadgen sidecar`."""

    host: str = "127.0.0.1"
    port: int = 9478
    grpc_port: int | None = None
    engine_url: str | None = None
    engines: tuple[NamedEngine, ...] = ()
    """Engines with names; none where `engine_url` is the only one."""
    engine_key: str | None = field(default=None, repr=False)
    """API key of the engine, which the list of its models may require."""
    energy: str = "auto"
    gpus: tuple[str, ...] = ()
    energy_every_s: float = 0.0
    """Time between two reads of an NVML counter; 0: every update."""
    model: str | None = None
    token: str | None = field(default=None, repr=False)
    energy_token: str | None = field(default=None, repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    lateness: AllowedLateness = field(default_factory=AllowedLateness)
    ledger: Path | None = None
    """Folder of the ledger on disk."""
    kept_requests: int = KEPT_REQUESTS
    """Settled requests that can be looked up."""
    kept_s: float = KEPT_S
    """Time for which they can be."""
    accounts: tuple[AccountKey, ...] = ()
    """Pairs of model and workload that are always shown."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Attributes of spans, by the label that shows their values."""
    stated_values: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Values that are shown of the labels that state them."""
    label_values: int = MAX_LABEL_VALUES
    """Values that are shown of any other label."""
    otlp_metrics_endpoint: str | None = None
    """URL of the collector that gets the metrics; its headers are in the environment."""
    otlp_traces_endpoint: str | None = None
    """URL of the collector that gets a span with the joules of each settled request."""
    otlp_interval_s: float = 10.0
    """Time between two pushes of the metrics."""
