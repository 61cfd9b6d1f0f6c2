"""Shapes of GPUs and models: the files of profiles/hardware and profiles/models."""

import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loadgen.errors import LoadgenError
from loadgen.files import profile_path


class Hardware(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU, from profiles/hardware/NAME.toml. `*_efficiency` is the share of the peak that real kernels reach."""

    name: str
    memory_bytes: float
    peak_flops: float
    """Dense peak in FLOP/s, at the precision in which models are served."""
    peak_sparse_flops: float | None = None
    """Peak with 2:4 structured sparsity, which served models do not have; some publications use it as the peak."""
    peak_bytes_per_s: float
    link_bytes_per_s: float
    """Bandwidth in each direction to the other GPUs of a tensor-parallel group."""
    linear_flops_efficiency: float
    linear_bytes_efficiency: float
    attention_flops_efficiency: float
    attention_bytes_efficiency: float
    launch_gap_s: float
    all_reduce_s: float
    """Latency of one all-reduce, independent of its size."""
    sequence_gap_s: float
    idle_empty_w: float
    resident_w: float
    """Additional idle power of a loaded model: its context keeps memory and clocks up."""
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
        """Idle power with the model resident, at the temperature that this power itself leads to."""
        return self.idle_empty_w + self.resident_w

    @property
    def idle_c(self) -> float:
        return self.ambient_c + self.kelvin_per_w * self.idle_w


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shape of a transformer, from profiles/models/NAME.toml."""

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
    """Parameters of all routed experts together; included in `parameters`."""
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
        """FLOPs per (query, key) pair: query times key and weight times value, 2 each per head dimension."""
        return 4.0 * self.layers * self.heads * self.head_dim


_Shape = TypeVar("_Shape", Hardware, Model)


def read_hardware(name: str) -> Hardware:
    """Read a GPU's profile by name or path. Raises LoadgenError."""
    return _read(profile_path("hardware", name, "toml"), Hardware)


def read_model(name: str) -> Model:
    """Read a model's profile by name or path. Raises LoadgenError."""
    return _read(profile_path("models", name, "toml"), Model)


def _read(path: Path, kind: type[_Shape]) -> _Shape:
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text())
        return msgspec.convert({"name": path.stem} | table, kind)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as err:
        raise LoadgenError(f"{path}: not a {kind.__name__.lower()} profile: {err}") from err
