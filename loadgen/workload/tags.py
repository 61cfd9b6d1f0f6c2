"""Tags of requests: names and values of the user's choosing, such as tenant=a, by which a run is summed up."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from loadgen.workload.schedule import Schedule, ScheduledRequest

MAX_TAGS = 8
"""Tags of a request."""
MAX_VALUE = 64
"""Characters of a value."""
MAX_VALUES = 50
"""Values of a tag that a run is summed up by: those of most requests. Further ones are summed as `other`."""
OTHER = "other"

Tags = dict[str, str]


def tags_fault(tags: Mapping[str, str]) -> str | None:
    """Return what is wrong with tags; None if nothing is."""
    if len(tags) > MAX_TAGS:
        return f"{len(tags)} tags: expected at most {MAX_TAGS}"
    for name, value in tags.items():
        if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]{0,63}", name):
            return f"tag {name[:MAX_VALUE]!r}: expected a name of letters, digits and _, such as tenant"
        if not 0 < len(value) <= MAX_VALUE or not value.isprintable():
            return f"tag {name} {value[:MAX_VALUE]!r}: expected a value of 1 to {MAX_VALUE} printable characters"
    return None


def tagged(schedule: "Schedule", tags: Mapping[str, str]) -> "Schedule":
    """Return the schedule with these tags on each request; its own come first. Raises LoadgenError."""
    if fault := tags_fault(tags):
        raise LoadgenError(f"--tag: {fault}")
    if not tags:
        return schedule
    requests = (msgspec.structs.replace(request, tags={**tags, **tags_of(request)}) for request in schedule.requests)
    return replace(schedule, requests=tuple(requests))


def tags_of(request: "ScheduledRequest") -> Tags:
    return {} if request.tags is msgspec.UNSET else request.tags


def rows_by_tag(requests: "Sequence[ScheduledRequest]") -> dict[str, list[int]]:
    """Return the rows of the requests with each tag, by `NAME=VALUE`. The value is empty for requests without the tag:
    the rows of a name are together all rows."""
    if all(request.tags is msgspec.UNSET for request in requests):
        return {}
    tags = [tags_of(request) for request in requests]
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for name in sorted({name for own in tags for name in own}):
        counts = Counter(own[name] for own in tags if name in own)
        shown = {value for value, _ in counts.most_common(MAX_VALUES)}
        for row, own in enumerate(tags):
            value = own.get(name, "")
            rows[f"{name}={value if value in shown or not value else OTHER}"].append(row)
    return dict(rows)
