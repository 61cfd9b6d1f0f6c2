"""Spans of the engine are served once each, in the order in which they came."""

import msgspec
import pytest

from loadgen.sidecar import span_feed
from loadgen.sidecar.span_feed import SpanFeed
from loadgen.telemetry.otlp_parse import RequestSpan


def request(number: int) -> RequestSpan:
    return RequestSpan(
        key=str(number), request_id=None, client=False, start_ns=1, prefill_ns=1, first_token_ns=2, end_ns=3,
        input_tokens=4, output_tokens=5, cached_tokens=None, model=None, workload=None, ok=True,
    )  # fmt: skip


def ids(feed: SpanFeed, after: int | None) -> tuple[int, list[str]]:
    page = feed.page(after)
    return page.next, [span.id for span in page.spans]


@pytest.mark.parametrize(
    ("after", "page"),
    [
        (0, (6, ["4", "5", "6"])),  # 1 to 3 are forgotten
        (4, (7, ["5", "6", "7"])),
        (6, (8, ["7", "8"])),
        (8, (8, [])),
        (99, (8, [])),  # the sidecar began again: numbers are its own
        (None, (8, [])),
    ],
)
def test_a_page_has_the_next_spans_that_are_kept(
    after: int | None, page: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(span_feed, "MAX_SPANS", 5)
    monkeypatch.setattr(span_feed, "PORTION", 3)
    feed = SpanFeed()
    feed.add([request(number) for number in range(1, 5)])
    feed.add([msgspec.structs.replace(request(0), client=True)])
    feed.add([request(number) for number in range(5, 9)])
    assert ids(feed, after) == page
