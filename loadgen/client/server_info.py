"""Facts about the server of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadgen.client.openai_api import Dialect
from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadgen.workload.schedule import ScheduledRequest


@dataclass(frozen=True)
class ServerInfo:
    """One model on one server."""

    base_url: str
    model: str
    engine: str | None
    """The engine's name: "vllm", "tgi", "ollama", "llamacpp", ...; for one that is not known, the model's owner as the
    server reports it."""
    max_model_len: int | None = None
    """Tokens of the longest prompt and output together; None if the server does not report it."""
    dialect: Dialect = field(default_factory=Dialect)
    max_input_tokens: int | None = None
    """Tokens of the longest prompt; None if the server does not report it."""
    listed: tuple[str, ...] = ()
    """Models that the server lists, when `model` is none of them."""
    addresses: tuple[str, ...] = ()
    """Addresses that connections go round over; empty where a proxy or TLS keeps them out of sight."""
    engine_version: str | None = None
    """Version of the engine; None if the server does not report it."""
    proxy: str | None = None
    """URL of the proxy that requests go through, without its login."""

    @property
    def root_url(self) -> str:
        """The URL without the API's /v1."""
        return self.base_url.removesuffix("/v1")

    @property
    def simulated(self) -> bool:
        """True for the simulated server of this package."""
        return self.engine == "loadgen-simulator"

    def check_fits(self, requests: Iterable[ScheduledRequest], max_context: int | None = None) -> None:
        """Raise LoadgenError if a request is longer than the model's context or than `max_context`, or its prompt than
        the server takes."""
        limit, input_limit = self.max_model_len, self.max_input_tokens
        for request in requests:
            inputs, outputs = request.input_tokens or 0, request.output_tokens or 0  # 0: not known before it is sent
            outputs = 0 if request.natural else outputs  # a recorded answer's are not requested
            if limit is not None and inputs + outputs > limit:
                raise LoadgenError(
                    f"{_name(request)} needs {inputs} + {outputs} tokens, "
                    f"but {self.model} takes {limit}: start the server with a longer context, {_remedy(request)}"
                )
            if max_context is not None and inputs + outputs > max_context:
                raise LoadgenError(
                    f"{_name(request)} needs {inputs} + {outputs} tokens, more than --max-context {max_context}: "
                    "--too-long leave-out or cut sends the others"
                )
            if input_limit is not None and inputs > input_limit:
                raise LoadgenError(
                    f"{_name(request)} has {inputs} input tokens, but the server takes "
                    f"{input_limit}: start it with a higher limit, {_remedy(request)}"
                )


def _name(request: ScheduledRequest) -> str:
    return f"request {request.index}" + (f" (line {request.words.line})" if request.words else "")


def _remedy(request: ScheduledRequest) -> str:
    if request.words is None:
        return "or choose another trace, or send the sessions that fit with --too-long leave-out or cut"
    return "leave the line out, or send it all the same with --count none"
