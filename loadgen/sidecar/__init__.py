"""Runs beside the engine: takes spans and joules in, gives Prometheus metrics and an energy feed out.

watermark       up to when the spans of all requests are known
foreign_tokens  the share of other clients, estimated from output tokens
accounts        energy, tokens and histograms per model and workload
ledger          spans x energy x engine counters -> accounts that add up at every moment
exporter        a frozen snapshot of the ledger -> metric families
clock_sync      wall-clock instants of spans -> the monotonic clock
app             queues, the clock and the pages; OTLP over HTTP
server          start and end of all of it
grpc_server     OTLP over gRPC
"""
