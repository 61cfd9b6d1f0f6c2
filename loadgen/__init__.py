"""Online-serving load generator and energy profiler for LLM servers."""

__version__ = "0.2.0"
