"""loadgen's measured joules in other programs: a callback for LiteLLM."""
