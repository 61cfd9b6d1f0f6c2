"""OpenTelemetry's names of the sidecar's metrics and labels, made of those of the Prometheus page. Pure.

The rule is such that a Prometheus which receives the metrics by OTLP names them as on the page: it replaces dots, and
appends the unit and `_total`.
"""

from __future__ import annotations

from typing import NamedTuple

UNITS = {"joules": "J", "seconds": "s", "watts": "W", "ratio": "1"}
"""Unit of a metric whose name ends in this, in UCUM."""
COUNTED = {"requests": "{request}", "spans": "{span}", "tokens": "{token}"}
"""Unit of a number of these."""
HEADS = {"gen_ai_server_": "gen_ai.server.", "loadgen_": "loadgen."}
NAMESPACES = frozenset(("energy", "engine", "gpu", "host", "otlp", "request", "session", "spans"))
"""Words after the head of a name that others are below."""
ATTRIBUTES = {
    "model": "gen_ai.request.model",
    "tokens": "gen_ai.token.type",
    "error_type": "error.type",
    "gpu": "hw.name",
    "uuid": "hw.id",
}


class OtelName(NamedTuple):
    name: str
    unit: str
    """Is empty where there is none."""


def otel_name(name: str) -> OtelName:
    """Return OpenTelemetry's name of a metric of the page, and its unit."""
    name = name.removesuffix("_total")
    words = name.split("_")
    if unit := UNITS.get(words[-1], ""):
        name = name.removesuffix(f"_{words[-1]}")
    else:
        unit = next((unit for word, unit in COUNTED.items() if word in words), "")
    head = next(head for head in HEADS if name.startswith(head))
    first, _, rest = name.removeprefix(head).partition("_")
    joint = "." if first in NAMESPACES else "_"
    return OtelName(HEADS[head] + (f"{first}{joint}{rest}" if rest else first), unit)


def attribute_name(label: str) -> str:
    """Return the attribute that a label of the page is: OpenTelemetry's where it has the same meaning, else ours."""
    return ATTRIBUTES.get(label, f"loadgen.{label}")
