"""A simulated server that declares itself as simulated: an engine in virtual time, its energy, and true costs.

cost_model.py       cost of a step (pure), and the GPU that runs it: temperature, simulated energy counter
engine.py           continuous batching, one discrete step at a time, in virtual time (pure)
kv_cache.py         blocks of the KV cache: what a prompt finds there, and what is evicted (pure)
virtual_profile.py  an energy profile from the engine in virtual time (pure)
tokens.py           the simulated tokenizer and the words of the answers (pure)
api.py              bodies and events of the OpenAI API (pure)
faults.py           deliberate failures (pure)
spans.py            the OTLP spans of finished requests, as vLLM sends them
metrics.py          the /metrics page, under vLLM's names
player.py           the engine in real time
served_request.py   one request while it is served
app.py              the HTTP routes
"""
