"""The latencies of a run: their names, and the limits that they can have."""

LATENCIES = (
    ("ttft_s", "TTFT", "Time to first token"),
    ("ttfa_s", "TTFA", "Time to first answer token"),
    ("tpot_s", "TPOT", "Time per output token"),
    ("itl_s", "ITL", "Inter-token latency"),
    ("e2e_s", "E2E", "End-to-end latency"),
    ("response_s", "Response", "Response time"),
)
"""(field of Summary, abbreviation, name in words)."""

ABBREVIATIONS = {field: short for field, short, _ in LATENCIES}

LIMITED = {"ttft": "ttft_s", "tpot": "tpot_s", "e2el": "e2e_s"}
"""Metric of a goodput limit -> field of Summary."""
