"""Set attributes of the spans and resources of an OTLP export."""

from typing import Any


def set_attribute(holder: Any, key: str, value: Any) -> None:
    """Add an attribute to a span or a resource. A list has texts; a value of another kind is left empty."""
    pair = holder.attributes.add()
    pair.key = key
    match value:
        case list():
            pair.value.array_value.SetInParent()
            for text in value:
                pair.value.array_value.values.add().string_value = text
        case bool():
            pair.value.bool_value = value
        case int():
            pair.value.int_value = value
        case float():
            pair.value.double_value = value
        case str():
            pair.value.string_value = value
