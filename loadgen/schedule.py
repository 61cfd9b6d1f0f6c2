"""The plan of a run: complete, seeded and written down before the first byte is sent."""

import msgspec


class ScheduledRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One line of schedule.jsonl. The prompt itself is made from (seed, index, lengths) when it is needed."""

    index: int
    offset_ns: int
    workload: str
    input_tokens: int
    output_tokens: int
    session_id: str | None = None
    prefix_ids: tuple[int, ...] = ()
