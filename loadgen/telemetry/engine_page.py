"""The metrics pages of engines: which names each of them uses, what they mean, and how a page becomes a sample. Pure.

Sources: vLLM 0.20.2 v1/metrics/loggers.py; SGLang srt/metrics/collector.py; TensorRT-LLM metrics/collector.py; LMDeploy
metrics/loggers.py; TGI 3.3.4 router; llama.cpp tools/server; Dynamo's metrics catalog 1.6; NVIDIA's page for NIM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import NamedTuple


class EngineNames(NamedTuple):
    """The names that one engine uses for the fields of a sample, without its prefix; the first one on a page counts.

    Two fields are not of a sample: `computed_tokens` are prompt tokens without the cached ones, and `in_flight` are the
    requests running and waiting together.
    """

    engine: str
    prefix: str
    fields: Mapping[str, tuple[str, ...]]
    zero_until_counted: frozenset[str] = frozenset()
    """Counters that the page lacks until they grow, although it has the other ones."""


ENGINES = (
    EngineNames(
        "vLLM",
        "vllm:",
        {
            "iterations": ("iteration_tokens_total_count",),
            "prompt_tokens": ("prompt_tokens_total",),
            "cached_tokens": ("prompt_tokens_cached_total", "prefix_cache_hits_total", "gpu_prefix_cache_hits_total"),
            "generation_tokens": ("generation_tokens_total",),
            "running": ("num_requests_running",),
            "waiting": ("num_requests_waiting",),
            "preemptions": ("num_preemptions_total",),
            "drafts": ("spec_decode_num_drafts_total",),
            "draft_tokens": ("spec_decode_num_draft_tokens_total",),
            "accepted_tokens": ("spec_decode_num_accepted_tokens_total",),
            "kv_cache_usage": ("kv_cache_usage_perc", "gpu_cache_usage_perc"),
        },
    ),
    EngineNames(
        "SGLang",
        "sglang:",
        {
            "prompt_tokens": ("prompt_tokens_total",),
            "cached_tokens": ("cached_tokens_total",),
            "generation_tokens": ("generation_tokens_total",),
            "running": ("num_running_reqs",),
            "waiting": ("num_queue_reqs",),
            "preemptions": ("num_retracted_requests_total",),
            "kv_cache_usage": ("token_usage",),
        },
        zero_until_counted=frozenset({"cached_tokens"}),
    ),
    EngineNames(
        "TensorRT-LLM",
        "trtllm_",
        {
            "prompt_tokens": ("prompt_tokens_total",),
            "cached_tokens": (
                "prompt_cached_tokens_per_request_sum",
                "prompt_cached_tokens_sum",
                "prompt_cached_tokens_total",
            ),
            "generation_tokens": ("generation_tokens_total",),
            "running": ("num_requests_running", "num_active_requests"),
            "waiting": ("num_requests_waiting",),
            "kv_cache_usage": ("kv_cache_utilization",),
        },
    ),
    EngineNames(
        "LMDeploy",
        "lmdeploy:",
        {
            "prompt_tokens": ("prompt_tokens_total",),
            "generation_tokens": ("generation_tokens_total",),
            "running": ("num_requests_running",),
            "waiting": ("num_requests_waiting",),
            "kv_cache_usage": ("gpu_cache_usage_perc",),
        },
    ),
    EngineNames(
        "TGI",
        "tgi_",
        {
            "prompt_tokens": ("request_input_length_sum",),
            "generation_tokens": ("request_generated_tokens_sum",),
            "running": ("batch_current_size",),
            "waiting": ("queue_size",),
        },
    ),
    EngineNames(
        "llama.cpp",
        "llamacpp:",
        {
            "computed_tokens": ("prompt_tokens_total",),
            "cached_tokens": ("prompt_tokens_cached_total",),
            "generation_tokens": ("tokens_predicted_total",),
            "iterations": ("n_decode_total",),
            "running": ("requests_processing",),
            "waiting": ("requests_deferred",),
            "kv_cache_usage": ("kv_cache_usage_ratio",),
        },
    ),
    EngineNames(
        "Transformers",
        "transformers:",
        {
            "iterations": ("iterations_total",),
            "prompt_tokens": ("prompt_tokens_total",),
            "generation_tokens": ("generation_tokens_total",),
            "running": ("num_requests_running",),
            "waiting": ("num_requests_waiting",),
        },
    ),
    EngineNames(
        "Dynamo",
        "dynamo_frontend_",
        {
            "prompt_tokens": ("input_sequence_tokens_sum",),
            "cached_tokens": ("cached_tokens_sum",),
            "generation_tokens": ("output_tokens_total",),
            "in_flight": ("active_requests", "inflight_requests"),
            "waiting": ("queued_requests",),
        },
    ),
    EngineNames(
        "NIM",
        "",
        {
            "prompt_tokens": ("prompt_tokens_total",),
            "generation_tokens": ("generation_tokens_total",),
            "running": ("num_requests_running",),
            "waiting": ("num_requests_waiting",),
            "kv_cache_usage": ("gpu_cache_usage_perc",),
        },
    ),
)
"""Engines in order of precedence: the page of a worker may also have the names of the system around it."""


class EnginePage(NamedTuple):
    """A page that is understood. `values` are the fields of a sample; empty before the engine has counted anything."""

    engine: str
    values: dict[str, float]


def _line_pattern(names: EngineNames) -> re.Pattern[bytes]:
    """Return the pattern of the engine's lines. It begins with literal bytes, which are searched for fast.

    Libraries differ in the colon after the prefix and in the suffix of counters.
    """
    ends = sorted({name.removesuffix("_total") for alternatives in names.fields.values() for name in alternatives})
    return re.compile(
        rb"\n" + _prefix_pattern(names) + rb"(" + "|".join(ends).encode() + rb")(?:_total)?"
        rb'(\{(?:[^"}\n]|"(?:[^"\\\n]|\\.)*+")*+\})?[ \t]++'
        rb"([-+]?(?:\d++\.?\d*+|\.\d++)(?:[eE][-+]?\d++)?)(?=\s|\Z)"
    )


def _prefix_pattern(names: EngineNames) -> bytes:
    return names.prefix[:-1].encode() + rb"[:_]" if names.prefix else b""


_LINES = {names.engine: _line_pattern(names) for names in ENGINES}
_NAMED = {names.engine: re.compile(rb"\n(?:# (?:HELP|TYPE) )?" + _prefix_pattern(names)) for names in ENGINES}
_SAME_VALUE = re.compile(rb'[{,](?:tp|pp)_rank="[^"]*+"')
"""Ranks that share the layers of one model report the same value."""
_SAMPLE = re.compile(rb"\n[A-Za-z_:]")


def parse_page(page: bytes) -> EnginePage | None:
    """Return the page's values; None if it is not the page of an engine that is known.

    Scans for known lines alone: prometheus_client's parser takes longer, and the page of an engine is long. Series of
    one name (several engines behind one page) are added; a share of the KV cache is that of the fullest.
    """
    page = b"\n" + page
    for names in ENGINES:
        fields = _fields(page, names)
        if fields and (names.prefix or "running" in fields):
            return EnginePage(names.engine, _normalised(fields, names))
    for names in ENGINES:
        if names.prefix and _NAMED[names.engine].search(page):
            return EnginePage(names.engine, {})
    return None


def _fields(page: bytes, names: EngineNames) -> dict[str, float]:
    series: dict[str, dict[bytes, float]] = {}
    for name, labels, text in _LINES[names.engine].findall(page):
        value = float(text)
        if isfinite(value):
            of_name = series.setdefault(name.decode(), {})
            distinct = _SAME_VALUE.sub(b"", labels)
            of_name[distinct] = max(of_name.get(distinct, value), value)
    fields = {}
    for field, alternatives in names.fields.items():
        for name in (name.removesuffix("_total") for name in alternatives):
            if field not in fields and name in series:
                combine = max if field == "kv_cache_usage" else sum
                fields[field] = combine(series[name].values())
    return fields


def _normalised(fields: dict[str, float], names: EngineNames) -> dict[str, float]:
    """Return the fields of a sample: each has one meaning, whatever the engine counts."""
    if "prompt_tokens" in fields:
        fields = dict.fromkeys(names.zero_until_counted, 0.0) | fields
    if "computed_tokens" in fields and "cached_tokens" in fields:
        fields["prompt_tokens"] = fields["computed_tokens"] + fields["cached_tokens"]
    in_flight = fields.pop("in_flight", None)
    if in_flight is not None:
        fields["running"] = max(in_flight - fields.get("waiting", 0.0), 0.0)
    return fields


def unread_reason(page: bytes) -> str | None:
    """Return what a page is that `parse_page` does not understand; None if it is empty, and may still become one."""
    content = page.lstrip()
    if not content:
        return None
    if content[:1] in (b"[", b"{", b'"'):
        return "JSON, not Prometheus text"
    if content[:1] == b"<":
        return "HTML, not Prometheus text"
    if not _SAMPLE.search(b"\n" + content):
        return None if content[:1] == b"#" else "not Prometheus text"
    return "no name of an engine that is known"
