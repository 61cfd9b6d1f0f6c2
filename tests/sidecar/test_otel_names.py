"""OpenTelemetry's names of the sidecar's metrics."""

import re

import pytest

from loadgen.sidecar.exporter import METRICS, Declared
from loadgen.sidecar.otel_names import attribute_name, otel_name
from loadgen.telemetry.span_labels import RESERVED

SUFFIXES = {"J": "_joules", "s": "_seconds", "W": "_watts"}


def prometheus_name(declared: Declared) -> str:
    """Return the name that Prometheus makes of an OTLP metric: it appends the unit, `_ratio` to gauges, and `_total`.

    https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/#otlp-metric-points-to-prometheus
    """
    name, unit = otel_name(declared.name)
    suffix = SUFFIXES.get(unit, "_ratio" if unit == "1" and declared.kind == "gauge" else "")
    return name.replace(".", "_") + suffix + ("_total" if declared.kind == "counter" else "")


@pytest.mark.parametrize("declared", METRICS, ids=lambda declared: declared.name)
def test_a_prometheus_that_receives_a_metric_by_otlp_names_it_as_on_the_page(declared: Declared) -> None:
    assert prometheus_name(declared) == declared.name
    name, unit = otel_name(declared.name)
    assert re.fullmatch(r"(gen_ai\.server|loadgen)(\.[a-z_]+)+", name)
    assert unit in ("", "1", "J", "W", "s", "{request}", "{span}", "{token}")


def test_names_are_those_of_the_conventions_or_begin_with_ours() -> None:
    names = {otel_name(declared.name).name for declared in METRICS}
    assert len(names) == len(METRICS)
    assert {name for name in names if not name.startswith("loadgen.")} == {
        "gen_ai.server.request.duration", "gen_ai.server.time_to_first_token", "gen_ai.server.time_per_output_token",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loadgen_gpu_energy_joules_total", ("loadgen.gpu.energy", "J")),
        ("loadgen_request_energy_joules", ("loadgen.request.energy", "J")),
        ("loadgen_attributed_energy_joules_total", ("loadgen.attributed_energy", "J")),
        ("loadgen_requests_without_tokens_total", ("loadgen.requests_without_tokens", "{request}")),
        ("loadgen_output_tokens_total", ("loadgen.output_tokens", "{token}")),
        ("loadgen_energy_attribution_coverage_ratio", ("loadgen.energy.attribution_coverage", "1")),
        ("loadgen_engine_up", ("loadgen.engine.up", "")),
    ],
)
def test_a_name_is_made_of_that_of_the_page(name: str, expected: tuple[str, str]) -> None:
    assert otel_name(name) == expected


def test_no_label_of_a_users_choosing_can_take_the_place_of_one_of_ours() -> None:
    labels = {label for declared in METRICS for label in declared.labels}
    assert {label for declared in METRICS if declared.by_labels for label in declared.labels} <= RESERVED
    assert len({attribute_name(label) for label in labels}) == len(labels)
    assert all("." in attribute_name(label) for label in labels), "a label of the user's has no dot"
