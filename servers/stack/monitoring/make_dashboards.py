"""Write grafana/dashboards/*.json from the tables of panels in this file, when run as a script."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SELECTED = 'model=~"$model",workload=~"$workload"'
RATE = "[$__rate_interval]"


class Panel(NamedTuple):
    title: str
    unit: str
    queries: dict[str, str]
    """PromQL by legend."""
    kind: str = "timeseries"
    width: int = 12
    note: str = ""


def _per_token(account: str) -> str:
    return (
        f'sum(rate(loadgen_attributed_energy_joules_total{{{SELECTED},account="{account}"}}{RATE}))'
        f" / (sum(rate(loadgen_output_tokens_total{{{SELECTED}}}{RATE})) > 0)"
    )


ENERGY = f"sum(rate(loadgen_attributed_energy_joules_total{{{SELECTED}}}{RATE}))"
GROSS = f"sum(rate(loadgen_gpu_energy_joules_total{RATE}))"
TOKENS = f"(sum(rate(loadgen_output_tokens_total{{{SELECTED}}}{RATE})) > 0)"
REQUESTS = f"sum(rate(loadgen_requests_total{{{SELECTED}}}{RATE}))"
COMPLETED = f'sum(rate(loadgen_requests_total{{{SELECTED},outcome="completed"}}{RATE}))'
JOULES_PER_KWH = 3_600_000

RUNNING = 'sum({__name__=~"vllm:num_requests_running|sglang:num_running_reqs|tgi_batch_current_size"})'
WAITING = 'sum({__name__=~"vllm:num_requests_waiting|sglang:num_queue_reqs|tgi_queue_size"})'
KV_CACHE = 'max({__name__=~"vllm:kv_cache_usage_perc|sglang:token_usage"})'


def _quantile(percent: int, histogram: str, labels: str = "", by: str = "le") -> str:
    return f"histogram_quantile(0.{percent}, sum by ({by}) (rate({histogram}_bucket{labels}{RATE})))"


def _quantiles(histogram: str) -> dict[str, str]:
    return {f"p{percent}": _quantile(percent, histogram) for percent in (50, 99)}


COMPLETED_SHARE = Panel("Completed", "percentunit", {"completed": f"{COMPLETED} / ({REQUESTS} > 0)"}, "stat", 4,
                        "Share of the requests that completed.")  # fmt: skip
REQUEST_RATE = Panel("Requests/s", "reqps", {"requests": REQUESTS}, "stat", 4)
TOKEN_RATE = Panel("Output tokens/s", "short",
                   {"output": f"sum(rate(loadgen_output_tokens_total{{{SELECTED}}}{RATE}))"}, "stat", 4)  # fmt: skip
PER_TOKEN = Panel("J per output token", "joule", {"net": f"{ENERGY} / {TOKENS}"}, "stat", 4,
                  "Energy attributed to requests, over their output tokens.")  # fmt: skip
PER_TOKEN_BY_WORKLOAD = Panel(
    "Joules per output token, by model and workload", "joule",
    {"{{model}} {{workload}}":
     f"sum by (model, workload) (rate(loadgen_attributed_energy_joules_total{{{SELECTED}}}{RATE}))"
     f" / (sum by (model, workload) (rate(loadgen_output_tokens_total{{{SELECTED}}}{RATE})) > 0)"},
)  # fmt: skip
QUEUE = Panel("Requests running and waiting", "short", {"running": RUNNING, "waiting": WAITING})
POWER = Panel("Power", "watt", {"gpu {{gpu}}": "sum by (gpu) (loadgen_gpu_power_watts)"})

SERVING_PANELS = [
    COMPLETED_SHARE,
    REQUEST_RATE,
    TOKEN_RATE,
    Panel("TTFT p99, engine", "s", {"p99": _quantile(99, "vllm:time_to_first_token_seconds")}, "stat", 4),
    Panel("ITL p99, engine", "s", {"p99": _quantile(99, "vllm:inter_token_latency_seconds")}, "stat", 4),
    PER_TOKEN,
    Panel("Requests by outcome", "reqps",
          {"{{outcome}}": f"sum by (outcome) (rate(loadgen_requests_total{{{SELECTED}}}{RATE}))"}),
    Panel("Tokens per second, engine", "short",
          {"input": f"sum(rate(vllm:prompt_tokens_total{RATE}))",
           "output": f"sum(rate(vllm:generation_tokens_total{RATE}))"}),
    Panel("Time to first token (TTFT), engine", "s", _quantiles("vllm:time_to_first_token_seconds")),
    Panel("Time between tokens (ITL), engine", "s", _quantiles("vllm:inter_token_latency_seconds")),
    Panel("End to end (E2E), engine", "s", _quantiles("vllm:e2e_request_latency_seconds")),
    Panel("Time to first token by workload, p99 from spans", "s",
          {"{{workload}}": _quantile(99, "loadgen_request_ttft_seconds", f"{{{SELECTED}}}", "le, workload")}),
    QUEUE,
    Panel("KV cache in use", "percentunit", {"used": KV_CACHE}),
    POWER,
    PER_TOKEN_BY_WORKLOAD,
    Panel("Output tokens without a span", "short",
          {"foreign": f"sum(rate(loadgen_foreign_output_tokens_total{RATE}))"}, "timeseries", 8),
    Panel("Spans dropped", "short",
          {"{{reason}}": f"sum by (reason) (rate(loadgen_spans_dropped_total{RATE}))"}, "timeseries", 8),
    Panel("Settlement lag", "s", {"lag": "max(loadgen_settlement_lag_seconds)"}, "timeseries", 8,
          "Age of the energy that the accounts reach."),
]  # fmt: skip

ENERGY_PANELS = [
    COMPLETED_SHARE,
    TOKEN_RATE,
    PER_TOKEN,
    Panel("J per request", "joule", {"net": f"{ENERGY} / ({REQUESTS} > 0)"}, "stat", 4),
    Panel("Idle share", "percentunit", {"idle": f"sum(rate(loadgen_idle_energy_joules_total{RATE})) / ({GROSS} > 0)"},
          "stat", 4),
    Panel("Attribution coverage", "percentunit", {"coverage": "min(loadgen_energy_attribution_coverage_ratio)"},
          "stat", 4, "Output tokens with a span, over the engine's own count."),
    POWER,
    QUEUE,
    Panel("Power by account", "watt",
          {"prefill": f'sum(rate(loadgen_attributed_energy_joules_total{{{SELECTED},account="prefill"}}{RATE}))',
           "decode": f'sum(rate(loadgen_attributed_energy_joules_total{{{SELECTED},account="decode"}}{RATE}))',
           "idle": f"sum(rate(loadgen_idle_energy_joules_total{RATE}))",
           "unattributed": f"sum(rate(loadgen_unattributed_energy_joules_total{RATE}))"},
          "timeseries", 12, "Up to the watermark, which is some seconds behind."),
    PER_TOKEN_BY_WORKLOAD,
    Panel("Prefill and decode, joules per output token", "joule",
          {"prefill": _per_token("prefill"), "decode": _per_token("decode")}),
    Panel("Joules per request, distribution", "joule",
          {"{{le}}": f"sum by (le) (increase(loadgen_request_energy_joules_bucket{{{SELECTED}}}{RATE}))"}, "heatmap"),
    Panel("Conservation: counter − accounts", "joule",
          {"difference": "sum(loadgen_gpu_energy_joules_total) - sum(loadgen_attributed_energy_joules_total)"
           " - sum(loadgen_idle_energy_joules_total) - sum(loadgen_unattributed_energy_joules_total)"},
          "timeseries", 8, "0 at every scrape, except for floating-point rounding."),
    Panel("Carbon", "massg",
          {"g CO2e per 1000 output tokens": f"1000 * {ENERGY} / {TOKENS} / {JOULES_PER_KWH} * $carbon_g_per_kwh"},
          "timeseries", 8),
    Panel("Cost of energy", "short",
          {"per million output tokens": f"1e6 * {ENERGY} / {TOKENS} / {JOULES_PER_KWH} * $price_per_kwh"},
          "timeseries", 8),
]  # fmt: skip


LABELLED = SELECTED + ',$label=~"$value"'
"""Requests whose label, which the variable `label` names, has a selected value. `$label` stands for its name, so that a
label of the user's choosing (`loadgen sidecar --label`) needs no dashboard of its own."""
LABEL_ENERGY = f"rate(loadgen_attributed_energy_joules_total{{{LABELLED}}}{RATE})"
LABEL_TOKENS = f"rate(loadgen_output_tokens_total{{{LABELLED}}}{RATE})"
LABEL_REQUESTS = f"rate(loadgen_requests_total{{{LABELLED}}}{RATE})"
LABEL_RANGE = f"increase(loadgen_attributed_energy_joules_total{{{LABELLED}}}[$__range])"


def _by_label(query: str) -> dict[str, str]:
    """Return a query by legend; requests without a value are `(none)`, which Grafana would show as nothing."""
    return {"{{$label}}": f'label_replace({query}, "$label", "(none)", "$label", "")'}


LABEL_PANELS = [
    Panel("Power of the selected requests", "watt", {"selected": f"sum({LABEL_ENERGY})"}, "stat", 6),
    Panel("J per output token", "joule", {"net": f"sum({LABEL_ENERGY}) / (sum({LABEL_TOKENS}) > 0)"}, "stat", 6),
    Panel("Energy in the range", "joule", {"energy": f"sum({LABEL_RANGE})"}, "stat", 6),
    Panel("Cost of energy in the range", "short",
          {"cost": f"sum({LABEL_RANGE}) / {JOULES_PER_KWH} * $price_per_kwh"}, "stat", 6),
    Panel("Power by $label, idle and unattributed", "watt",
          _by_label(f"sum by ($label) ({LABEL_ENERGY})")
          | {"idle": f"sum(rate(loadgen_idle_energy_joules_total{RATE}))",
             "unattributed": f"sum(rate(loadgen_unattributed_energy_joules_total{RATE}))"},
          note="With all values, models and workloads selected, the sum is what the meter counted."),
    Panel("Joules per output token by $label", "joule",
          _by_label(f"sum by ($label) ({LABEL_ENERGY}) / (sum by ($label) ({LABEL_TOKENS}) > 0)")),
    Panel("Energy in the range by $label", "joule", _by_label(f"sum by ($label) ({LABEL_RANGE})"), "bargauge"),
    Panel("Measured energy over a bill by output tokens", "short",
          _by_label(f"(sum by ($label) ({LABEL_ENERGY}) / scalar(sum({LABEL_ENERGY})))"
                    f" / (sum by ($label) ({LABEL_TOKENS}) / scalar(sum({LABEL_TOKENS})) > 0)"),
          note="1: a bill by output tokens would be right. 2: it would be half of what was measured."),
    Panel("Joules per request by $label", "joule",
          _by_label(f"sum by ($label) ({LABEL_ENERGY}) / (sum by ($label) ({LABEL_REQUESTS}) > 0)")),
    Panel("Requests/s by $label", "reqps", _by_label(f"sum by ($label) ({LABEL_REQUESTS})")),
    Panel("Output tokens/s by $label", "short", _by_label(f"sum by ($label) ({LABEL_TOKENS})")),
    Panel("Carbon by $label, g CO2e per hour", "massg",
          _by_label(f"sum by ($label) ({LABEL_ENERGY}) * 3600 / {JOULES_PER_KWH} * $carbon_g_per_kwh")),
]  # fmt: skip


def _panel(number: int, panel: Panel, x: int, y: int, height: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.note,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": height},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {"calculate": False, "yAxis": {"unit": "joule"}} if panel.kind == "heatmap" else {},
        "targets": [
            {
                "refId": chr(ord("A") + k),
                "datasource": SOURCE,
                "expr": query,
                "legendFormat": legend,
                "format": "heatmap" if panel.kind == "heatmap" else "time_series",
                "instant": "$__range" in query,
                "range": "$__range" not in query,
            }
            for k, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _rows(panels: list[Panel]) -> list[dict[str, Any]]:
    """Place the panels left to right, then down, in 24 columns."""
    placed, x, y, height = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > 24:
            x, y = 0, y + height
        height = 4 if panel.kind == "stat" else 8
        placed.append(_panel(number, panel, x, y, height))
        x += panel.width
    return placed


def _source() -> dict[str, Any]:
    """Return the variable that SOURCE names: any Prometheus that Grafana has, at first its default one."""
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1}


def _choice(name: str, label: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values(loadgen_requests_total, {name})",
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all", "selected": True},
    }


def _label() -> list[dict[str, Any]]:
    """Return the variable that names a label of the attributed energy, and that of its values."""
    energy = "loadgen_attributed_energy_joules_total"
    names: dict[str, Any] = {
        "name": "label",
        "label": "Label",
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_names({energy})",
        "regex": "/^(?!(__name__|account|instance|job)$).*$/",
        "refresh": 2,
        "sort": 1,
        "current": {"text": "workload", "value": "workload", "selected": True},
    }
    return [names, _choice("value", "Value") | {"query": f"label_values({energy}, $label)"}]


def _number(name: str, label: str, value: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "textbox",
        "query": value,
        "current": {"text": value, "value": value, "selected": True},
    }


def dashboard(uid: str, title: str, panels: list[Panel], variables: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    numbers = [
        _number("carbon_g_per_kwh", "g CO2e per kWh", "400"),
        _number("price_per_kwh", "price per kWh", "0.20"),
    ]
    return {
        "uid": uid,
        "title": title,
        "tags": ["loadgen"],
        "timezone": "browser",
        "editable": False,
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "links": [
            {"type": "dashboards", "title": "loadgen", "tags": ["loadgen"], "includeVars": True, "keepTime": True}
        ],
        "templating": {
            "list": [_source(), *variables, _choice("model", "Model"), _choice("workload", "Workload"), *numbers]
        },
        "panels": _rows(panels),
    }


DASHBOARDS = {
    "serving.json": dashboard("loadgen-serving", "Serving", SERVING_PANELS),
    "energy-by-label.json": dashboard("loadgen-labels", "Energy by label", LABEL_PANELS, _label()),
    "energy-per-token.json": dashboard("loadgen-energy", "Energy per token", ENERGY_PANELS),
}

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, board in DASHBOARDS.items():
        (FOLDER / name).write_text(json.dumps(board, indent=1, ensure_ascii=False) + "\n")
