"""Parses OTLP trace protobuf into request spans. Pure: bytes in, frozen spans out.

Three senders are understood: vLLM (span `llm_request`, attributes `gen_ai.*`), TGI (its router's `generate` spans,
whose durations are Rust's debug text) and loadgen's own clients (`gen_ai.*`, and `loadgen.workload`).
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, NamedTuple

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from loadgen.units import NS_PER_S

Attributes = Mapping[str, str | int | float | bool]

MAX_SPAN_TOKENS = 100_000_000
MAX_DURATION_NS = 24 * 3600 * NS_PER_S
MAX_TEXT = 128
"""Longer text in an attribute is cut."""

REQUEST_ID = ("gen_ai.request.id",)
INPUT_TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
OUTPUT_TOKENS = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
CACHED_TOKENS = ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cached_tokens")
FIRST_TOKEN_S = ("gen_ai.latency.time_to_first_token", "gen_ai.server.time_to_first_token")
PREFILL_S = ("gen_ai.latency.time_in_model_prefill",)
MODEL = ("gen_ai.response.model", "gen_ai.request.model")
WORKLOAD = ("loadgen.workload",)
TGI_TIMES = ("validation_time", "queue_time", "inference_time", "time_per_token")
"""Names of each attribute, the current convention's first."""

_READ_ATTRIBUTES = frozenset((*REQUEST_ID, *INPUT_TOKENS, *OUTPUT_TOKENS, *CACHED_TOKENS, *FIRST_TOKEN_S, *PREFILL_S,
                              *MODEL, *WORKLOAD, *TGI_TIMES))  # fmt: skip
SPAN_KIND_CLIENT = 3
STATUS_ERROR = 2


class MalformedError(ValueError):
    """The bytes are not a trace export, or a span contradicts itself."""


class RequestSpan(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request to an engine, as its sender saw it. Instants are in ns of a clock that its owner knows."""

    key: str
    """The same for the client's and the engine's span of one request."""
    request_id: str | None
    client: bool
    """True if the client sent the span, not the engine."""
    start_ns: int
    prefill_ns: int
    """The beginning of its prefill, as near as the sender says; `start_ns` when it does not."""
    first_token_ns: int | None
    end_ns: int
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    model: str | None
    workload: str | None
    ok: bool

    def moved(self, to: Callable[[int], int]) -> "RequestSpan":
        """Return the span on another clock. A clock that stepped meanwhile cannot reverse its phases."""
        start_ns = to(self.start_ns)
        prefill_ns = max(to(self.prefill_ns), start_ns)
        first_ns = None if self.first_token_ns is None else max(to(self.first_token_ns), prefill_ns)
        end_ns = max(to(self.end_ns), first_ns or prefill_ns)
        return msgspec.structs.replace(
            self, start_ns=start_ns, prefill_ns=prefill_ns, first_token_ns=first_ns, end_ns=end_ns
        )


class Parsed(NamedTuple):
    spans: list[RequestSpan]
    dropped: Counter[str]
    """Reason -> spans: `malformed`, `not_a_request` (an engine also traces its start-up)."""


def parse_spans(body: bytes) -> Parsed:
    """Parse an ExportTraceServiceRequest. Raises MalformedError when it is not one; single bad spans are counted."""
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError as err:
        raise MalformedError("not an OTLP trace export in protobuf") from err
    spans: list[RequestSpan] = []
    dropped: Counter[str] = Counter()
    for span in (span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans):
        attributes = _attributes(span)
        named = span.name == "llm_request" or "time_per_token" in attributes
        if not named and _REQUEST_ATTRIBUTES.isdisjoint(attributes):
            dropped["not_a_request"] += 1
            continue
        try:
            spans.append(_request_span(span, attributes))
        except MalformedError:
            dropped["malformed"] += 1
    return Parsed(spans, dropped)


def _attributes(span: Any) -> dict[str, str | int | float | bool]:
    """Return the attributes that a request span is read from. Values that are lists or maps are left out."""
    attributes: dict[str, str | int | float | bool] = {}
    for pair in span.attributes:
        key = pair.key
        if key in _READ_ATTRIBUTES:
            value = pair.value
            if (kind := value.WhichOneof("value")) in _SCALARS:
                scalar = getattr(value, kind)
                attributes[key] = scalar[:MAX_TEXT] if isinstance(scalar, str) else scalar
    return attributes


_SCALARS = frozenset(("string_value", "int_value", "double_value", "bool_value"))


_REQUEST_ATTRIBUTES = frozenset((*OUTPUT_TOKENS, *FIRST_TOKEN_S, *WORKLOAD))
"""One of these is in the span of a request, or it has vLLM's name or TGI's times."""


def _request_span(span: Any, attributes: Attributes) -> RequestSpan:
    start_ns, end_ns = int(span.start_time_unix_nano), int(span.end_time_unix_nano)
    if not 0 < start_ns <= end_ns <= start_ns + MAX_DURATION_NS:
        raise MalformedError("ends before it starts, or a day later")
    request_id = _text(attributes, REQUEST_ID)
    own_key = (bytes(span.trace_id[:16]) + bytes(span.span_id[:8])).hex()
    request = RequestSpan(
        key=join_key(request_id) if request_id else own_key,
        request_id=request_id,
        client=span.kind == SPAN_KIND_CLIENT,
        start_ns=start_ns,
        prefill_ns=start_ns,
        first_token_ns=None,
        end_ns=end_ns,
        input_tokens=_tokens(attributes, INPUT_TOKENS),
        output_tokens=_tokens(attributes, OUTPUT_TOKENS),
        cached_tokens=_tokens(attributes, CACHED_TOKENS),
        model=_text(attributes, MODEL),
        workload=_text(attributes, WORKLOAD),
        ok=span.status.code != STATUS_ERROR,
    )
    if "time_per_token" in attributes:
        return _with_tgi_times(request, attributes)
    first_s, prefill_s = _seconds(attributes, FIRST_TOKEN_S), _seconds(attributes, PREFILL_S)
    if first_s is None:
        return request
    first_ns = min(start_ns + round(first_s * NS_PER_S), end_ns)
    prefill_ns = start_ns if prefill_s is None else max(start_ns, first_ns - round(prefill_s * NS_PER_S))
    return msgspec.structs.replace(request, prefill_ns=prefill_ns, first_token_ns=first_ns)


def join_key(request_id: str) -> str:
    """Find the client's X-Request-Id in the engine's id: vLLM writes `chatcmpl-ID`, and `cmpl-ID-0` for completions."""
    if request_id.startswith("chatcmpl-"):
        return request_id.removeprefix("chatcmpl-")
    return re.sub(r"^cmpl-(.+)-\d+$", r"\1", request_id)


def _with_tgi_times(request: RequestSpan, attributes: Attributes) -> RequestSpan:
    """Add TGI's times. It reports no token count, but its time per token is its inference time over just that count."""
    validation_s, queue_s, inference_s, per_token_s = (
        rust_seconds(str(attributes.get(name, ""))) for name in TGI_TIMES
    )
    if not per_token_s or inference_s is None:
        return request
    prefill_ns = min(request.start_ns + round(((validation_s or 0) + (queue_s or 0)) * NS_PER_S), request.end_ns)
    return msgspec.structs.replace(
        request,
        prefill_ns=prefill_ns,
        first_token_ns=min(prefill_ns + round(per_token_s * NS_PER_S), request.end_ns),
        output_tokens=request.output_tokens or max(1, round(inference_s / per_token_s)),
    )


_RUST_UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}


def rust_seconds(text: str) -> float | None:
    """Parse the debug text of a Rust Duration: `1.25s`, `345.6ms`, `12µs`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(s|ms|µs|us|ns)", text)
    return float(match[1]) * _RUST_UNITS[match[2]] if match else None


def _first(attributes: Attributes, names: tuple[str, ...]) -> str | int | float | bool | None:
    for name in names:
        if name in attributes:
            return attributes[name]
    return None


def _text(attributes: Attributes, names: tuple[str, ...]) -> str | None:
    value = _first(attributes, names)
    return value if isinstance(value, str) and value and value.isprintable() else None


def _tokens(attributes: Attributes, names: tuple[str, ...]) -> int | None:
    """Return a token count; some exporters write whole numbers as floats."""
    match _first(attributes, names):
        case None | bool() | str():
            return None
        case value if isfinite(value) and 0 <= value <= MAX_SPAN_TOKENS:
            return int(value)
    raise MalformedError("a token count out of range")


def _seconds(attributes: Attributes, names: tuple[str, ...]) -> float | None:
    match _first(attributes, names):
        case None | bool() | str():
            return None
        case value if isfinite(value) and 0 <= value <= MAX_DURATION_NS / NS_PER_S:
            return float(value)
    raise MalformedError("a duration out of range")
