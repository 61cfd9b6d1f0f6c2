"""The spans of a gateway's calls: a sidecar joins them with the engine's and reads the labels from them."""

from collections.abc import Sequence
from typing import Any

import pytest

from integrations.test_call_energy import call
from loadgen.clock import Anchor
from loadgen.integrations.call_spans import Place, PlacedCall, export_calls, place_of
from loadgen.telemetry.otlp_parse import Parsed, parse_spans
from loadgen.telemetry.traceparent import parse_traceparent, span_ids

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def parsed(*calls: Sequence[Any]) -> Parsed:
    batch = [PlacedCall(one, place) for one, place in calls]
    return parse_spans(export_calls(batch, Anchor(0, 0)), {"team": "loadgen.tag.team", "user": "loadgen.tag.user"})


def test_a_call_is_a_clients_span_with_the_engines_id_and_the_labels() -> None:
    place = place_of("r", "")
    (span,) = parsed((call(first_token_unix_ns=2_000_000_001, end_unix_ns=3_000_000_001), place)).spans
    assert (span.client, span.key, span.workload, span.labels) == (True, "r", "litellm", {"team": "blue", "user": "u"})
    assert (span.input_tokens, span.output_tokens, span.cached_tokens) == (6, 2, 0)
    assert (span.start_ns, span.first_token_ns, span.end_ns) == (1, 2_000_000_001, 3_000_000_001)
    assert (span.trace_id, span.span_id, span.parent_id) == (*span_ids("r"), b"")


def test_what_nobody_reported_is_absent() -> None:
    unknown = dict.fromkeys(("first_token_unix_ns", "input_tokens", "output_tokens", "cached_tokens"))
    (span,) = parsed((call(**unknown, team="", team_alias=""), place_of("r", ""))).spans
    assert (span.input_tokens, span.output_tokens, span.cached_tokens, span.first_token_ns) == (None,) * 4
    assert span.labels == {"user": "u"}


def test_a_call_that_failed_is_no_request_but_its_labels_are_there_for_the_engines_span() -> None:
    seen = parsed((call(ok=False), place_of("r", "")))
    assert seen.spans == []
    assert [(labels.trace_id, labels.labels["team"]) for labels in seen.span_labels] == [(span_ids("r")[0], "blue")]


def test_a_team_without_an_alias_is_named_by_its_id() -> None:
    (span,) = parsed((call(team_alias=""), place_of("r", ""))).spans
    assert span.labels["team"] == "t1"


def test_the_engines_span_is_below_the_call_and_in_the_trace_of_its_client() -> None:
    place = place_of("r", CLIENT)
    client = parse_traceparent(CLIENT)
    assert client is not None
    assert place == Place(client.trace_id, span_ids("r").span_id, client.span_id)
    assert parse_traceparent(place.header) == (place.trace_id, place.span_id)
    assert place.header.endswith("-01"), "the engine is asked for its span"


@pytest.mark.parametrize("header", ["", "evil", "00-0-0-00", CLIENT + "x", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_malformed_traceparent_begins_a_trace_of_its_own(header: str) -> None:
    assert place_of("r", header) == Place(*span_ids("r"), b"")
