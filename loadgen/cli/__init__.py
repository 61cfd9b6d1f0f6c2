"""The command line. Each command is: parse, call, print; it imports what it needs only when it runs."""

import atexit
import errno
import importlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import click

from loadgen import __version__
from loadgen.errors import LoadgenError

COMMANDS = {
    "replay": "replay a trace against a server: measure latency and joules per request",
    "trace": "import, show, fit and sample traces",
    "report": "analyse a run folder again, and write its report.html",
    "export": "write a run as CSV, Parquet, vLLM's bench JSON, llm-d's Benchmark Report, or OTLP",
    "compare": "compare run folders side by side; exit 1 if a --fail-if holds",
    "schema": "print the JSON Schema of summary.json or of another file",
    "profile": "measure joules per request for token bins and batch sizes",
    "estimate": "predict a workload's energy from such a profile, and from FLOPs",
    "search": "find the most load within latency limits, or the load that costs fewest joules; resumes",
    "study": "run a matrix of servers, engine options, workloads and loads; resumes where it stopped",
    "serve": "start a server: sim, or a recipe in servers/",
    "sidecar": "run beside the engine: spans and joules in, Prometheus metrics out",
    "bill": "sum a sidecar's ledger: the joules of each model and workload, equal to the counter",
    "selftest": "measure this client's own timing error under a planned load; exit 1 if it is too large",
    "meters": "list the energy sources of this machine, and the reasons why others are not usable",
}
"""One line of help by name. Command NAME is the object `NAME` in module `loadgen.cli.NAME`."""


class LazyGroup(click.Group):
    """Shows its help without importing a single command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"loadgen.cli.{name}"), name)
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words of the command line, which run.json states, before click takes them apart."""
        ctx.meta["loadgen.words"] = ("loadgen", *args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. A Ctrl-C or SIGTERM that it does not handle itself exits with 130, as a shell expects."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as err:
            if signal.getsignal(signal.SIGTERM) is _terminate:
                _end_at_the_next_signal()
            click.echo(f"\nloadgen: {str(err) or 'interrupted'}", err=True)
            ctx.exit(130)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="loadgen")
def cli() -> None:
    """Online-serving load generator and energy profiler for LLM servers.

    \b
    loadgen replay chat --rps 4 --duration 20 --serve sim    try it: no GPU, no server needed
    loadgen replay chat --rps 4 --duration 60                against http://localhost:8000/v1
    """


def main(args: list[str] | None = None) -> Any:
    if args is None:
        _hide_api_key()
        signal.signal(signal.SIGTERM, _terminate)
    try:
        return cli.main(args=args, prog_name="loadgen", standalone_mode=True)
    except LoadgenError as err:
        text = "".join(c if c.isprintable() or c == "\n" else " " for c in str(err))  # it may be of a file or server
        click.echo(f"loadgen: {text}", err=True)
        sys.exit(2)
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        click.echo(f"loadgen: cannot write the output: {err.strerror}", err=True)
        os._exit(2)  # Python would write again what is buffered, and exit with another status


def _terminate(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM as Ctrl-C is handled at that moment."""
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(number, frame)


def _end_at_the_next_signal() -> None:
    """Let further signals end this process, which waits for its threads only, with the same exit status."""
    threading.excepthook = lambda _: None  # a thread finds its event loop closed
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(130))
        atexit.register(signal.signal, number, signal.SIG_IGN)  # later, Python itself would set the default handler


KEY_VARIABLES = {
    **dict.fromkeys(("replay", "search", "profile"), "OPENAI_API_KEY"),
    "serve": "LOADGEN_SERVE_API_KEY",
}
"""Environment variable of each command's --api-key."""


def _hide_api_key() -> None:
    """Restart with --api-key moved to the environment: every user of the machine can read a command line."""
    variable = KEY_VARIABLES.get(sys.argv[1] if sys.argv[1:] else "")
    if variable is None:
        return
    for i, arg in enumerate(sys.argv):
        name, equals, value = arg.partition("=")
        if name == "--api-key" and (equals or i + 1 < len(sys.argv)):
            arguments = sys.argv[1:i] + sys.argv[i + (1 if equals else 2) :]
            key = value if equals else sys.argv[i + 1]
            os.execve(sys.executable, [sys.executable, "-m", "loadgen", *arguments], os.environ | {variable: key})
