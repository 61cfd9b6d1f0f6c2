"""LiteLLM callback that puts the measured joules of each call beside what LiteLLM charges for it.

In the proxy's config.yaml:

    litellm_settings:
      callbacks: ["loadgen.integrations.litellm.energy"]

In a program: `litellm.callbacks = [LiteLLMEnergy("http://gpu-host:9478")]`.
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from loadgen.clock import anchor, monotonic_ns
from loadgen.errors import LoadgenError, MeterError
from loadgen.extras import importing
from loadgen.http_get import PageClient
from loadgen.integrations.call_energy import MAX_TEXT, CallEnergy, EnergyCounters, EnergyLog, GatewayCall, call_energy
from loadgen.integrations.call_spans import Place, PlacedCall, export_calls, place_of
from loadgen.integrations.energy_lookup import EnergyLookup, RequestEnergy
from loadgen.telemetry.otlp_export import TOKEN_VARIABLE, BatchSender
from loadgen.telemetry.traceparent import TRACEPARENT
from loadgen.units import ns_from_s

with importing("the LiteLLM callback", "litellm"):
    from litellm.integrations.custom_logger import CustomLogger

_log = logging.getLogger(__name__)

DEFAULT_SIDECAR = "http://localhost:9478"
DEFAULT_LABELS = ("requested_model", "team", "team_alias", "api_key_alias")
REQUEST_ID = "X-Request-Id"
ID_OF_ANSWER = "x-loadgen-request-id"
"""Header of the proxy's answer with the id that GET /requests/ID of the sidecar knows."""
MAX_ATTEMPTS = 32
"""Attempts of a call that are remembered."""
_KEY, _NEWEST = "loadgen_attempts", "loadgen_request_id"
"""Keys in LiteLLM's details of a call: of the attempts that have not ended, and of the id of the newest."""

Result = TypeVar("Result")


class Attempt(NamedTuple):
    """A request to an engine, and the sidecar that knows it."""

    request_id: str
    sidecar: str
    begin_unix_ns: int | None = None
    """Is None if LiteLLM did not announce it."""
    place: Place | None = None
    """Place of its span in a trace; None if no span is sent."""


class LiteLLMEnergy(CustomLogger):  # type: ignore[misc]  # mypy runs without litellm
    """Gives each call to an engine an id of its own, and looks its joules up when the engine's sidecar has settled it.

    Subclass it to do something with the joules: `on_energy` gets them. Nothing of it delays or fails a call.
    """

    def __init__(
        self,
        sidecar: str | Mapping[str, str] = DEFAULT_SIDECAR,
        *,
        price_per_kwh: float | None = None,
        log: str | Path | None = None,
        labels: Sequence[str] = DEFAULT_LABELS,
        spans: bool = True,
    ) -> None:
        """Raises LoadgenError for a URL, price, file or label that cannot be used.

        sidecar: the URL of a sidecar, or one by the `api_base` of the engines that it watches. Calls to others are
        left alone; of a single sidecar, those without an `api_base`. $LOADGEN_SIDECAR_TOKEN is theirs.
        log: file for a line of JSON per call.
        labels: of the Prometheus counters.
        spans: report the calls to the sidecar, with team, user and key, which `sidecar --label` then knows.
        """
        super().__init__()
        if price_per_kwh is not None and not 0 <= price_per_kwh < float("inf"):
            raise LoadgenError(f"the price of a kWh cannot be {price_per_kwh}")
        self._sidecars = {"": sidecar} if isinstance(sidecar, str) else {k.rstrip("/"): v for k, v in sidecar.items()}
        token = os.environ.get(TOKEN_VARIABLE) or None
        try:
            pages = {url: PageClient(url, token, monotonic_ns) for url in self._sidecars.values()}
        except MeterError as err:
            raise LoadgenError(f"the sidecar of the LiteLLM callback: {err}") from err
        self._price_per_kwh = price_per_kwh
        self._log = EnergyLog(Path(log)) if log else None
        self._counters = EnergyCounters(labels)
        self._senders: dict[str, BatchSender[PlacedCall]] = (
            {url: BatchSender(url, export_calls) for url in pages} if spans else {}
        )
        self._started: list[BatchSender[PlacedCall]] = []
        self._starting = threading.Lock()
        self.lookup = EnergyLookup(pages)
        self.errors = 0
        """Calls that the callback could not follow; the first is in the log."""

    def on_energy(self, energy: CallEnergy) -> None:
        """Do something with the joules of a call. It is called in a thread of its own: the next call's wait for it."""

    def wait(self, timeout_s: float) -> bool:
        """Block until the joules of all calls are known or given up. Return False if the time is over."""
        return self.lookup.wait(timeout_s)

    # -- LiteLLM's hooks ------------------------------------------------------------------------------------------

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> dict[str, Any] | None:
        """Return the arguments of an attempt with a request id of its own, if a sidecar watches its engine."""
        return self._guarded(partial(self._named, kwargs))

    async def async_post_call_response_headers_hook(
        self, data: dict[str, Any], user_api_key_dict: Any, response: Any, **_: Any
    ) -> dict[str, str] | None:
        """Return the header of the proxy's answer by which its client can look the request up."""
        return self._guarded(partial(_answer_headers, data))

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        self._guarded(partial(self._ended, kwargs, ok=True))

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        self._guarded(partial(self._ended, kwargs, ok=False))

    async def async_post_call_failure_deployment_hook(
        self, request_data: Any, exception: Any, *_: Any, **__: Any
    ) -> None:
        """Look up an attempt that failed. LiteLLM reports the first as an event, and the retries only here."""
        self._guarded(partial(self._failed, request_data))

    def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        self._guarded(partial(self._ended, kwargs, ok=True))

    def log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        self._guarded(partial(self._ended, kwargs, ok=False))

    # -- what they do ---------------------------------------------------------------------------------------------

    def _named(self, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        sidecar = self._sidecar_of(kwargs.get("api_base") or kwargs.get("base_url"))
        headers = kwargs.get("extra_headers") or {}
        details = getattr(kwargs.get("litellm_logging_obj"), "model_call_details", None)
        if sidecar is None or details is None or not isinstance(headers, Mapping):
            return None
        attempts = details.setdefault(_KEY, [])
        if any(attempt.request_id == headers.get(REQUEST_ID) for attempt in attempts):
            return None  # LiteLLM makes this call for one that has its id
        # An id that a client chose could be another tenant's, whose joules would then be this call's.
        request_id = f"litellm-{uuid.uuid4().hex}"
        place = place_of(request_id, _header(headers, TRACEPARENT)) if self._senders else None
        attempt = Attempt(request_id, sidecar, anchor().wall_ns, place)
        details[_NEWEST] = attempt.request_id
        attempts.append(attempt)
        del attempts[:-MAX_ATTEMPTS]
        own = {REQUEST_ID: request_id} | ({TRACEPARENT: place.header} if place else {})
        named = kwargs | {"extra_headers": _without(headers, own) | own}
        if isinstance(kwargs.get("headers"), Mapping):
            named["headers"] = _without(kwargs["headers"], own)
        return named

    def _sidecar_of(self, api_base: Any) -> str | None:
        """Return the URL of the sidecar that watches an engine."""
        if not api_base:
            return None
        bases = [base for base in self._sidecars if _is_below(str(api_base), base)]
        return self._sidecars[max(bases, key=len)] if bases else None

    def _ended(self, kwargs: Mapping[str, Any], *, ok: bool) -> None:
        """Look up each attempt of a call that has ended: those before the one that succeeded used energy too."""
        payload = kwargs["standard_logging_object"]
        attempts: list[Attempt] | None = kwargs.get(_KEY)
        if attempts is None:  # a call of litellm.completion, which has no hook: the id of the engine's answer
            sidecar = self._sidecar_of(payload["api_base"])
            ended = [Attempt(str(payload["id"]), sidecar)] if ok and sidecar else []
        else:
            ended = list(attempts)
            attempts.clear()
        if kwargs.get("cache_hit") or payload.get("cache_hit"):
            return  # LiteLLM's own cache answered
        for number, attempt in enumerate(ended, 1):
            call = gateway_call(kwargs, attempt, ok=ok and number == len(ended))
            if attempt.place:
                self._report(self._senders[attempt.sidecar], PlacedCall(call, attempt.place))
            if not self.lookup.add(attempt.sidecar, attempt.request_id, partial(self._deliver, call)):
                self._counters.add(call, None)

    def _failed(self, kwargs: Mapping[str, Any]) -> None:
        details = kwargs["litellm_logging_obj"].model_call_details
        if details.get("standard_logging_object"):
            self._ended(details, ok=False)

    def _report(self, sender: BatchSender[PlacedCall], call: PlacedCall) -> None:
        with self._starting:
            if sender not in self._started:  # not before: processes that a server forks have no threads
                sender.start()
                self._started.append(sender)
        sender.add(call)

    def _deliver(self, call: GatewayCall, measured: RequestEnergy | None) -> None:
        energy = call_energy(call, measured, self._price_per_kwh)
        self._counters.add(call, energy)
        if self._log:
            self._log.add(energy)
        self.on_energy(energy)

    def _guarded(self, action: Callable[[], Result]) -> Result | None:
        try:
            return action()
        except Exception as err:  # what LiteLLM hands over may change; its calls go on without their joules
            if not self.errors:  # without the text of the error, which may hold a prompt
                line = traceback.extract_tb(err.__traceback__)[-1]
                kind = f"{type(err).__name__} in {line.filename}, line {line.lineno}"
                _log.warning("a call of LiteLLM could not be followed, and its joules are unknown: %s", kind)
            self.errors += 1
            return None


def _header(headers: Mapping[str, Any], name: str) -> str:
    return next((str(value) for key, value in headers.items() if key.lower() == name), "")


def _without(headers: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    removed = {name.lower() for name in names}
    return {name: value for name, value in headers.items() if name.lower() not in removed}


def _is_below(url: str, base: str) -> bool:
    """Return True if a URL is a base, or a path below it."""
    return url.startswith(base) and url[len(base) : len(base) + 1] in ("", "/", "?") if base else True


def _answer_headers(data: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the id of the newest attempt; None of a call that had none, such as one that was refused."""
    details = getattr(data.get("litellm_logging_obj"), "model_call_details", {})
    return {ID_OF_ANSWER: details[_NEWEST]} if _NEWEST in details else None


def gateway_call(kwargs: Mapping[str, Any], attempt: Attempt, *, ok: bool) -> GatewayCall:
    """Return what LiteLLM reports about a call. `kwargs` are those of its success and failure events."""
    payload = kwargs["standard_logging_object"]
    metadata = payload["metadata"]
    begin_ns = attempt.begin_unix_ns or ns_from_s(float(payload["startTime"]))
    end_ns = max(begin_ns, ns_from_s(float(payload["endTime"])))
    first_ns = ns_from_s(float(payload["completionStartTime"])) if ok and payload.get("stream") else None
    usage = _usage(kwargs) if ok else {}
    cost = payload.get("response_cost") if ok else None
    return GatewayCall(
        call_id=_text(payload.get("litellm_call_id")),
        request_id=attempt.request_id,
        ok=ok,
        requested_model=_text(payload.get("model_group") or payload.get("model")),
        team=_text(metadata.get("user_api_key_team_id")),
        team_alias=_text(metadata.get("user_api_key_team_alias")),
        user=_text(metadata.get("user_api_key_user_id")),
        api_key_alias=_text(metadata.get("user_api_key_alias")),
        end_user=_text(payload.get("end_user")),
        cost=float(cost) if isinstance(cost, (int, float)) and isfinite(cost) else None,
        begin_unix_ns=begin_ns,
        end_unix_ns=end_ns,
        first_token_unix_ns=first_ns if first_ns and begin_ns <= first_ns <= end_ns else None,
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
    )


def _usage(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the engine's own usage; nothing of a stream without it, of which LiteLLM estimates the tokens."""
    payload = kwargs["standard_logging_object"]
    stream_options = kwargs.get("optional_params", {}).get("stream_options") or {}
    if payload.get("stream") and not stream_options.get("include_usage"):
        return {}
    return payload["metadata"].get("usage_object") or {}


def _text(value: Any) -> str:
    """Return a text that can be encoded and is not too long; empty for None."""
    return "" if value is None else str(value)[:MAX_TEXT].encode(errors="replace").decode()


def from_environment(environment: Mapping[str, str]) -> LiteLLMEnergy:
    """Return the callback that environment variables describe. Raises LoadgenError."""
    sidecar = environment.get("LOADGEN_SIDECAR") or DEFAULT_SIDECAR
    by_engine = [part.strip().partition("=")[::2] for part in sidecar.split(",")] if "=" in sidecar else []
    price = environment.get("LOADGEN_PRICE_PER_KWH") or None
    labels = environment.get("LOADGEN_LITELLM_LABELS")
    try:
        price_per_kwh = None if price is None else float(price)
    except ValueError as err:
        raise LoadgenError(f"$LOADGEN_PRICE_PER_KWH is {price!r}: expected a number") from err
    return LiteLLMEnergy(
        dict(by_engine) or sidecar,
        price_per_kwh=price_per_kwh,
        log=environment.get("LOADGEN_ENERGY_LOG") or None,
        labels=DEFAULT_LABELS if labels is None else [label.strip() for label in labels.split(",") if label.strip()],
    )


def __getattr__(name: str) -> LiteLLMEnergy:
    """Return `energy`, the callback for a config.yaml, which is made when it is first used."""
    if name != "energy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    callback = globals()["energy"] = from_environment(os.environ)
    return callback
