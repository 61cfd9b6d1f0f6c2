"""The wait for a server to be at rest, so that what a run left in it does not slow the next one."""

from __future__ import annotations

import logging
from time import monotonic, sleep
from typing import TYPE_CHECKING

from loadgen.http_get import REQUEST_ERRORS, http_get
from loadgen.telemetry.engine_metrics import EnginePoller

if TYPE_CHECKING:
    from loadgen.telemetry.engine_sample import EngineSample

_log = logging.getLogger(__name__)

_PERIOD_S = 0.1
_AWAY = (502, 503, 504)
"""Statuses with which a gateway says that there is no server behind it."""


def wait_until_at_rest(root_url: str, owner: str | None, timeout_s: float) -> bool:
    """Return whether the engine's metrics page came to say that no request runs or waits. Blocks up to `timeout_s`.

    An engine without such a page is taken to be at rest. owner: the engine, as its model list states it.
    """
    samples: list[EngineSample] = []
    poller = EnginePoller(root_url, samples.append, owner=owner)
    until_s = monotonic() + timeout_s
    while True:
        before = len(samples)
        poller.read_now()
        if len(samples) == before:
            return True
        if not (samples[-1].get("running") or samples[-1].get("waiting")):
            return True
        if monotonic() >= until_s:
            _log.info("the server is not at rest after %(seconds).0f s", {"seconds": timeout_s})
            return False
        sleep(_PERIOD_S)


def answers(base_url: str) -> bool:
    """Return whether anything answers at the server's URL, be it that the request is refused."""
    try:
        response = http_get(f"{base_url.rstrip('/')}/models")
    except REQUEST_ERRORS:
        return False
    return response.status not in _AWAY
