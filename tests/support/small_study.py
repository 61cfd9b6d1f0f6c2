"""A small study of the simulated server: two servers, one closed loop at batch 4, three repeats."""

SMALL = """
title = "Small"
seed = 3
batches = [4]
rounds = 1
repeats = 3
restart = true
warmup = 0
idle_s = 0.2
baseline = "one"
goodput = { tpot = 20 }
[servers.one]
recipe = "sim"
knobs = { max_num_seqs = 1, counter_period_ms = 5 }
[servers.many]
recipe = "sim"
knobs = { max_num_seqs = 64, counter_period_ms = 5 }
[workloads.short]
input = 32
output = 8
[idealized]
hardware = "h200"
model = "llama-3.1-8b"
"""

ONE_START = SMALL.replace("restart = true", "restart = false")
"""Each server starts once for all its repeats."""
