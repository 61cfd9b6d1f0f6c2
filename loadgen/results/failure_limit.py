"""--max-failed: the number of requests, or the share of them, that may fail."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

from loadgen.errors import LoadgenError

_FORM = re.compile(r"(?P<number>[0-9]{1,9})|(?P<percent>[0-9]{1,3}(?:\.[0-9]{1,6})?) ?%")


@dataclass(frozen=True)
class FailureLimit:
    """A limit on failed requests: `share` of them, or `number` of them."""

    DEFAULT: ClassVar[str] = "1%"
    text: str
    number: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse "1%" (a share), or "5" (a number of requests). LoadgenError for anything else, 0.01 included."""
        form = _FORM.fullmatch(text.strip())
        if form is None or float(form["percent"] or 0) > 100:
            raise LoadgenError(f"--max-failed {text!r}: give a share such as 1%, or a number of requests such as 5")
        if form["number"]:
            return cls(text.strip(), number=int(form["number"]))
        return cls(text.strip(), share=float(form["percent"]) / 100)

    def exceeded(self, failed: int, requests: int) -> bool:
        """Return whether `failed` of `requests` are more than the limit."""
        if self.number is not None:
            return failed > self.number
        return failed > (self.share or 0.0) * requests + 1e-9
