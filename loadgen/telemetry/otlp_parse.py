"""Parses OTLP trace protobuf into request spans. Pure: bytes in, frozen spans out.

These senders are understood: vLLM and TensorRT-LLM (span `llm_request`, attributes `gen_ai.*`), SGLang (its span of a
whole request, `gen_ai.*`), TGI (its router's spans `generate`, `chat_completions`, ..., whose durations are Rust's
debug text) and clients (`gen_ai.*`; loadgen's own have `loadgen.workload`).
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, NamedTuple

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from loadgen.telemetry.span_labels import LabelSource
from loadgen.telemetry.traceparent import SPAN_BYTES, TRACE_BYTES
from loadgen.units import NS_PER_S

Attributes = Mapping[str, str | int | float | bool]

MAX_SPAN_TOKENS = 100_000_000
MAX_DURATION_NS = 24 * 3600 * NS_PER_S
MAX_TEXT = 128
"""Longer text in an attribute is cut."""
MAX_ID = 512
"""A request's id may be as long before what is not the client's is taken off it."""

REQUEST_ID = ("gen_ai.request.id",)
INPUT_TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
OUTPUT_TOKENS = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
CACHED_TOKENS = ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cached_tokens")
FIRST_TOKEN_S = ("gen_ai.latency.time_to_first_token", "gen_ai.server.time_to_first_token")
PREFILL_S = ("gen_ai.latency.time_in_model_prefill",)
"""SGLang's includes the queue."""
QUEUE_S = ("gen_ai.latency.time_in_queue",)
MODEL = ("gen_ai.response.model", "gen_ai.request.model")
WORKLOAD = ("loadgen.workload",)
SESSION = ("gen_ai.conversation.id", "session.id")
SERVER_ADDRESS, SERVER_PORT = "server.address", "server.port"
TGI_TIMES = ("validation_time", "queue_time", "inference_time", "time_per_token")
"""Names of each attribute, the current convention's first."""

_READ_ATTRIBUTES = {
    **dict.fromkeys((*INPUT_TOKENS, *OUTPUT_TOKENS, *CACHED_TOKENS, *FIRST_TOKEN_S, *PREFILL_S, *QUEUE_S, *MODEL,
                     *WORKLOAD, *SESSION, SERVER_ADDRESS, SERVER_PORT, *TGI_TIMES), MAX_TEXT),
    **dict.fromkeys(REQUEST_ID, MAX_ID),
}  # fmt: skip
"""Attributes of a request's span that are read, with the longest text of each."""
_INSTANCE = ("service.instance.id", "service.name")
"""Attributes of a resource that may name the engine, the surest first."""
TGI_FIRST_TOKEN = "send_generation"
"""TGI's span of a token that it hands to the stream."""
TGI_PARTS = frozenset(
    (TGI_FIRST_TOKEN, "infer", "batch", "prefill", "decode", "filter_batch", "filter_send_generations")
)
"""TGI's spans of tokens and steps, the bulk of what it sends: no requests, and dropped by name."""
ENERGY_SPAN = "loadgen.energy"
"""Name of the sidecar's own span of a request's energy, which a collector may send back: no request."""
SPAN_KIND_INTERNAL, SPAN_KIND_CLIENT = 1, 3
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
    session: str | None = None
    """Conversation that it is a turn of."""
    labels: dict[str, str] = {}
    """Labels of the user's choosing that its span has a value of."""
    engine_names: tuple[str, ...] = ()
    """Names that its sender gives of the engine, the surest first: the engine's own service.instance.id and
    service.name, then server.address:server.port."""
    ok: bool
    trace_id: bytes = b""
    """Empty, as the other ids, when the sender gave none that is valid."""
    span_id: bytes = b""
    parent_id: bytes = b""
    """Id of the span above it; empty for the root of a trace."""

    def moved(self, to: Callable[[int], int]) -> "RequestSpan":
        """Return the span on another clock. A clock that stepped meanwhile cannot reverse its phases."""
        start_ns = to(self.start_ns)
        prefill_ns = max(to(self.prefill_ns), start_ns)
        first_ns = None if self.first_token_ns is None else max(to(self.first_token_ns), prefill_ns)
        end_ns = max(to(self.end_ns), first_ns or prefill_ns)
        return msgspec.structs.replace(
            self, start_ns=start_ns, prefill_ns=prefill_ns, first_token_ns=first_ns, end_ns=end_ns
        )


class SpanLabels(NamedTuple):
    """Labels of a span that is no request, such as that of the HTTP server or gateway that a request went through."""

    trace_id: bytes
    start_ns: int
    end_ns: int
    labels: dict[str, str]

    def moved(self, to: Callable[[int], int]) -> "SpanLabels":
        """Return them on another clock."""
        return self._replace(start_ns=to(self.start_ns), end_ns=to(self.end_ns))


class Parsed(NamedTuple):
    spans: list[RequestSpan]
    dropped: Counter[str]
    """Reason -> spans: `malformed`, `not_a_request` (an engine also traces its start-up)."""
    first_tokens: dict[bytes, int]
    """Trace -> start of TGI's earliest span of a token in these bytes, in ns of the sender's wall clock."""
    span_labels: list[SpanLabels]
    """Labels of spans that are no requests: they are those of the requests of their trace."""


def parse_spans(body: bytes, labels: Mapping[str, str] | None = None) -> Parsed:
    """Parse an ExportTraceServiceRequest. Raises MalformedError when it is not one; single bad spans are counted.

    labels: attribute of each label of the user's choosing.
    """
    source = LabelSource(labels) if labels else None
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError as err:
        raise MalformedError("not an OTLP trace export in protobuf") from err
    spans: list[RequestSpan] = []
    dropped: Counter[str] = Counter()
    first_tokens: dict[bytes, int] = {}
    span_labels: list[SpanLabels] = []
    wanted = source.attributes.union(_INSTANCE) if source else _INSTANCE
    sent = ((span, resource, names) for sender in request.resource_spans
            for resource in [{pair.key: pair.value for pair in sender.resource.attributes if pair.key in wanted}]
            for names in [_names_of(resource)]
            for scope in sender.scope_spans for span in scope.spans)  # fmt: skip
    for span, resource, names in sent:
        name = span.name
        if name in TGI_PARTS and span.kind == SPAN_KIND_INTERNAL:
            dropped["not_a_request"] += 1
            if name == TGI_FIRST_TOKEN and (start_ns := span.start_time_unix_nano):
                trace_id = span.trace_id
                first_tokens[trace_id] = min(start_ns, first_tokens.get(trace_id, start_ns))
            continue
        if name == ENERGY_SPAN:
            dropped["not_a_request"] += 1
            continue
        attributes = _attributes(span)
        named = name == "llm_request" or "time_per_token" in attributes
        if not named and _REQUEST_ATTRIBUTES.isdisjoint(attributes):
            if source and _id(span.trace_id, TRACE_BYTES) and (values := source.read(span)):
                start_ns, end_ns = int(span.start_time_unix_nano), int(span.end_time_unix_nano)
                span_labels.append(SpanLabels(span.trace_id, start_ns, end_ns, values))
                continue
            dropped["not_a_request"] += 1
            continue
        try:
            parsed = _request_span(span, attributes, names)
            spans.append(msgspec.structs.replace(parsed, labels=source.read(span, resource)) if source else parsed)
        except MalformedError:
            dropped["malformed"] += 1
    first_tokens = {trace_id: first_ns for trace_id, first_ns in first_tokens.items() if _id(trace_id, TRACE_BYTES)}
    return Parsed(spans, dropped, first_tokens, span_labels)


def _id(value: bytes, size: int) -> bytes:
    """Return an id of a trace or span; empty if it is of another size, or all zeros."""
    return value if len(value) == size and any(value) else b""


def _attributes(span: Any) -> dict[str, str | int | float | bool]:
    """Return the attributes that a request span is read from. Values that are lists or maps are left out."""
    attributes: dict[str, str | int | float | bool] = {}
    for pair in span.attributes:
        key = pair.key
        if longest := _READ_ATTRIBUTES.get(key):
            value = pair.value
            if (kind := value.WhichOneof("value")) in _SCALARS:
                scalar = getattr(value, kind)
                attributes[key] = scalar[:longest] if kind == "string_value" else scalar
    return attributes


_SCALARS = frozenset(("string_value", "int_value", "double_value", "bool_value"))


_REQUEST_ATTRIBUTES = frozenset((*OUTPUT_TOKENS, *FIRST_TOKEN_S, *WORKLOAD))
"""One of these is in the span of a request, or it has vLLM's name or TGI's times."""


def _names_of(resource: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the sender of spans."""
    names = (resource[key].string_value[:MAX_TEXT] for key in _INSTANCE if key in resource)
    return tuple(filter(None, names))


def _engine_names(client: bool, attributes: Attributes, sender: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the engine. The sender of a client's span is the client."""
    names = () if client else sender
    address, port = attributes.get(SERVER_ADDRESS), attributes.get(SERVER_PORT)
    if isinstance(address, str) and address:
        host = f"[{address}]" if ":" in address else address
        names = (*names, (host if port is None else f"{host}:{port}")[:MAX_TEXT])
    return names


def _request_span(span: Any, attributes: Attributes, sender: tuple[str, ...]) -> RequestSpan:
    """sender: its names, by its resource."""
    start_ns, end_ns = int(span.start_time_unix_nano), int(span.end_time_unix_nano)
    if not 0 < start_ns <= end_ns <= start_ns + MAX_DURATION_NS:
        raise MalformedError("ends before it starts, or a day later")
    request_id, client = _text(attributes, REQUEST_ID), span.kind == SPAN_KIND_CLIENT
    trace_id, span_id = _id(span.trace_id, TRACE_BYTES), _id(span.span_id, SPAN_BYTES)
    own_key = (trace_id + span_id).hex() if trace_id and span_id else f"{start_ns}-{end_ns}"
    request = RequestSpan(
        key=join_key(request_id)[:MAX_TEXT] if request_id else own_key,
        request_id=request_id and request_id[:MAX_TEXT],
        client=client,
        start_ns=start_ns,
        prefill_ns=start_ns,
        first_token_ns=None,
        end_ns=end_ns,
        input_tokens=_tokens(attributes, INPUT_TOKENS),
        output_tokens=_tokens(attributes, OUTPUT_TOKENS),
        cached_tokens=_tokens(attributes, CACHED_TOKENS),
        model=_text(attributes, MODEL),
        workload=_text(attributes, WORKLOAD),
        session=_text(attributes, SESSION),
        engine_names=_engine_names(client, attributes, sender),
        ok=span.status.code != STATUS_ERROR,
        trace_id=trace_id,
        span_id=span_id,
        parent_id=_id(span.parent_span_id, SPAN_BYTES),
    )
    if "time_per_token" in attributes:
        return _with_tgi_times(request, attributes)
    return _with_latencies(request, attributes)


_CHOICE = re.compile(r"^\d+_(?=(chat)?cmpl-)")
_WHOLE = re.compile(r"chatcmpl-|resp[-_]")
_PROMPT = re.compile(r"^(?:cmpl|embd|rerank|score)-(.+)-\d+$")
_ADDRESSES = re.compile(r"^___prefill_addr_.+?___decode_addr_[^_]+_(.+)$")


def join_key(request_id: str) -> str:
    """Find the client's X-Request-Id in the engine's id.

    vLLM writes `chatcmpl-ID`, `resp-ID`, and `cmpl-ID-0` for the first prompt of a completion, as for embeddings and
    scores; before that `0_` for the first of several choices. Proxies of its P2pNcclConnector write the addresses of
    both engines before the id.
    """
    if request_id[:1].isdecimal():
        request_id = _CHOICE.sub("", request_id)
    if whole := _WHOLE.match(request_id):  # noqa: SIM108
        request_id = request_id[whole.end() :]
    else:
        request_id = _PROMPT.sub(r"\1", request_id)
    return _ADDRESSES.sub(r"\1", request_id) if request_id.startswith("___") else request_id


def _with_latencies(request: RequestSpan, attributes: Attributes) -> RequestSpan:
    """Add the first token and the beginning of the prefill: after the queue, and as long before the first token as it
    took."""
    first_s, prefill_s = _seconds(attributes, FIRST_TOKEN_S), _seconds(attributes, PREFILL_S)
    queue_s = _seconds(attributes, QUEUE_S)
    first_ns = None if first_s is None else min(request.start_ns + round(first_s * NS_PER_S), request.end_ns)
    prefill_ns = request.start_ns + round((queue_s or 0) * NS_PER_S)
    if first_ns is not None and prefill_s is not None:
        prefill_ns = max(prefill_ns, first_ns - round(prefill_s * NS_PER_S))
    latest_ns = request.end_ns if first_ns is None else first_ns
    return msgspec.structs.replace(request, prefill_ns=min(prefill_ns, latest_ns), first_token_ns=first_ns)


def _with_tgi_times(request: RequestSpan, attributes: Attributes) -> RequestSpan:
    """Add TGI's times. It reports no token count, but its time per token is its inference time over just that count.

    The prefill is in both, so that they do not say when the first token came: its own span does, `send_generation`.
    """
    validation_s, queue_s, inference_s, per_token_s = (
        rust_seconds(str(attributes.get(name, ""))) for name in TGI_TIMES
    )
    if not per_token_s or inference_s is None:
        return request
    prefill_ns = min(request.start_ns + round(((validation_s or 0) + (queue_s or 0)) * NS_PER_S), request.end_ns)
    return msgspec.structs.replace(
        request,
        prefill_ns=prefill_ns,
        output_tokens=request.output_tokens or max(1, round(inference_s / per_token_s)),
    )


_RUST_UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}


def rust_seconds(text: str) -> float | None:
    """Parse the debug text of a Rust Duration: `1.25s`, `345.6ms`, `12µs`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(s|ms|µs|us|ns)", text)
    return float(match[1]) * _RUST_UNITS[match[2]] if match else None


def _first(attributes: Attributes, names: tuple[str, ...]) -> str | int | float | bool | None:
    for name in names:
        if (value := attributes.get(name)) is not None:
            return value
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
