"""Cost of one step in seconds and joules, and the GPU that runs it. No clock, no I/O.

Letters: a step runs n sequences. Sequence i has s_i tokens in its KV cache and computes c_i more (c_i = 1 in decode).

    C = sum c_i                          tokens through the linear layers
    A = sum (c_i s_i + c_i (c_i+1)/2)    (query, key) pairs: grows with context, quadratic within a prefill
    K = sum (s_i + 2 c_i)                KV tokens moved: each cached token read once, each new one written and read

    linear time     max(2 N C / (F f),  W / (B b))        N = active parameters, F = peak FLOP/s, B = peak byte/s,
    attention time  max(4 L H D A / (F g),  K k / (B h))  f, b, g, h = achieved shares of the peaks, W = weight bytes
    step time t   = linear + attention + launch gap + n * per-sequence gap
    dynamic joules E = e_flop * FLOPs + e_byte * W + e_kv * K k
    static watts  S = idle (context resident) + active + leakage * (T - T_idle)
    power         P = S + E / t; above the limit the clocks drop until P = limit, so t = E / (limit - S)

A tensor-parallel group of G GPUs is one GPU with G times the peaks, watts and memory, and 2 all-reduces a layer of
C times the hidden size more time in each step:  2 layers (latency + 2 (G-1)/G * 2 bytes * hidden * C / link), the ring
algorithm's (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009; Shoeybi et al., arXiv:1909.08053).

A mixture of experts reads W = dense + the experts that the step's tokens chose, each once (experts.py draws them); with
expert parallelism the time is that of the GPU that reads most. The two phases each obey a roofline (Williams et al.,
CACM 52(4), 2009); FLOPs per token and per attention pair as in Korthikanti et al., arXiv:2205.05198, forward pass only.

Temperature follows T' = (ambient + R P - T) / tau, and leakage follows T: power drifts for minutes after load changes.

True cost shares: the fixed part of a step is its cost with one token that does nothing except make the dense weights be
read: their bytes, the gaps that do not depend on n, and the static watts over that time, which is longer where the
reads alone reach the power limit. Each of the n sequences has 1/n. The reads of experts cost their bytes, and the
static watts over their time; each expert is shared equally by the sequences that chose it (experts.py). The rest is
shared by own work, in proportion to the dynamic joules of each sequence's FLOPs and KV bytes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from numpy.random import Generator

from loadgen.energy.series import EnergySample
from loadgen.errors import LoadgenError
from loadgen.units import MJ_PER_J, NS_PER_MS, NS_PER_S, mj_from_j

if TYPE_CHECKING:
    from loadgen.energy_model.hardware import Hardware, Model


def group(hardware: Hardware, gpus: int) -> Hardware:
    """Return `gpus` equal GPUs as one, at the temperature of each: a watt warms 1/gpus as much, and all leak."""
    if gpus == 1:
        return hardware
    summed = ("memory_bytes", "peak_flops", "peak_bytes_per_s", "idle_empty_w", "resident_w", "active_w", "limit_w")
    scaled = {name: getattr(hardware, name) * gpus for name in (*summed, "leakage_w_per_k")}
    name = f"{gpus} {hardware.name}"
    return msgspec.structs.replace(hardware, name=name, kelvin_per_w=hardware.kelvin_per_w / gpus, **scaled)


def kv_cache_tokens(hardware: Hardware, *models: Model, memory_share: float = 0.9) -> int:
    """Return the KV tokens that fit beside the weights in `memory_share` of the memory (vLLM: gpu_memory_utilization).

    models: the served one, and a draft model if there is one. Raises LoadgenError if none fits.
    """
    weight_bytes = sum(model.parameters * model.bytes_per_parameter for model in models)
    tokens = int((hardware.memory_bytes * memory_share - weight_bytes) // sum(m.kv_bytes_per_token for m in models))
    if tokens < 1:
        need = weight_bytes / 1e9
        names = " with ".join(model.name for model in models)
        raise LoadgenError(
            f"{names} does not fit on one {hardware.name}: its weights take {need:.0f} GB, the GPU has "
            f"{hardware.memory_bytes / 1e9:.0f} GB; choose other --hardware or --model"
        )
    return tokens


class Load(NamedTuple):
    """Work of a step, summed over its sequences: n, C, A and K of the module's docstring, and the experts it reads."""

    sequences: int
    tokens: int
    pairs: int
    kv_tokens: int
    expert_bytes: float = 0.0
    waited_expert_bytes: float = 0.0
    """Bytes that the step waits for: above `expert_bytes` where one GPU of a group reads more of them than another."""


class StepCost(NamedTuple):
    """Cost of a step. `equal_j` per sequence plus its tokens, pairs and KV tokens at these prices, and `experts_j`, sum
    to `joules`."""

    duration_ns: int
    joules: float
    equal_j: float
    token_j: float
    pair_j: float
    kv_token_j: float
    experts_j: float = 0.0
    """Reads of experts, of all sequences together."""
    capped: bool = False
    """True if the power limit made the step longer."""

    def share_j(self, tokens: int, context: int) -> float:
        """Return the cost share, without experts, of a sequence that computed `tokens` after `context` cached ones."""
        pairs = tokens * context + tokens * (tokens + 1) // 2
        return self.equal_j + self.token_j * tokens + self.pair_j * pairs + self.kv_token_j * (context + 2 * tokens)


class CostLaw:
    """Cost law of the module's docstring, for one model on one GPU or on a tensor-parallel group of `gpus`."""

    def __init__(self, hardware: Hardware, model: Model, gpus: int = 1) -> None:
        self.hardware, self.model = group(hardware, gpus), model
        self.all_reduces_s = 2 * model.layers * hardware.all_reduce_s if gpus > 1 else 0.0
        link_bytes_per_token = 2 * model.layers * 2 * (gpus - 1) / gpus * 2 * model.heads * model.head_dim
        self.all_reduce_s_per_token = link_bytes_per_token / hardware.link_bytes_per_s
        self.flops_per_token = 2 * model.active_parameters
        self.token_j = hardware.joules_per_flop * self.flops_per_token
        self.pair_j = hardware.joules_per_flop * model.flops_per_pair
        self.kv_token_j = hardware.joules_per_kv_byte * model.kv_bytes_per_token
        self.dense_bytes = (model.parameters - model.expert_parameters) * model.bytes_per_parameter

    def static_w(self, temperature_c: float) -> float:
        """Return the power in a step that does not depend on its work."""
        return self.idle_w(temperature_c) + self.hardware.active_w

    def idle_w(self, temperature_c: float) -> float:
        hw = self.hardware
        return hw.idle_w + hw.leakage_w_per_k * (temperature_c - hw.idle_c)

    def unlimited_s(self, load: Load) -> float:
        """Return the step time without the power limit."""
        hw, model = self.hardware, self.model
        linear = max(
            self.flops_per_token * load.tokens / (hw.peak_flops * hw.linear_flops_efficiency),
            self._weight_read_s(self.dense_bytes + load.waited_expert_bytes),
        )
        attention = max(
            model.flops_per_pair * load.pairs / (hw.peak_flops * hw.attention_flops_efficiency),
            model.kv_bytes_per_token * load.kv_tokens / (hw.peak_bytes_per_s * hw.attention_bytes_efficiency),
        )
        link = self.all_reduces_s + self.all_reduce_s_per_token * load.tokens
        return linear + attention + link + hw.launch_gap_s + hw.sequence_gap_s * load.sequences

    def cost(self, load: Load, temperature_c: float) -> StepCost:
        hw = self.hardware
        static_w = self.static_w(temperature_c)
        own_j = self.token_j * load.tokens + self.pair_j * load.pairs + self.kv_token_j * load.kv_tokens
        dynamic_j = own_j + hw.joules_per_byte * (self.dense_bytes + load.expert_bytes)
        unlimited_s, limited_s = self.unlimited_s(load), dynamic_j / (hw.limit_w - static_w)
        seconds = max(unlimited_s, limited_s)
        duration_ns = math.ceil(seconds * NS_PER_S)
        joules = static_w * (duration_ns / NS_PER_S) + dynamic_j
        dense_j = hw.joules_per_byte * self.dense_bytes
        fixed_s = self._weight_read_s(self.dense_bytes) + hw.launch_gap_s + self.all_reduces_s
        fixed_j = static_w * max(fixed_s, dense_j / (hw.limit_w - static_w)) + dense_j
        experts_j = static_w * self._weight_read_s(load.waited_expert_bytes) + hw.joules_per_byte * load.expert_bytes
        scale = (joules - fixed_j - experts_j) / own_j
        return StepCost(
            duration_ns,
            joules,
            fixed_j / load.sequences,
            scale * self.token_j,
            scale * self.pair_j,
            scale * self.kv_token_j,
            experts_j,
            limited_s > unlimited_s,
        )

    def _weight_read_s(self, weight_bytes: float) -> float:
        return weight_bytes / (self.hardware.peak_bytes_per_s * self.hardware.linear_bytes_efficiency)


@dataclass(frozen=True, slots=True)
class CounterOptions:
    """Options of the simulated counter, including its errors."""

    period_ns: int = 100 * NS_PER_MS
    """Update period."""
    gain: float = 1.0
    """Calibration error: shown joules per true joule, on average."""
    noise: float = 0.0
    """Relative standard deviation of each period's increment. The error of a period is not corrected in the next."""
    keep_s: float | None = None
    """Length of the history to keep; None keeps all."""


class SimulatedCounter:
    """A cumulative energy counter that updates once per period and shows the energy up to that update, in whole mJ.

    It is never reset. Updates are at start_ns + k period. Energy is added in time order, in pieces of constant power.
    """

    def __init__(self, domain: str, start_ns: int, options: CounterOptions, rng: Generator) -> None:
        self.domain, self.options, self._rng = domain, options, rng
        keep = None if options.keep_s is None else int(options.keep_s * NS_PER_S / options.period_ns)
        self.samples: deque[EnergySample] = deque([EnergySample(start_ns, domain, 0.0, capped_ns=0)], maxlen=keep)
        self._added_ns = start_ns
        self._next_ns = start_ns + options.period_ns
        self._period_j = 0.0
        self._shown_j = 0.0
        self._capped_ns = 0

    def add(self, until_ns: int, joules: float, capped: bool = False) -> None:
        """Add `joules`, at constant power from the end of the previous piece until `until_ns`. capped: it is that of
        the power limit."""
        while until_ns >= self._next_ns:
            self._capped_ns += capped * (self._next_ns - self._added_ns)
            part = joules * (self._next_ns - self._added_ns) / (until_ns - self._added_ns)
            self._period_j += part
            joules -= part
            error = 1 + self.options.noise * self._rng.standard_normal() if self.options.noise else 1.0
            self._shown_j += max(0.0, self._period_j * self.options.gain * error)
            shown_j = int(self._shown_j * MJ_PER_J + 1e-6) / MJ_PER_J
            self.samples.append(EnergySample(self._next_ns, self.domain, shown_j, capped_ns=self._capped_ns))
            self._added_ns, self._period_j = self._next_ns, 0.0
            self._next_ns += self.options.period_ns
        self._period_j += joules
        self._capped_ns += capped * (until_ns - self._added_ns)
        self._added_ns = until_ns

    def shown(self, now_ns: int) -> EnergySample:
        """Return the reading at `now_ns`: the latest update at or before it."""
        return next((sample for sample in reversed(self.samples) if sample.t_ns <= now_ns), self.samples[0])


def each_gpu(samples: Iterable[EnergySample], gpus: int) -> list[EnergySample]:
    """Split a group's counter into those of its GPUs, gpu:0 to gpu:n-1: equal shares in whole mJ with the same sum."""
    return [
        msgspec.structs.replace(sample, domain=f"gpu:{i}", joules=(mj_from_j(sample.joules) + i) // gpus / MJ_PER_J)
        for sample in samples
        for i in range(gpus)
    ]


class Gpu:
    """One simulated GPU, or a group that works as one, in virtual time.

    It either runs a step or idles, and its counter counts both.
    """

    def __init__(self, law: CostLaw, counter: SimulatedCounter, start_ns: int) -> None:
        self.law, self.counter = law, counter
        self.now_ns = start_ns
        self.temperature_c = law.hardware.idle_c
        self.idle_j = 0.0
        self.step_j = 0.0

    def idle_until(self, t_ns: int) -> None:
        """Idle until `t_ns`, in pieces of at most a counter period, so that leakage follows the falling temperature.

        No request has a share of this energy.
        """
        while self.now_ns < t_ns:
            until_ns = min(t_ns, self.now_ns + self.counter.options.period_ns)
            joules = self.law.idle_w(self.temperature_c) * (until_ns - self.now_ns) / NS_PER_S
            self.idle_j += joules
            self._spend(until_ns, joules)

    def run(self, load: Load, law: CostLaw | None = None) -> StepCost:
        """Run a step from now_ns on; now_ns is its end afterwards. law: of another model than the served one."""
        cost = (law or self.law).cost(load, self.temperature_c)
        self.step_j += cost.joules
        self._spend(self.now_ns + cost.duration_ns, cost.joules, cost.capped)
        return cost

    def _spend(self, until_ns: int, joules: float, capped: bool = False) -> None:
        hw = self.law.hardware
        seconds = (until_ns - self.now_ns) / NS_PER_S
        settled_c = hw.ambient_c + hw.kelvin_per_w * joules / seconds
        self.temperature_c = settled_c + (self.temperature_c - settled_c) * math.exp(-seconds / hw.thermal_s)
        self.counter.add(until_ns, joules, capped)
        self.now_ns = until_ns
