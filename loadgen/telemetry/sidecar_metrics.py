"""What a sidecar's page says of energy, read back for people: joules per request and per token, by workload."""

import re
from typing import NamedTuple

_LINE = re.compile(r"^(loadgen_[a-z_]+)(?:\{([^}\n]*)\})? ([-+0-9.eE]+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Share(NamedTuple):
    """What one workload had. Sums over the same, settled requests, so that their ratios mean something."""

    requests: float = 0.0
    request_joules: float = 0.0
    """Of those requests."""
    joules: float = 0.0
    """Attributed, of requests still running too."""
    output_tokens: float = 0.0
    """Of the settled requests."""

    @property
    def joules_per_request(self) -> float | None:
        return self.request_joules / self.requests if self.requests else None

    @property
    def joules_per_token(self) -> float | None:
        """Per output token of those requests."""
        return self.request_joules / self.output_tokens if self.requests and self.output_tokens else None


class SidecarEnergy(NamedTuple):
    """The page's counters at one moment, or their growth between two. None is unknown."""

    watts: float | None
    simulated: bool
    lag_s: float | None
    """How far the counters are behind: energy settles when the spans of its requests have come."""
    workloads: dict[str, Share]
    idle_joules: float
    unattributed_joules: float
    joules: float
    """All of it: attributed + idle + unattributed."""

    @property
    def joules_per_token(self) -> float | None:
        """Per output token of all requests."""
        shares = self.workloads.values()
        return Share(
            requests=sum(share.requests for share in shares),
            request_joules=sum(share.request_joules for share in shares),
            output_tokens=sum(share.output_tokens for share in shares),
        ).joules_per_token


def parse_metrics(page: str) -> SidecarEnergy | None:
    """None when the page is not a sidecar's."""
    gauges: dict[str, float] = {}
    shares: dict[str, dict[str, float]] = {}
    sources: list[str] = []
    for name, labels, text in _LINE.findall(page):
        value, label = float(text), dict(_LABEL.findall(labels))
        if field := _OF_WORKLOAD.get(name):
            share = shares.setdefault(label.get("workload", "?"), {})
            share[field] = share.get(field, 0.0) + value
        elif name == "loadgen_energy_source_info":
            sources.append(label.get("source", ""))
        else:
            gauges[name] = gauges.get(name, 0.0) + value
    if "loadgen_gpu_energy_joules_total" not in gauges:
        return None
    return SidecarEnergy(
        watts=gauges.get("loadgen_gpu_power_watts"),
        simulated=any("simulated" in source for source in sources),
        lag_s=gauges.get("loadgen_settlement_lag_seconds"),
        workloads={name: Share(**fields) for name, fields in sorted(shares.items())},
        idle_joules=gauges.get("loadgen_idle_energy_joules_total", 0.0),
        unattributed_joules=gauges.get("loadgen_unattributed_energy_joules_total", 0.0),
        joules=gauges["loadgen_gpu_energy_joules_total"],
    )


_OF_WORKLOAD = {
    "loadgen_request_energy_joules_count": "requests",
    "loadgen_request_energy_joules_sum": "request_joules",
    "loadgen_attributed_energy_joules_total": "joules",
    "loadgen_output_tokens_total": "output_tokens",
}


def energy_since(then: SidecarEnergy | None, now: SidecarEnergy) -> SidecarEnergy:
    """The growth from `then` to `now`; all of `now` when there was no then, or the sidecar has started again."""
    if then is None or now.joules < then.joules:
        return now
    none = Share()
    return now._replace(
        workloads={
            name: Share(*(b - a for a, b in zip(then.workloads.get(name, none), share, strict=True)))
            for name, share in now.workloads.items()
        },
        idle_joules=now.idle_joules - then.idle_joules,
        unattributed_joules=now.unattributed_joules - then.unattributed_joules,
        joules=now.joules - then.joules,
    )


class Row(NamedTuple):
    """One line of the table, as text."""

    account: str
    requests: str = ""
    joules: str = ""
    per_request: str = ""
    per_token: str = ""


def energy_rows(energy: SidecarEnergy) -> list[Row]:
    """Workloads, the accounts of nobody, the sum, and the power now."""
    kind = " (simulated)" if energy.simulated else ""
    table = [
        Row(
            name,
            f"{share.requests:.0f}",
            f"{share.joules:,.1f} J",
            _text(share.joules_per_request, "J"),
            _text(share.joules_per_token, "J"),
        )
        for name, share in energy.workloads.items()
        if share.requests or share.joules
    ]
    behind = "" if energy.lag_s is None else f", as of {energy.lag_s:.0f} s ago"
    return [
        *table,
        Row("idle", joules=f"{energy.idle_joules:,.1f} J"),
        Row("unattributed", joules=f"{energy.unattributed_joules:,.1f} J"),
        Row(f"all{kind}{behind}", joules=f"{energy.joules:,.1f} J"),
        Row(f"power now{kind}", joules="unknown" if energy.watts is None else f"{energy.watts:,.0f} W"),
    ]


def _text(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:,.4g} {unit}"


def energy_sentences(energy: SidecarEnergy) -> list[str]:
    """The same for a terminal: a line per workload."""
    kind = "simulated, " if energy.simulated else ""
    return [
        f"{name}: {_text(share.joules_per_request, 'J')}/request, {_text(share.joules_per_token, 'J')}/output token "
        f"({kind}{share.requests:.0f} requests settled, {share.request_joules:,.1f} J)"
        for name, share in energy.workloads.items()
        if share.requests
    ]
