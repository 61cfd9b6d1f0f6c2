"""Online-serving load generator and energy profiler for LLM servers.

The names in `__all__` are the library: `read` a run folder, `replay` traffic, `search` for the most load within latency
limits, `compare` runs, `estimate` joules, and `read_trace` or `write_trace`. Every module below is private and may
change at any time. Importing the package imports nothing else: a name brings its modules when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadgen.api.bill import Bill, bill
    from loadgen.api.compare import compare
    from loadgen.api.estimate import MethodEstimate, WorkloadEstimate, estimate
    from loadgen.api.replay import areplay, replay
    from loadgen.api.run import Run, read
    from loadgen.api.search import asearch, search
    from loadgen.api.search_folder import Search, read_search
    from loadgen.api.trace import read_trace, write_trace
    from loadgen.errors import LoadgenError
    from loadgen.results.difference import Difference, Differences
    from loadgen.results.run_folder import RunInfo
    from loadgen.results.summary import Summary
    from loadgen.results.table import Column, Table
    from loadgen.results.verdict import Verdict
    from loadgen.workload.trace import Trace, TraceRequest

__version__ = "0.2.0"

__all__ = [
    "Bill",
    "Column",
    "Difference",
    "Differences",
    "LoadgenError",
    "MethodEstimate",
    "Run",
    "RunInfo",
    "Search",
    "Summary",
    "Table",
    "Trace",
    "TraceRequest",
    "Verdict",
    "WorkloadEstimate",
    "__version__",
    "areplay",
    "asearch",
    "bill",
    "compare",
    "estimate",
    "read",
    "read_search",
    "read_trace",
    "replay",
    "search",
    "write_trace",
]

_MODULES = {
    "api.bill": ("Bill", "bill"),
    "api.compare": ("compare",),
    "api.estimate": ("MethodEstimate", "WorkloadEstimate", "estimate"),
    "api.replay": ("areplay", "replay"),
    "api.run": ("Run", "read"),
    "api.search": ("asearch", "search"),
    "api.search_folder": ("Search", "read_search"),
    "api.trace": ("read_trace", "write_trace"),
    "errors": ("LoadgenError",),
    "results.difference": ("Difference", "Differences"),
    "results.run_folder": ("RunInfo",),
    "results.summary": ("Summary",),
    "results.table": ("Column", "Table"),
    "results.verdict": ("Verdict",),
    "workload.trace": ("Trace", "TraceRequest"),
}
"""Names of the library by the module that defines them."""
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # a type checker would take any name for one that exists

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
