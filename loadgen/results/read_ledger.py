"""Reads a ledger on disk, line by line, whatever is in its files."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

import msgspec

from loadgen.errors import LoadgenError
from loadgen.results.ledger_lines import (
    FORMAT_VERSION,
    LedgerBatch,
    LedgerLine,
    LedgerPeriod,
    LedgerStart,
    SettledRequest,
    engines_agree,
    imbalance_mj,
)

MAX_LINE = 131_072
"""Bytes of a line; the fields of a ledger's own lines are bounded."""
MAX_PROBLEM = 200
"""Characters of a problem, which may have some of the line's."""
MAX_BATCH = 200_000
"""Requests of one batch."""


def ledger_files(folder: Path) -> list[Path]:
    """Return the files of a ledger in the order of their names. Raises LoadgenError when there are none."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.endswith((".jsonl", ".jsonl.gz")))
    except OSError as err:
        raise LoadgenError(f"cannot read the ledger {folder}: {err.strerror or err}") from err
    if not paths:
        raise LoadgenError(f"{folder} holds no ledger: no file there ends in .jsonl or .jsonl.gz")
    return paths


class LedgerFile:
    """Reads one file, line by line, whatever is in it. `start` and `torn` are known when all batches were read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start: LedgerStart | None = None
        self.torn = False
        self._line = 0

    def batches(self) -> Iterator[tuple[LedgerBatch, int]]:
        """Yield each whole batch, and the energy of open requests before it. Raises LoadgenError with the line."""
        open_mj, requests = 0, list[SettledRequest]()
        for line in self._lines():
            match line:
                case LedgerStart() if self._line == 1:
                    if line.format_version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
                        raise self._error(f"format {line.format_version!r} is not read by this version of loadgen")
                    self.start, open_mj = line, line.open_mj
                case SettledRequest() if self.start:
                    requests.append(line)
                    if len(requests) > MAX_BATCH:
                        raise self._error(f"more than {MAX_BATCH:,} requests without a period")
                case LedgerPeriod() if self.start:
                    batch = LedgerBatch(line, tuple(requests))
                    self._check(batch, open_mj)
                    yield batch, open_mj
                    open_mj, requests = line.open_mj, []
                case _:
                    raise self._error("a ledger's file begins with one line of the kind start")
        self.torn = self.torn or bool(requests)

    def _check(self, batch: LedgerBatch, open_mj: int) -> None:
        period = batch.period
        if period.requests != len(batch.requests):
            raise self._error(f"the period has {period.requests:,} requests, and {len(batch.requests):,} lines of them")
        if off_mj := imbalance_mj(batch, open_mj):
            raise self._error(f"the period is not its parts: {off_mj:,} mJ of its counter are in no line")
        if not engines_agree(period):
            raise self._error("the period is not the sum of its engines")
        if period.to_unix_ns < period.from_unix_ns:
            raise self._error("the period ends before it begins")

    def _lines(self) -> Iterator[LedgerLine]:
        decode = msgspec.json.Decoder(LedgerLine).decode
        if not self.path.is_file():  # a named pipe would be waited for
            raise LoadgenError(f"cannot read {self.path}: it is no file")
        try:
            with ExitStack() as stack:
                file: IO[bytes] = stack.enter_context(self.path.open("rb"))
                if self.path.name.endswith(".gz"):
                    file = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file)))
                while line := file.readline(MAX_LINE + 1):
                    self._line += 1
                    if not line.endswith(b"\n"):
                        if len(line) > MAX_LINE:
                            raise self._error(f"a line of more than {MAX_LINE:,} bytes")
                        self.torn = True
                        return
                    yield decode(line)
        except (OSError, EOFError, zlib.error) as err:
            raise LoadgenError(f"cannot read {self.path}: {getattr(err, 'strerror', None) or err}") from err
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
            raise self._error(f"not a line of a ledger: {str(err)[:MAX_PROBLEM]}") from err

    def _error(self, problem: str) -> LoadgenError:
        return LoadgenError(f"{self.path}:{self._line}: {problem}")
