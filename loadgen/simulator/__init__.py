"""A server that is simulated, and says so: an engine in virtual time, its energy, and the truth about every joule.

cost_model.py   what a step costs (pure), and the GPU that pays it: temperature, simulated energy counter
engine.py  continuous batching, one discrete step at a time, in virtual time (pure)
tokens.py  the simulated tokenizer and the words it answers with (pure)
api.py     bodies and events of the OpenAI API (pure)
faults.py  ways to fail on purpose (pure)
metrics.py the /metrics page, under vLLM's names
app.py     the HTTP server that plays the engine in real time
"""
