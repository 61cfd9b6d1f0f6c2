"""Labels of a user's choosing, read from a span: an attribute of it, an entry of its baggage, or an attribute of its
resource. Pure.

Baggage is not part of OTLP. A span has it where its sender copied the entries to attributes of the same name, as
OpenTelemetry's baggage span processors do, or where it recorded the `baggage` header of an HTTP request.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from loadgen.errors import LoadgenError

MAX_LABELS = 8
"""Labels that can be chosen."""
MAX_STATED = 1000
"""Values of a label that can be stated."""
MAX_VALUE = 64
"""Characters of a value; a longer one is shown as `other`."""
MAX_ATTRIBUTE = 128
MAX_BAGGAGE = 8192
"""Characters of a header of baggage, the limit that W3C recommends; a longer one is not read."""
OTHER = "other"
"""Value of a label whose own cannot be shown."""
BAGGAGE = "http.request.header.baggage"

RESERVED = frozenset(
    ("model", "workload", "account", "day", "outcome", "tokens", "gpu", "uuid", "source", "reason", "engine", "role",
     "le", "quantile", "job", "instance")
)  # fmt: skip
"""Labels of the sidecar's own metrics, of bills and of Prometheus."""

_ONE_REQUEST = re.compile(
    r"(request|response|conversation|session|trace|span|parent|correlation|transaction|message|call|thread|event|run)"
    r"[._-]?id$|traceparent$|tracestate$",
    re.ASCII | re.IGNORECASE,
)
_NOT_SHOWN = re.compile(
    r"(authorization|cookie|password|secret|api[._-]?key|access[._-]?token|auth[._-]?token)$"
    r"|^gen_ai\.(prompt|completion|input\.messages|output\.messages|system_instructions)|header\.baggage$",
    re.ASCII | re.IGNORECASE,
)


def parse_labels(texts: Sequence[str]) -> tuple[dict[str, str], dict[str, frozenset[str]]]:
    """Return the attribute of each label of `NAME=ATTRIBUTE` or `NAME=ATTRIBUTE:VALUE,VALUE`, and the values of those
    that state them. Raises LoadgenError for what cannot be a label."""
    labels: dict[str, str] = {}
    stated: dict[str, frozenset[str]] = {}
    for text in texts:
        name, _, source = (part.strip() for part in text.partition("="))
        attribute, colon, values = source.partition(":")
        fault = name_fault(name) or _attribute_fault(attribute)
        if colon:
            stated[name] = frozenset(value.strip() for value in values.split(","))
            fault = fault or _values_fault(stated[name])
        if name in labels:
            fault = f"{name} is the name of two labels"
        if fault:
            raise LoadgenError(f"--label {text[:MAX_ATTRIBUTE]!r}: {fault}")
        labels[name] = attribute
    if len(labels) > MAX_LABELS:
        raise LoadgenError(f"{len(labels)} times --label: at most {MAX_LABELS} labels can be chosen")
    return labels, stated


def name_fault(name: str) -> str | None:
    """Return what is wrong with the name of a label; None if nothing is."""
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]{0,63}", name):
        return "expected a name of letters, digits and _, then = and an attribute: tenant=http.request.header.x-tenant"
    if name in RESERVED:
        return f"{name} is the name of a label that metrics or bills have already; choose another"
    return None


def _attribute_fault(attribute: str) -> str | None:
    if not attribute or len(attribute) > MAX_ATTRIBUTE or not attribute.isprintable():
        return "expected the name of an attribute after =, as in tenant=http.request.header.x-tenant"
    if _ONE_REQUEST.search(attribute):
        return f"{attribute} is an id with a value of its own for each request or session, too many for a label"
    if _NOT_SHOWN.search(attribute):
        return f"{attribute} is a secret or a text, which a label would publish"
    return None


def _values_fault(values: Collection[str]) -> str | None:
    if len(values) > MAX_STATED:
        return f"{len(values):,} values, of which at most {MAX_STATED:,} can be stated"
    if not all(value and value == shown_value([value]) for value in values):
        return f"expected values after the :, with commas between, each printable and at most {MAX_VALUE} characters"
    return None


class LabelSource:
    """The attributes that labels are read from."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        """labels: name -> attribute."""
        self._labels = dict(labels)
        self.attributes = frozenset((*self._labels.values(), BAGGAGE))

    def read(self, span: Any, resource: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Return the values that a span has, by label. Of several places the first with a value counts: the span's
        attributes, its baggage, its resource if the attributes of that are stated."""
        attributes = {pair.key: pair.value for pair in span.attributes if pair.key in self.attributes}
        baggage = _baggage(_texts(attributes[BAGGAGE])) if BAGGAGE in attributes else {}
        of_resource = resource or {}
        values: dict[str, str] = {}
        for name, attribute in self._labels.items():
            places = (
                _texts(attributes.get(attribute)),
                baggage.get(attribute, ()),
                _texts(of_resource.get(attribute)),
            )
            if texts := next(filter(None, places), None):
                values[name] = shown_value(texts)
        return values


def shown_value(texts: Iterable[str]) -> str:
    """Return the value as labels show it.

    Of several that differ (a header sent twice), and of one that is too long or not printable, it is `other`: whatever
    is cut or replaced could be the value of another tenant.
    """
    values = set(texts)
    value = values.pop()
    return value if not values and len(value) <= MAX_VALUE and value.isprintable() else OTHER


def agreed_labels(labels: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the labels that spans of one request have together; one on which they differ is `other`."""
    agreed: dict[str, str] = {}
    for name, value in (item for values in labels for item in values.items()):
        agreed[name] = value if agreed.get(name, value) == value else OTHER
    return agreed


def _texts(value: Any) -> tuple[str, ...]:
    """Return an attribute's value as text, or the texts of a list of them; none for blanks, maps and fractions."""
    match value.WhichOneof("value") if value is not None else None:
        case "string_value":
            text = value.string_value.strip()
            return (text,) if text else ()
        case "int_value":
            return (str(value.int_value),)
        case "bool_value":
            return (str(value.bool_value).lower(),)
        case "array_value":
            texts = (item.string_value.strip() for item in value.array_value.values)
            return tuple(text for text in texts if text)
    return ()


def _baggage(headers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the values of each key in headers of W3C baggage: `tenant=a;property,user=b`, percent-encoded."""
    header = ",".join(headers)
    entries: dict[str, tuple[str, ...]] = {}
    for entry in header.split(",") if len(header) <= MAX_BAGGAGE else ():
        key, equals, value = entry.partition(";")[0].partition("=")
        if equals and (text := unquote(value.strip()).strip()):
            entries[key.strip()] = (*entries.get(key.strip(), ()), text)
    return entries
