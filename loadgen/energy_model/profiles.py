"""GPUs, models and measured energy by name: the files of profiles/hardware, profiles/models and profiles/energy."""

import math
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loadgen.errors import LoadgenError
from loadgen.files import profile_path, read_json


class Hardware(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """profiles/hardware/NAME.toml: one GPU. `*_efficiency` is the share of the peak that real kernels reach."""

    name: str
    memory_bytes: float
    peak_flops: float
    """Dense, at the precision that models are served in."""
    peak_sparse_flops: float | None = None
    """With 2:4 structured sparsity, which served models do not have: some publish it as the peak."""
    peak_bytes_per_s: float
    link_bytes_per_s: float
    """Each way, to the other GPUs of a tensor-parallel group."""
    linear_flops_efficiency: float
    linear_bytes_efficiency: float
    attention_flops_efficiency: float
    attention_bytes_efficiency: float
    launch_gap_s: float
    all_reduce_s: float
    """What one all-reduce takes however small it is."""
    sequence_gap_s: float
    idle_empty_w: float
    resident_w: float
    """What a loaded model adds to idle: the context keeps memory and clocks up."""
    active_w: float
    limit_w: float
    joules_per_flop: float
    joules_per_byte: float
    joules_per_kv_byte: float
    ambient_c: float
    kelvin_per_w: float
    thermal_s: float
    leakage_w_per_k: float

    @property
    def idle_w(self) -> float:
        """With the model resident, at the temperature that this power itself settles at."""
        return self.idle_empty_w + self.resident_w

    @property
    def idle_c(self) -> float:
        return self.ambient_c + self.kelvin_per_w * self.idle_w


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """profiles/models/NAME.toml: a transformer's shape."""

    name: str
    parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context_tokens: int
    bytes_per_parameter: float
    bytes_per_kv_value: float
    expert_parameters: float = 0.0
    """Of `parameters`, those in routed experts, all of them."""
    experts: int = 1
    experts_per_token: int = 1

    @property
    def active_parameters(self) -> float:
        return self.parameters - self.expert_parameters * (1 - self.experts_per_token / self.experts)

    @property
    def kv_bytes_per_token(self) -> float:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_kv_value

    @property
    def flops_per_pair(self) -> float:
        """Query times key, and weight times value: 2 FLOPs each per head dimension."""
        return 4.0 * self.layers * self.heads * self.head_dim

    def weight_bytes(self, tokens: int) -> float:
        """Weights that a step of `tokens` reads."""
        touched = 1 - (1 - self.experts_per_token / self.experts) ** tokens
        dense = self.parameters - self.expert_parameters
        return (dense + self.expert_parameters * touched) * self.bytes_per_parameter


Profile = TypeVar("Profile", Hardware, Model)


def read_hardware(name: str) -> Hardware:
    """A profile by name or path. Raises LoadgenError."""
    return _read(profile_path("hardware", name, "toml"), Hardware)


def read_model(name: str) -> Model:
    """A profile by name or path. Raises LoadgenError."""
    return _read(profile_path("models", name, "toml"), Model)


def _read(path: Path, kind: type[Profile]) -> Profile:
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text())
        return msgspec.convert({"name": path.stem} | table, kind)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as err:
        raise LoadgenError(f"{path}: not a {kind.__name__.lower()} profile: {err}") from err


# -- measured energy --------------------------------------------------------------------------------------------------


class GridPoint(msgspec.Struct, frozen=True, kw_only=True):
    """What one request of these lengths cost while `batch` of its kind were in flight."""

    input: int
    output: int
    batch: int
    joules_per_request: float
    stderr: float | None = None
    """Of joules_per_request, over the repeats; None with one repeat."""
    repeats: int = 1
    requests: int | None = None
    """How many were measured, over all repeats."""
    duration_s: float | None = None
    """Of all repeats together."""
    prefill_joules: float | None = None
    decode_joules: float | None = None
    """The two parts of joules_per_request, where something could tell them apart."""
    settled: bool = True
    """False: the repeats ended with a wider confidence interval than was asked for."""


class EnergyProfile(msgspec.Struct, frozen=True, kw_only=True):
    """profiles/energy/GPU-ENGINE-MODEL.json: joules measured per (input, output, batch) cell."""

    gpu: str
    """A name in profiles/hardware."""
    engine: str
    model: str
    """A name in profiles/models."""
    simulated: bool
    idle_w: float | None
    """With the model resident and no request in flight."""
    provenance: dict[str, Any]
    """Versions, flags, the meter and its period, the command."""
    cells: tuple[GridPoint, ...]

    @property
    def name(self) -> str:
        return f"{self.gpu}-{self.engine}-{self.model}"


def read_energy_profile(name: str) -> EnergyProfile:
    """A profile by name or path, seen to make sense. Raises LoadgenError."""
    path = profile_path("energy", name, "json")
    profile = read_json(path, EnergyProfile, "an energy profile (`loadgen profile` makes them)")
    if not profile.cells:
        raise LoadgenError(f"{path}: no cells in it: `loadgen profile` measures them")
    seen: set[tuple[int, int, int]] = set()
    for cell in profile.cells:
        key = (cell.input, cell.output, cell.batch)
        if min(key) < 1 or not (math.isfinite(cell.joules_per_request) and cell.joules_per_request > 0):
            raise LoadgenError(f"{path}: cell {key}: expected lengths and a batch of at least 1, and joules above 0")
        if key in seen:
            raise LoadgenError(f"{path}: cell {key} is there twice")
        seen.add(key)
    return profile


def energy_profile_json(profile: EnergyProfile) -> bytes:
    """JSON with one field and one cell a line."""
    encode = msgspec.json.encode
    fields = {name: encode(getattr(profile, name)) for name in profile.__struct_fields__ if name != "cells"}
    cells = sorted(profile.cells, key=lambda cell: (cell.batch, cell.input, cell.output))
    fields["cells"] = b"[\n" + b",\n".join(encode(cell) for cell in cells) + b"\n]"
    return b"{\n" + b",\n".join(encode(name) + b": " + value for name, value in fields.items()) + b"\n}\n"
