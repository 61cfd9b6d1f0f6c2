"""Bounds the values of labels of a user's choosing: the first that come are shown, any further one as `other`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from loadgen.telemetry.span_labels import OTHER


class LabelSets:
    """The values shown of each label. A value that was shown once is always shown: a counter of it may not end."""

    def __init__(self, names: Iterable[str], max_values: int) -> None:
        self.names = tuple(names)
        self._values: dict[str, set[str]] = {name: set() for name in self.names}
        self._max_values = max_values

    def bounded(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Return the labels as they are shown."""
        return {name: self._shown(name, labels[name]) for name in self.names if name in labels}

    def row(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        """Return a value for each name, empty where there is none: to Prometheus that is no label."""
        return tuple(labels.get(name, "") for name in self.names)

    def _shown(self, name: str, value: str) -> str:
        values = self._values[name]
        if value not in values and value != OTHER:
            if len(values) >= self._max_values:
                return OTHER
            values.add(value)
        return value
