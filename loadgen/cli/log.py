"""The log of a command, for support: --verbose prints it on standard error, --log-file writes it as JSON lines.

The modules of loadgen log what they find out and decide, under their own names. Nothing is logged for a request that
succeeds, and nothing at all without one of the two options. An entry in a file takes 60 µs, and 2 µs where nothing is
logged (one failed request, two shared cores, CPython 3.11).
"""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from loadgen import __version__
from loadgen.errors import LoadgenError

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

SECRET_VARIABLES = (
    "OPENAI_API_KEY", "LOADGEN_SERVE_API_KEY", "LOADGEN_SIDECAR_TOKEN", "LOADGEN_ENERGY_TOKEN", "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN", "LOADGEN_REDFISH_PASSWORD",
)  # fmt: skip
"""Environment variables whose values are secrets."""
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
"""Environment variables with URLs that may hold a password."""
_SECRET_NAME = re.compile(r"(?i)api_?-?key|secret|passw|(^|[_-])token$")
"""Engine options and notes with such names hold secrets."""
MAX_CHARS = 2000
"""Longest text of a log entry: a server may answer with any number of words."""


def logged(command: Callable[..., Result]) -> Callable[..., Result]:
    """Give a command --verbose and --log-file. Decorators of options belong above this one."""

    @click.option("-v", "--verbose", is_flag=True, help="Print what happens meanwhile, on standard error.")
    @click.option(
        "--log-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Append the same to FILE as JSON lines. It holds no keys, prompts or answers.",
    )
    @wraps(command)
    def run(*arguments: Any, verbose: bool, log_file: Path | None, **options: Any) -> Result:
        if not verbose and log_file is None:
            return command(*arguments, **options)
        with logging_to(log_file, verbose, options), _outcome_logged(options):
            return command(*arguments, **options)

    return run


@contextmanager
def logging_to(path: Path | None, verbose: bool, options: Mapping[str, Any]) -> Iterator[None]:
    """Log what loadgen does while the block runs, without the secrets in `options` and in the environment.

    Raises LoadgenError when the file cannot be written.
    """
    secrets = _secrets(options)
    terminal = _Terminal(secrets)
    terminal.addFilter(lambda record: not hasattr(record, "printed"))
    terminal.setLevel(logging.INFO if verbose else logging.WARNING)  # warnings are printed without the option as well
    handlers: list[logging.Handler] = [terminal] + ([_File(path, secrets)] if path else [])
    logger = logging.getLogger("loadgen")
    level, logger.propagate = logger.level, False  # a handler of the root logger would print everything again
    logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True
        logger.setLevel(level)


@contextmanager
def _outcome_logged(options: Mapping[str, Any]) -> Iterator[None]:
    """Log the command that the block runs, and how it ended."""
    import platform
    import traceback
    from importlib import metadata

    context = click.get_current_context()
    versions = {"loadgen": __version__, "python": platform.python_version(), "system": platform.platform()}
    versions |= {name: metadata.version(name) for name in ("aiohttp", "click", "msgspec", "numpy", "rich", "uvloop")}
    stated = stated_options({name: options[name] for name in options if not _is_default(context, name)})
    _log.info(
        "%(command)s with %(options)s; %(versions)s",
        {"command": context.command_path, "options": stated, "versions": versions},
    )
    start_s = time.monotonic()
    status: Any = 0
    try:
        yield
    except SystemExit as err:
        status = err.code
        raise
    except (LoadgenError, click.ClickException) as err:
        status = 2
        _log.info("error: %(error)s", {"error": str(err)}, extra={"printed": True})
        raise
    except KeyboardInterrupt:
        status = 130
        raise
    except BaseException as err:
        status = 1
        # Without the exception's text, which may quote a request.
        trace = traceback.format_tb(err.__traceback__, limit=-8)
        _log.info("ended by %(kind)s: %(trace)s", {"kind": type(err).__name__, "trace": trace})
        raise
    finally:
        seconds = time.monotonic() - start_s
        _log.info("exit status %(status)s after %(seconds).1f s", {"status": status, "seconds": round(seconds, 6)})


def say(line: str) -> None:
    """Print a line on standard error, and log it."""
    click.echo(line, err=True)
    _log.info("%s", line, extra={"printed": True})


def _is_default(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) in (None, click.core.ParameterSource.DEFAULT)


# -- without secrets ---------------------------------------------------------------------------------------------------


def stated_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as the log states them: of headers and of fields of the body the names only, and no keys."""
    stated: dict[str, Any] = {}
    for name, value in options.items():
        if name == "api_key":
            stated[name] = "[redacted]"
        elif name in ("headers", "extra_body"):
            stated[name] = sorted(value)
        elif isinstance(value, dict):
            hidden = {key: "[redacted]" for key in value if _SECRET_NAME.search(key)}
            stated[name] = {key: _without_password(str(item)) for key, item in value.items()} | hidden
        elif isinstance(value, (tuple, list)):
            stated[name] = [_without_password(str(item)) for item in value]
        elif isinstance(value, (bool, int, float)) or value is None:
            stated[name] = value
        else:
            stated[name] = _without_password(str(value))
    return stated


def _without_password(text: str) -> str:
    """Return a URL without user, password and query; any other text as it is."""
    from loadgen.client.redact import clean_url

    if "://" not in text:
        return text
    try:
        return clean_url(text)
    except LoadgenError:
        return "[redacted]"


def _secrets(options: Mapping[str, Any]) -> list[str]:
    """Return every secret that an option or the environment holds."""
    from urllib.parse import parse_qsl, unquote, urlsplit

    from loadgen.client.redact import secrets_of

    values = [os.environ.get(name, "") for name in SECRET_VARIABLES]
    urls = [os.environ.get(name, "") for name in PROXY_VARIABLES]
    for name, value in options.items():
        if name == "api_key":
            values.append(value or "")
        elif name == "headers":
            values += value.values()
        elif name == "extra_body":
            values += _strings(value)
        else:
            urls += [part for text in _strings(value) for part in text.split(",") if "://" in part]
            if isinstance(value, dict):  # engine options, notes
                values += [str(item) for key, item in value.items() if _SECRET_NAME.search(key)]
    for url in urls:
        try:
            parts = urlsplit(url)
        except ValueError:
            continue
        user = [part for part in (parts.username, parts.password) if part]
        values += [*user, *map(unquote, user), parts.query, *(value for _, value in parse_qsl(parts.query))]
    return secrets_of(values)


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in the value of an option."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _redacted(value: Any, secrets: Iterable[str]) -> Any:
    """Return a value of a log entry without secrets, as JSON has it, and without long texts."""
    from loadgen.client.redact import redact

    if isinstance(value, dict):
        return {str(key): _redacted(item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(item, secrets) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else redact(str(value), secrets)[:MAX_CHARS]


def _message(record: logging.LogRecord, secrets: Iterable[str]) -> str:
    """Return an entry as a sentence, without secrets; what is not known is "unknown", and tables are JSON."""
    if not isinstance(record.args, dict):
        return str(_redacted(record.getMessage(), secrets))

    def shown(value: Any) -> Any:
        if value is None:
            return "unknown"
        return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list, tuple)) else value

    return str(_redacted(record.msg % {name: shown(value) for name, value in record.args.items()}, secrets))


# -- where it is written -----------------------------------------------------------------------------------------------


class _Terminal(logging.Handler):
    """Prints entries as plain lines on the standard error of the moment, which a live view passes on above itself."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        self._secrets = secrets

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(_message(record, self._secrets).split())
        time_of_day = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        printable = "".join(char if char.isprintable() else "\ufffd" for char in text)
        print(f"{time_of_day} {printable}", file=sys.stderr, flush=True)


class _File(logging.Handler):
    """Appends entries to a file as JSON lines, until it cannot be written. The first entry must be: LoadgenError."""

    def __init__(self, path: Path, secrets: Iterable[str]) -> None:
        super().__init__()
        self._path, self._secrets = path, secrets
        self._written = False
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as err:
            raise LoadgenError(f"--log-file {path} cannot be written: {err.strerror}") from err

    def emit(self, record: logging.LogRecord) -> None:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record, self._secrets),
        }
        fields = _redacted(record.args, self._secrets) if isinstance(record.args, dict) else {}
        try:
            self._file.write(json.dumps(entry | fields).encode() + b"\n")
            self._written = True
        except OSError as err:
            text = f"--log-file {self._path} cannot be written: {err.strerror}"
            if not self._written:
                raise LoadgenError(text) from err
            logging.getLogger("loadgen").removeHandler(self)
            click.echo(f"loadgen: {text}; going on without it", err=True)

    def close(self) -> None:
        self._file.close()
        super().close()
