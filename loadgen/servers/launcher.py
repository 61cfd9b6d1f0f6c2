"""Start a server that belongs to this process, wait until it answers, and end all of it again."""

import ctypes
import http.client
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
from pathlib import Path
from time import monotonic, sleep
from typing import IO

from loadgen.errors import LoadgenError
from loadgen.servers import recipe as recipes

STOP_TIMEOUT_S = 15.0
"""For an engine to end by itself; it frees its GPU that way."""
OURS_TO_STOP_S = 5.0
"""More for `loadgen serve`, which waits for its engine: ended first, it would leave that running."""
POLL_S = 0.1
SAY_EVERY_S = 5.0
LAST_LINES = 12

_READY = re.compile(r"^(?!\[).*?(https?://\S+/v1)\b")
"""The line of `loadgen serve` that says where. Lines of the engine itself are passed on behind its name in brackets."""

Say = Callable[[str], None]


class Output:
    """What a process says: its last lines. A thread reads, so that a talkative server never waits for us."""

    def __init__(self, stream: IO[bytes], on_line: Callable[[str], None]) -> None:
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._on_line = on_line
        self._thread = threading.Thread(target=self._read, args=(stream,), name="server-output", daemon=True)
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                if line := raw.decode(errors="replace").rstrip():
                    self.last.append(line)
                    self._on_line(line)

    def close(self) -> None:
        """After the process ended: all it said is in `last`. A grandchild that holds the pipe is not waited for."""
        self._thread.join(1.0)


@contextmanager
def served(
    name: str,
    *options: str,
    log: Path | None = None,
    say: Say | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Runs `loadgen serve NAME` on a free port for the time of the block; gives its base URL once it is healthy.

    log: a file for all that the server says. say: gets a line now and then while it starts (default: standard error).
    environment: variables besides our own.
    Its own process group: a Ctrl-C at the terminal is ours to handle, the server must live until the run has drained.
    """
    recipe = recipes.read_recipe(name)
    command = [sys.executable, "-m", "loadgen", "serve", name, "--port", "0", "--exit-with-parent", *options]
    with answering(command, name, recipe.start_timeout_s, log=log, say=say, environment=environment) as url:
        yield url


@contextmanager
def answering(
    command: Sequence[str],
    name: str,
    start_timeout_s: float,
    *,
    log: Path | None = None,
    say: Say | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Runs a server's command for the time of the block; gives the base URL that it prints once it serves."""
    urls: deque[str] = deque(maxlen=1)
    with log.open("a") if log else open(os.devnull, "w") as file:  # noqa: PTH123

        def take(line: str) -> None:
            print(line, file=file, flush=True)
            if found := _READY.match(line):
                urls.append(found[1])

        environ = {**os.environ, **(environment or {})}
        with _running(command, environ, take, STOP_TIMEOUT_S + OURS_TO_STOP_S) as (process, output):
            _wait(process, output, name, start_timeout_s, lambda: bool(urls), say or _to_stderr)
            yield urls[0]


def run_recipe(
    recipe: recipes.Recipe,
    values: Mapping[str, recipes.KnobValue],
    *,
    host: str,
    port: int,
    model: str,
    python: str = sys.executable,
    exit_with_parent: bool = False,
) -> None:
    """Runs a recipe's server until SIGINT or SIGTERM, or, if asked to, until the parent process is gone.

    Its lines go to standard output behind its name; one line says where it serves, once it is healthy. python: the
    interpreter that has the engine, when that is not this one.
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

    def asked_to_stop() -> bool:
        return stop.is_set() or (exit_with_parent and os.getppid() != parent)

    def pass_on(line: str) -> None:
        print(f"[{recipe.name}] {line}", flush=True)

    with _running(command, environment, pass_on) as (process, output):
        here = "127.0.0.1" if host == "0.0.0.0" else host
        _wait(
            process,
            output,
            recipe.name,
            recipe.start_timeout_s,
            lambda: asked_to_stop() or healthy(here, port, recipe.health),
            lambda _: None,
        )
        if not asked_to_stop():
            print(f"{recipe.name} serves {model} at http://{here}:{port}/v1", flush=True)
        while not asked_to_stop():
            if process.poll() is not None:
                raise LoadgenError(f"{recipe.name} ended by itself {_how(process, output)}")
            stop.wait(POLL_S)


def check_installed(recipe: recipes.Recipe, python: str = sys.executable) -> None:
    """LoadgenError when `python` cannot find the recipe's module; it is not imported."""
    if recipe.module is None:
        return
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({recipe.module!r}) is None)"
    try:
        found = subprocess.run([python, "-c", look], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as err:
        raise LoadgenError(f"--python {python}: {err.strerror}") from err
    if found.returncode:
        raise LoadgenError(f"{recipe.name} is not installed for {python}: {recipe.install}")


def healthy(host: str, port: int, path: str) -> bool:
    """Whether GET `path` answers 200 now."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_port(host: str) -> int:
    """One that nobody listened on a moment ago."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _wait(
    process: "subprocess.Popen[bytes]",
    output: Output,
    name: str,
    timeout_s: float,
    ready: Callable[[], bool],
    say: Say,
) -> None:
    """Until `ready`; LoadgenError with the server's last lines when it ends before that, or takes too long."""
    started = said = monotonic()
    while not ready():
        now = monotonic()
        if process.poll() is not None:
            output.close()
            if ready():  # it said so, and ended at once: whoever uses it will find out
                return
            raise LoadgenError(f"the server {name} did not start {_how(process, output)}")
        if now - started > timeout_s:
            raise LoadgenError(f"the server {name} was not healthy after {timeout_s:.0f} s {_last(output)}")
        if now - said >= SAY_EVERY_S:
            said = now
            say(f"{name} is starting, {now - started:.0f} s: {(output.last or ['it said nothing yet'])[-1][:160]}")
        sleep(POLL_S)


def _how(process: "subprocess.Popen[bytes]", output: Output) -> str:
    return f"(exit status {process.returncode}) {_last(output)}"


def _last(output: Output) -> str:
    return "and said last:\n  " + "\n  ".join(output.last) if output.last else "and said nothing"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _running(
    command: Sequence[str],
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    stop_timeout_s: float = STOP_TIMEOUT_S,
) -> Iterator[tuple["subprocess.Popen[bytes]", Output]]:
    """A process group for the time of the block. Not a session: its scheduler group would starve the client's."""
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
    output = Output(process.stdout, on_line)
    try:
        yield process, output
    finally:
        _end(process, stop_timeout_s)
        output.close()


def _end_with_parent() -> None:
    """In the child, before it becomes the server: Linux sends it SIGTERM when we die, however we die."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _end(process: "subprocess.Popen[bytes]", timeout_s: float) -> None:
    """The whole group: first asked, then killed; what outlives its leader goes too."""
    _signal_group(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
