"""Online-serving load generator and energy profiler for LLM servers."""

__version__ = "0.1.0"
