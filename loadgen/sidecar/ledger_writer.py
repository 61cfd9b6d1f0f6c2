"""Writes the ledger to a folder: batches of lines, each with one fsync, in files that are never changed afterwards.

A process of the sidecar begins files of its own, so that a torn end, which a `kill -9` or a full disk leaves, is never
written over: readers leave out the lines after the last period of a file.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import threading
from collections import deque
from contextlib import ExitStack, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from loadgen import __version__
from loadgen.clock import monotonic_ns
from loadgen.files import locked, writing
from loadgen.results.ledger_lines import FORMAT_VERSION, LedgerBatch, LedgerStart, folded, imbalance_mj
from loadgen.telemetry.otlp_parse import MAX_TEXT
from loadgen.units import NS_PER_S, s_from_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_log = logging.getLogger(__name__)

FILE_BYTES = 64 << 20
"""A file that is as large is not continued."""
MAX_WAITING = 50_000
"""Requests that wait for the disk."""
MAX_WAITING_BATCHES = 1_000
SILENT_S = 10.0
"""A disk that took longer for a batch does not answer."""
MAX_SOURCES = 32
"""Domains that a file names: its first line is bounded, as all are."""


class LedgerWriter:
    """The files of one process. `add` from one thread, `flush` from another; nobody else writes to the folder.

    A disk that does not answer holds up `flush` alone.
    """

    def __init__(
        self, folder: Path, *, sources: Callable[[], Sequence[str]] = tuple, file_bytes: int = FILE_BYTES
    ) -> None:
        """Take the folder, which is made if there is none. Raises LoadgenError when it cannot be written, or another
        sidecar writes it.

        sources: returns the domains of the meter, with the origin of their joules. When they change, a file begins.
        """
        self._sources = sources
        self._file_sources: Sequence[str] = ()
        """The sources that the file names."""
        self.folder, self._file_bytes = folder, file_bytes
        self._lock = threading.Lock()
        """Guards what waits. It is never held while the disk is waited for."""
        self._disk = threading.Lock()
        """Held by whoever writes."""
        self._writing_since_ns: int | None = None
        self._held = ExitStack()
        with writing(folder, "the ledger"):
            folder.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(locked(folder, "the ledger"))
        self.session = secrets.token_hex(6)
        self._waiting: deque[LedgerBatch] = deque()
        self._file: int | None = None
        """Descriptor of the file that is written."""
        self._files = 0
        self._size = 0
        """Bytes of whole batches in the file; beyond them is what a failed write has left."""
        self._day: date | None = None
        self._added_mj = self._written_mj = 0
        """Energy of open requests after the newest batch that was added, and written."""
        self.problem: str | None = None
        """Reason for which the newest batch is not on disk."""

    def add(self, batch: LedgerBatch) -> None:
        """Take the next batch. Raises AssertionError unless it sums to the counter."""
        if off_mj := imbalance_mj(batch, self._added_mj):
            raise AssertionError(f"the ledger is not the counter: {off_mj} mJ of a period are in no line")
        with self._lock:
            self._added_mj = batch.period.open_mj
            self._waiting.append(batch)
            while len(self._waiting) > 1 and self._too_many():
                oldest = self._waiting.popleft()
                self._waiting[0] = folded(oldest, self._waiting[0])

    def _too_many(self) -> bool:
        requests = sum(len(batch.requests) for batch in self._waiting)
        return requests > MAX_WAITING or len(self._waiting) > MAX_WAITING_BATCHES

    def flush(self) -> None:
        """Write what waits. A disk that is full is said once, and tried again at the next call."""
        with self._disk:
            self._writing_since_ns = monotonic_ns()
            while (batch := self._next()) is not None:
                try:
                    self._write(batch)
                except OSError as err:
                    with self._lock:
                        self._waiting.appendleft(batch)
                    self._note(err)
                    break
                self._writing_since_ns = monotonic_ns()
            else:
                self._note(None)
            self._writing_since_ns = None

    def _next(self) -> LedgerBatch | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def _note(self, err: OSError | None) -> None:
        """Say once that the folder cannot be written, and once that it can be again."""
        if err is not None and self.problem is None:
            _log.warning(
                "cannot write the ledger %s: %s; %d requests are kept in memory for it",
                self.folder, err.strerror or err, MAX_WAITING,
            )  # fmt: skip
        elif err is None and self.problem is not None:
            _log.warning("the ledger %s is written again", self.folder)
        self.problem = (err.strerror or str(err)) if err else None

    @property
    def health(self) -> str:
        """State of the folder in words."""
        since_ns = self._writing_since_ns
        if since_ns is not None and (silent_s := s_from_ns(monotonic_ns() - since_ns)) > SILENT_S:
            return f"cannot be written: the disk has not answered for {silent_s:.0f} s"
        return f"cannot be written: {self.problem}" if self.problem else "written"

    def close(self) -> None:
        """Write what waits, and let others have the folder."""
        self.flush()
        if lost := sum(len(batch.requests) for batch in self._waiting):
            _log.warning("the ledger %s lacks the last %d requests: %s", self.folder, lost, self.problem)
        with self._disk:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            self._held.close()

    def _write(self, batch: LedgerBatch) -> None:
        """Write a batch to the disk, whole, or leave what is there for the next attempt to cut off."""
        end = datetime.fromtimestamp(batch.period.to_unix_ns // NS_PER_S, UTC)
        sources = self._sources()
        is_full = self._size >= self._file_bytes
        if self._file is None or end.date() != self._day or is_full or sources != self._file_sources:
            self._begin_file(end, sources)
        assert self._file is not None
        os.ftruncate(self._file, self._size)
        data = memoryview(_encoded((*batch.requests, batch.period)))
        size = self._size
        while data:
            written = os.pwrite(self._file, data, size)
            data, size = data[written:], size + written
        os.fsync(self._file)
        self._size, self._written_mj = size, batch.period.open_mj

    def _begin_file(self, at: datetime, sources: Sequence[str]) -> None:
        number = self._files + 1
        path = self.folder / f"{at:%Y-%m-%dT%H%M%SZ}-{self.session}-{number:04}.jsonl"
        start = LedgerStart(
            format_version=FORMAT_VERSION, loadgen_version=__version__, session=self.session, file=number,
            open_mj=self._written_mj, sources=[source[:MAX_TEXT] for source in sources[:MAX_SOURCES]],
        )  # fmt: skip
        head = _encoded([start])
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            if os.pwrite(file, head, 0) < len(head):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            folder = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)  # a new name is on disk only with its folder
            finally:
                os.close(folder)
        except OSError:
            os.close(file)
            with suppress(OSError):
                path.unlink()  # the next attempt may be at another time, and have another name
            raise
        if self._file is not None:
            os.close(self._file)
        self._file, self._files, self._size, self._day = file, number, len(head), at.date()
        self._file_sources = sources


def _encoded(lines: Iterable[msgspec.Struct]) -> bytes:
    return msgspec.json.Encoder().encode_lines(lines)
