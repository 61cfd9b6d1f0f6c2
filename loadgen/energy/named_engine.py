"""One engine of several: its name, where it answers, and the energy domains that are its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

import msgspec

from loadgen.energy.series import EnergyDomain, accelerators
from loadgen.errors import LoadgenError
from loadgen.http_get import public_url

Role: TypeAlias = Literal["prefill", "decode"]
"""prefill: it computes prompts, and another engine generates from them. decode: that other engine."""
ROLES: tuple[Role, ...] = get_args(Role)

MAX_ENGINES = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EXAMPLE = "an example is a=http://localhost:8001,gpus=0:1"
_OPTION = re.compile(r",(?=(?:gpus|role|energy)=)")


class NamedEngine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An engine that --engine names."""

    name: Annotated[str, msgspec.Meta(max_length=64)]
    """Name in the accounts; its spans and response headers name it so."""
    url: str
    """Root URL: its metrics page is read."""
    gpus: tuple[str, ...] = ()
    """Indices or UUIDs of its GPUs among those of this machine. Empty: all that its energy source has."""
    role: Role | None = None
    """Part of each request that it computes; None for all of it."""
    energy: str | None = None
    """Energy source of its own, such as the URL of a sidecar on its host; None for the source of all engines."""

    def public(self) -> NamedEngine:
        """Return it as it may be written down: without the passwords of its URLs."""
        url, energy = (text and public_url(urlsplit(text)) for text in (self.url, self.energy))
        return msgspec.structs.replace(self, url=url, energy=energy)


def parse_engine(text: str) -> NamedEngine:
    """Read NAME=URL[,gpus=0:1][,role=prefill|decode][,energy=URL]. Raises LoadgenError."""
    first, *options = _OPTION.split(text)
    name, _, url = first.partition("=")
    if not _NAME.fullmatch(name):
        raise LoadgenError(f"--engine {text[:80]!r} begins with no NAME= of letters, digits and ._-; {_EXAMPLE}")
    values = dict(option.split("=", 1) for option in options)
    if len(values) < len(options):
        raise LoadgenError(f"--engine {name} states an option twice")
    url, energy = _root(name, url), values.get("energy")
    if energy is not None and not _is_http(energy):
        raise LoadgenError(f"--engine {name}: energy={energy[:80]!r} is no URL; an example is http://host:9478")
    gpus = tuple(values["gpus"].split(":")) if "gpus" in values else ()
    if "" in gpus or len(set(gpus)) < len(gpus):
        raise LoadgenError(f"--engine {name}: gpus={values['gpus'][:80]!r} are not GPUs with colons between, as in 0:1")
    match values.get("role"):
        case None | "prefill" | "decode" as role:
            return NamedEngine(name=name, url=url, gpus=gpus, role=role, energy=energy)
        case role:
            raise LoadgenError(f"--engine {name}: role={role[:80]!r} is none of {', '.join(ROLES)}")


def parse_engines(texts: Iterable[str], *, sharing: bool = False) -> tuple[NamedEngine, ...]:
    """Read the values of --engine. Raises LoadgenError unless they go together.

    sharing: two engines may have the same GPUs, all of them. A law for more on one GPU does not tell them apart.
    """
    engines = tuple(map(parse_engine, texts))
    if len(engines) > MAX_ENGINES:
        raise LoadgenError(f"--engine names {len(engines)} engines; {MAX_ENGINES} are the most")
    for what, values in (("name", [e.name for e in engines]), ("URL", [e.url for e in engines])):
        if repeated := next((value for value in values if values.count(value) > 1), None):
            raise LoadgenError(f"--engine has the {what} {repeated} twice")
    roles = {engine.role for engine in engines}
    if roles & set(ROLES) and not roles.issuperset(ROLES):
        raise LoadgenError("--engine: role=prefill and role=decode go together")
    owners: dict[str, NamedEngine] = {}
    for engine in engines:
        for gpu in engine.gpus if engine.energy is None else ():
            owner = owners.setdefault(gpu, engine)
            if owner is not engine and not (sharing and set(owner.gpus) == set(engine.gpus)):
                raise LoadgenError(f"--engine: GPU {gpu} is of two engines")
            if sum(gpu in other.gpus and other.energy is None for other in engines) > 2:
                raise LoadgenError(f"--engine: GPU {gpu} is of more than two engines; two can be told apart")
    return engines


def domain_at(domain: str, engine: str) -> str:
    """Return the name of a domain that an engine's own energy source has: gpu:0 of engine b is gpu:0@b."""
    return f"{domain}@{engine}"


def domains_of(engine: NamedEngine, domains: Sequence[EnergyDomain]) -> list[EnergyDomain]:
    """Return the domains among `domains` whose joules are the engine's and may be added. Raises LoadgenError when its
    energy source has others, and not a GPU that it names."""
    if engine.energy is not None:
        own = [domain for domain in domains if domain.name.endswith(f"@{engine.name}")]
    else:
        own = [domain for domain in domains if "@" not in domain.name]
    own = accelerators(own)
    if not engine.gpus or not own:
        return own
    names = {key: domain for domain in own for key in (domain.name.partition("@")[0], domain.uuid) if key}
    if unknown := next((gpu for gpu in engine.gpus if gpu not in names and f"gpu:{gpu}" not in names), None):
        raise LoadgenError(f"--engine {engine.name}: its energy source has no GPU {unknown}")
    return [names.get(f"gpu:{gpu}") or names[gpu] for gpu in engine.gpus]


def _root(name: str, url: str) -> str:
    """Return the root of an engine's URL, which may be that of its API."""
    if not _is_http(url):
        raise LoadgenError(f"--engine {name}: {url[:80]!r} is no URL; {_EXAMPLE}")
    return url.rstrip("/").removesuffix("/v1")


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        public_url(parts)
    except ValueError:
        return False
    has_option = "," in f"{parts.hostname}{parts.path}"  # one that is misspelled
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not has_option
