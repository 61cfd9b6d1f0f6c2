"""llm-d's Benchmark Report 0.2: valid by its schema, and with the numbers of the summary."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from loadgen.export.benchmark_report import benchmark_report
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from support import sample_runs

NUMBER, TEXT, COUNT = {"type": "number"}, {"type": "string"}, {"type": "integer", "minimum": 0}
TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"}


def closed(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def statistics(*units: str) -> dict[str, Any]:
    names = ("mode", "min", "p0p1", "p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p99p9", "max")
    deviation = {"type": "number", "minimum": 0}
    fields = {"units": {"enum": units}, "mean": NUMBER, "stddev": deviation, **dict.fromkeys(names, NUMBER)}
    return closed(("units", "mean"), **fields)


LENGTH = closed(
    ("distribution", "value"), distribution={"enum": ["fixed", "gaussian", "uniform", "other"]},
    value={"type": "number", "minimum": 0}, std_dev=NUMBER, min=COUNT, max={"type": "integer", "minimum": 1},
)  # fmt: skip
NATIVE = closed(args={"type": "object"}, envars={"type": "object"}, config={})
POWER_SERIES = closed(
    ("units", "series"), units={"const": "Watts"},
    series={"type": "array", "items": closed(("ts",), ts=TIME, value=NUMBER)},
)  # fmt: skip
SCHEMA = closed(
    ("version", "run", "results"),
    version={"const": "0.2"},
    run=closed(
        ("uid",), uid=TEXT, eid=TEXT, cid=TEXT, pid=TEXT, user=TEXT, description=TEXT,
        time=closed(start=TIME, end=TIME, duration={"type": "string", "pattern": r"^PT[0-9.]+S$"}),
        keywords={"type": "array", "items": TEXT},
    ),
    scenario=closed(
        stack={"type": "array", "items": closed(
            ("metadata", "standardized", "native"),
            metadata=closed(("label", "cfg_id"), schema_version=TEXT, label=TEXT, cfg_id=TEXT, description=TEXT),
            standardized={
                "type": "object", "required": ["kind", "tool", "tool_version"],
                "properties": {"kind": {"const": "generic"}, "tool": TEXT, "tool_version": TEXT},
            },
            native=NATIVE,
        )},
        load=closed(
            ("metadata", "standardized", "native"),
            metadata=closed(schema_version=TEXT, cfg_id=TEXT, description=TEXT),
            standardized=closed(
                ("tool", "tool_version", "source", "input_seq_len"), tool=TEXT, tool_version=TEXT,
                parallelism={"type": "integer", "minimum": 1}, source={"enum": ["random", "sampled", "unknown"]},
                stage=COUNT, input_seq_len=LENGTH, output_seq_len=LENGTH,
                multi_turn=closed(enabled={"type": "boolean"}),
                rate_qps={"type": "number", "exclusiveMinimum": 0}, concurrency={"type": "integer", "minimum": 1},
            ),
            native=NATIVE,
        ),
    ),
    results=closed(
        request_performance=closed(aggregate=closed(
            requests=closed(
                ("total",), total=COUNT, failures=COUNT, incomplete=COUNT, input_length=statistics("count"),
                output_length=statistics("count"),
            ),
            latency=closed(
                time_to_first_token=statistics("ms", "s"), request_latency=statistics("ms", "s"),
                normalized_time_per_output_token=statistics("ms/token", "s/token"),
                time_per_output_token=statistics("ms/token", "s/token"),
                inter_token_latency=statistics("ms/token", "s/token"),
            ),
            throughput=closed(
                input_token_rate=statistics("tokens/s"), output_token_rate=statistics("tokens/s"),
                total_token_rate=statistics("tokens/s"), request_rate=statistics("queries/s"),
            ),
        )),
        observability={"type": "object", "properties": {"components": {"type": "array", "items": closed(
            ("component_label",), component_label=TEXT,
            aggregate=closed(
                power_consumption=statistics("Watts"), running_requests=statistics("count"),
                waiting_requests=statistics("count"),
            ),
            time_series=closed(power_consumption=POWER_SERIES),
        )}}},
    ),
)  # fmt: skip
"""The part of the format that a report of ours can have, by llmdbenchmark/analysis/benchmark_report/schema_v0_2.py of
llm-d-benchmark (Apache-2.0) at commit 8bc9f1d. Objects there are closed too, but for `observability` and the kind
`generic`."""
RUNS = {
    "some fail": lambda: sample_runs.run(num_requests=80, failing=0.2),
    "without energy": sample_runs.without_energy,
    "without completions": sample_runs.without_completions,
    "single": sample_runs.single,
    "prompts of unknown length": lambda: replace(
        sample_runs.single(),
        schedule=[msgspec.structs.replace(item, input_tokens=None) for item in sample_runs.single().schedule],
    ),
}


def report_of(made: RunResult) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(msgspec.json.encode(benchmark_report(analyse_run(made))))
    return report


@pytest.mark.parametrize("run", RUNS)
def test_the_report_is_valid(run: str) -> None:
    Draft202012Validator(SCHEMA).validate(report_of(RUNS[run]()))


def test_its_numbers_are_those_of_the_summary() -> None:
    made = analyse_run(RUNS["some fail"]())
    report, summary = report_of(made), made.summary
    assert summary is not None
    performance = report["results"]["request_performance"]["aggregate"]
    assert performance["latency"]["time_to_first_token"]["p99p9"] == summary.ttft_s.p99_9
    assert performance["requests"]["total"] == summary.requests.sent
    assert performance["requests"]["failures"] + performance["requests"]["incomplete"] == summary.requests.failed
    observed = report["results"]["observability"]
    [component] = observed["components"]
    assert component["aggregate"]["power_consumption"]["mean"] == summary.energy.mean_watts
    assert len(component["time_series"]["power_consumption"]["series"]) > 5
    assert observed["loadgen_energy"]["attributed_joules"] == summary.energy.attributed_joules
    assert component["component_label"] == report["scenario"]["stack"][0]["metadata"]["label"]


def test_without_a_meter_there_is_no_power() -> None:
    observed = report_of(sample_runs.without_energy())["results"]["observability"]
    assert "power_consumption" not in observed["components"][0]["aggregate"]
    assert "measured_joules" not in observed["loadgen_energy"] and observed["loadgen_energy"]["reasons"]
