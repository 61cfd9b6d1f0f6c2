"""Measured joules per request: the files of profiles/energy."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from loadgen.errors import LoadgenError
from loadgen.files import profile_path, read_json, replacing


class GridKey(NamedTuple):
    """Identifies a grid point within a profile: lengths of every request, and the requests in flight."""

    input: int
    output: int
    batch: int

    def __str__(self) -> str:
        return f"{self.input}x{self.output} at batch {self.batch}"


class GridPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of one request of these lengths, measured while `batch` equal requests were in flight."""

    input: int
    output: int
    batch: int
    joules_per_request: float
    stderr: float | None = None
    """Standard error of joules_per_request over the repeats; None with one repeat."""
    repeats: int = 1
    requests: int | None = None
    """Requests measured, over all repeats."""
    duration_s: float | None = None
    """Duration of all repeats together."""
    prefill_joules: float | None = None
    decode_joules: float | None = None
    """The two parts of joules_per_request, if the measurement can tell them apart."""
    settled: bool = True
    """False: the repeats ended with a wider confidence interval than requested."""

    @property
    def key(self) -> GridKey:
        return GridKey(self.input, self.output, self.batch)


class EnergyProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Joules measured on a grid of (input, output, batch), from profiles/energy/GPU-ENGINE-MODEL.json."""

    gpu: str
    """A name in profiles/hardware."""
    engine: str
    model: str
    """A name in profiles/models."""
    simulated: bool
    idle_w: float | None
    """Idle power with the model resident and no request in flight."""
    provenance: dict[str, Any]
    """Versions, flags, the meter and its period, the command."""
    cells: tuple[GridPoint, ...]
    """The grid points, under the name that the file format gives them."""

    @property
    def name(self) -> str:
        return f"{self.gpu}-{self.engine}-{self.model}"


def read_energy_profile(name: str) -> EnergyProfile:
    """Read and check a profile, by name or path. Raises LoadgenError."""
    path = profile_path("energy", name, "json")
    profile = read_json(path, EnergyProfile, "an energy profile (`loadgen profile` makes them)")
    if not profile.cells:
        raise LoadgenError(f"{path}: no cells in it: `loadgen profile` measures them")
    keys: set[GridKey] = set()
    for point in profile.cells:
        if min(point.key) < 1 or not (math.isfinite(point.joules_per_request) and point.joules_per_request > 0):
            raise LoadgenError(
                f"{path}: cell {tuple(point.key)}: expected lengths and a batch of at least 1, and joules above 0"
            )
        if point.key in keys:
            raise LoadgenError(f"{path}: cell {tuple(point.key)} is there twice")
        keys.add(point.key)
    return profile


def energy_profile_json(profile: EnergyProfile) -> bytes:
    """Encode a profile as JSON with one field or one grid point per line."""
    encode = msgspec.json.encode
    fields = {name: encode(getattr(profile, name)) for name in profile.__struct_fields__ if name != "cells"}
    points = sorted(profile.cells, key=lambda point: (point.batch, point.input, point.output))
    fields["cells"] = b"[\n" + b",\n".join(encode(point) for point in points) + b"\n]"
    return b"{\n" + b",\n".join(encode(name) + b": " + value for name, value in fields.items()) + b"\n}\n"


def write_energy_profile(path: Path, profile: EnergyProfile) -> None:
    """Write a profile, all or nothing, into a folder that is made if it does not exist. Raises LoadgenError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise LoadgenError(f"cannot write {path}: {err.strerror or err}") from err
    with replacing(path) as draft:
        draft.write(energy_profile_json(profile))
