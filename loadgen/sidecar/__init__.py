"""Beside the engine: spans and joules in, Prometheus metrics and an energy feed out.

ledger    spans x energy x engine counters -> accounts that add up at every moment
exporter  a frozen snapshot of the ledger -> metric families
app       sockets, threads and the clock
"""
