"""Beside the engine: spans and joules in, Prometheus metrics and an energy feed out.

otlp      trace protobuf -> request spans
phases    requests -> Work: who was in prefill or decode in which time slot
ledger    spans x energy x engine counters -> accounts that add up at every moment
exporter  a frozen snapshot of the ledger -> metric families
app       sockets, threads and the clock
"""
