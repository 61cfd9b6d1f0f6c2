"""Start a server as a child of this process, wait until it is healthy, and end its whole process group."""

import ctypes
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import IO

from loadgen.client.redact import redact, secrets_in
from loadgen.errors import LoadgenError
from loadgen.extras import install_command, pip_install
from loadgen.http_get import REQUEST_ERRORS, http_get
from loadgen.servers import recipe as recipes

_log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 15.0
"""Time for an engine to end by itself, which frees its GPU."""
_SERVE_STOP_EXTRA_S = 5.0
"""Additional time for `loadgen serve`, which waits for its engine: killed before it, it would leave that running."""
_POLL_S = 0.1
_PROGRESS_PERIOD_S = 5.0
_KEPT_LINES = 12

_READY = re.compile(r"^(?!\[).*?(https?://\S+/v1)\b")
"""The line with which `loadgen serve` reports its URL. Lines of the engine begin with its name in brackets instead."""
_LINE_END = re.compile(rb"\r\n|\r(?!\Z)|\n")
"""The end of a line. Bars of progress end in a carriage return, so that the next one overwrites it."""
_MAX_LINE_BYTES = 1 << 16

StartProgress = Callable[[float, str], None]
"""Called ten times a second while a server starts: with the seconds since its start, and its last line or ""."""


def start_lines(name: str, say: Callable[[str], None]) -> StartProgress:
    """Return a progress function that calls `say` with a line every few seconds."""
    said_s = 0.0

    def progress(waited_s: float, line: str) -> None:
        nonlocal said_s
        if waited_s - said_s >= _PROGRESS_PERIOD_S:
            said_s = waited_s
            say(f"{name} is starting, {waited_s:.0f} s: {line[:160] or 'no output yet'}")

    return progress


class _Output:
    """The last lines that a process printed, without secrets. A thread reads them, so that the pipe never blocks the
    server. `on_line` gets each line and its end, a newline or a carriage return."""

    def __init__(self, stream: IO[bytes], on_line: Callable[[str, str], None], secrets: Sequence[str]) -> None:
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._on_line = on_line
        self._secrets = secrets
        self._is_bar = False
        """True while the last line is one that the next overwrites."""
        self._thread = threading.Thread(target=self._read_lines, args=(stream,), name="server-output", daemon=True)
        self._thread.start()

    def _read_lines(self, stream: IO[bytes]) -> None:
        unended = b""
        with stream:
            while data := os.read(stream.fileno(), _MAX_LINE_BYTES):
                unended += data
                start = 0
                for match in _LINE_END.finditer(unended):
                    self._take(unended[start : match.start()], "\r" if match[0] == b"\r" else "\n")
                    start = match.end()
                unended = unended[start:]
                if len(unended) > _MAX_LINE_BYTES:
                    self._take(unended, "\n")
                    unended = b""
            self._take(unended, "\n")

    def _take(self, raw: bytes, end: str) -> None:
        line = redact(raw.decode(errors="replace").rstrip(), self._secrets)
        if not line:
            return
        if self._is_bar:
            self.lines.pop()
        self._is_bar = end == "\r"
        self.lines.append(line)
        self._on_line(line, end)

    def close(self) -> None:
        """Wait for the rest of the output of a process that ended, but not for a grandchild that holds the pipe."""
        self._thread.join(1.0)

    @property
    def tail(self) -> str:
        """The last lines, for an error message."""
        return "and said last:\n  " + "\n  ".join(self.lines) if self.lines else "and said nothing"


@contextmanager
def served(
    name: str,
    *options: str,
    log: Path | None = None,
    progress: StartProgress | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run `loadgen serve NAME` on a free port while the block runs; yield its base URL once it is healthy.

    log: file for all output of the server. progress: default: print a line every few seconds to standard error.
    environment: variables in addition to this process's own. The server has its own process
    group, because a Ctrl-C at the terminal must not end it before the run has drained.
    """
    recipe = recipes.read_recipe(name)
    command = [sys.executable, "-m", "loadgen", "serve", name, "--port", "0", "--exit-with-parent", *options]
    with answering(command, name, recipe.start_timeout_s, log=log, progress=progress, environment=environment) as url:
        yield url


@contextmanager
def answering(
    command: Sequence[str],
    name: str,
    start_timeout_s: float,
    *,
    log: Path | None = None,
    progress: StartProgress | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run a server's command while the block runs; yield the base URL that it prints once it serves."""
    urls: deque[str] = deque(maxlen=1)
    with log.open("a") if log else open(os.devnull, "w") as file:  # noqa: PTH123

        def on_line(line: str, end: str) -> None:
            print(line, file=file, end=end, flush=True)
            if ready := _READY.match(line):
                urls.append(ready[1])

        variables = {**os.environ, **(environment or {})}
        start_s = monotonic()
        _log.info("starting the server %(server)s: %(command)s", {"server": name, "command": list(command)})
        with _running(command, variables, on_line, STOP_TIMEOUT_S + _SERVE_STOP_EXTRA_S) as (process, output):
            _wait(
                process,
                output,
                name,
                start_timeout_s,
                lambda: bool(urls),
                progress or start_lines(name, partial(print, file=sys.stderr, flush=True)),
            )
            started = {"server": name, "url": urls[0], "seconds": round(monotonic() - start_s, 3)}
            _log.info("the server %(server)s serves at %(url)s after %(seconds)s s", started)
            try:
                yield urls[0]
            finally:
                ending = {"server": name, "status": process.poll()}
                _log.info("ending the server %(server)s; its exit status so far: %(status)s", ending)


def run_recipe(
    recipe: recipes.Recipe,
    values: Mapping[str, recipes.OptionValue],
    *,
    host: str,
    port: int,
    model: str,
    python: str = sys.executable,
    exit_with_parent: bool = False,
) -> None:
    """Run a recipe's server until SIGINT or SIGTERM, or, with exit_with_parent, until the parent process is gone.

    The server's lines go to standard output after its name in brackets. Once it is healthy, one line reports its URL.
    python: the interpreter that has the engine.
    """
    parent = os.getppid()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    port = port or free_port(host)
    places = {"python": python, "host": host, "port": str(port), "model": model}
    command = recipes.command(recipe, values, places)
    check_installed(recipe, python)
    environment = {**os.environ, **recipes.variables(recipe, values, places)}
    _log.info("starting %(server)s: %(command)s", {"server": recipe.name, "command": list(command)})

    def should_stop() -> bool:
        return stop.is_set() or (exit_with_parent and os.getppid() != parent)

    def pass_on(line: str, end: str) -> None:
        print(f"[{recipe.name}] {line}", end=end, flush=True)

    with _running(command, environment, pass_on) as (process, output):
        local_host = "127.0.0.1" if host == "0.0.0.0" else host
        _wait(
            process,
            output,
            recipe.name,
            recipe.start_timeout_s,
            lambda: should_stop() or healthy(local_host, port, recipe.health),
            lambda _waited_s, _line: None,
        )
        if not should_stop():
            print(f"{recipe.name} serves {model} at http://{local_host}:{port}/v1", flush=True)
        while not should_stop():
            if process.poll() is not None:
                raise LoadgenError(f"{recipe.name} ended by itself (exit status {process.returncode}) {output.tail}")
            stop.wait(_POLL_S)


def check_installed(recipe: recipes.Recipe, python: str = sys.executable) -> None:
    """Raise LoadgenError if `python` cannot find the recipe's module. The module is not imported."""
    if recipe.module is None:
        return
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({recipe.module!r}) is None)"
    try:
        lookup = subprocess.run([python, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as err:
        raise LoadgenError(f"--python {python}: {err.strerror}") from err
    if lookup.returncode:
        steps = [install_command(recipe.extra, python)] if recipe.extra else []
        steps += [f"{pip_install(python)} {recipe.install}"] if recipe.install else []
        raise LoadgenError(f"{recipe.name} is not installed for {python}: {' && '.join(steps)}")


def healthy(host: str, port: int, path: str) -> bool:
    """Return True if GET `path` is answered with status 200."""
    address = f"[{host}]" if ":" in host else host
    try:
        return http_get(f"http://{address}:{port}{path}", timeout_s=2).status == 200
    except REQUEST_ERRORS:
        return False


def free_port(host: str) -> int:
    """Return a port that was free when checked."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _wait(
    process: "subprocess.Popen[bytes]",
    output: _Output,
    name: str,
    timeout_s: float,
    ready: Callable[[], bool],
    progress: StartProgress,
) -> None:
    """Wait until `ready`. Raises LoadgenError with the server's last lines if it ends before that or takes too long."""
    start_s = monotonic()
    while not ready():
        now_s = monotonic()
        if process.poll() is not None:
            output.close()
            if ready():  # it reported its URL and ended at once: its first user will notice
                return
            raise LoadgenError(f"the server {name} did not start (exit status {process.returncode}) {output.tail}")
        if now_s - start_s > timeout_s:
            raise LoadgenError(f"the server {name} was not healthy after {timeout_s:.0f} s {output.tail}")
        progress(now_s - start_s, (list(output.lines) or [""])[-1])
        sleep(_POLL_S)


@contextmanager
def _running(
    command: Sequence[str],
    environment: Mapping[str, str],
    on_line: Callable[[str, str], None],
    stop_timeout_s: float = STOP_TIMEOUT_S,
) -> Iterator[tuple["subprocess.Popen[bytes]", _Output]]:
    """Run a process group while the block runs. Not a session: its scheduler group would starve the client's."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=_end_with_parent,
    )
    assert process.stdout is not None
    output = _Output(process.stdout, on_line, secrets_in(environment))
    try:
        yield process, output
    finally:
        # SIGKILL also ends processes that outlive their leader.
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(stop_timeout_s)
        _signal_group(process, signal.SIGKILL)
        process.wait()
        output.close()


def _end_with_parent() -> None:
    """Make Linux send this process SIGTERM when its parent dies. Runs in the child before it becomes the server."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
