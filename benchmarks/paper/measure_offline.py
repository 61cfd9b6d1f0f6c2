#!/usr/bin/env python3
"""Measure joules per output token of serving frameworks by batch, on a GPU host without a network, in a fixed time.

    python3 -m benchmarks.paper.measure_offline --out OUT --site SITE

runs batches of equal prompts and answers, with random weights, offline and in-process (no client is involved):

    vllm-graphs   vLLM with its defaults: torch.compile, CUDA graphs
    hf-eager      Hugging Face generate(), eager: the unoptimized baseline
    vllm-eager    vLLM without compilation and graphs
    hf-compile    generate() with a static cache, which transformers compiles

Each stage is a child process with a deadline of its own; one that fails or overruns is ended and the next one begins.
Time that a stage leaves unused goes to the later ones. The summary is rewritten after every cell, so that stopping
early leaves a result. This process reads the energy counter, with loadgen's own meter and sampler, and changes no
setting of the GPU.

It needs: torch, transformers, nvidia-ml-py, numpy, and in SITE (a folder for PYTHONPATH) vllm and msgspec.
OUT gets summary.json (one object a cell), energy.jsonl (every update of the counter), and one log a stage.

Drafts from random weights are never accepted, so speculative decoding accepts at a fixed rate, which every cell counts.
With a draft model, four tokens ahead, each accepted with 0.7 if the one before it was:

    --stages vllm-graphs --draft llama-3.2-1b --vllm-args '{"speculative_config": {"method": "draft_model",
    "num_speculative_tokens": 4, "rejection_sample_method": "synthetic",
    "synthetic_acceptance_rates": [0.7, 0.49, 0.343, 0.2401]}}'
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

CELLS = {
    "vllm-graphs": "512x128@128,1,32,8,256,64,512,16,4,2",
    "hf-eager": "512x128@8,128,1,32,64,256,16,4,2",
    "vllm-eager": "512x128@1,8,128,32,256",
    "hf-compile": "512x128@8,1,32,128",
}
"""Input x output tokens @ batches. The most informative batches come first, in case time runs out."""
SHARES = {"vllm-graphs": 0.40, "hf-eager": 0.22, "vllm-eager": 0.22, "hf-compile": 0.16}
"""Share of the time of each stage."""

_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16"}
_OLMO = {"vocab_size": 50304, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
         "num_key_value_heads": 16, "max_position_embeddings": 4096, "hidden_act": "silu", "torch_dtype": "bfloat16",
         "pad_token_id": 1, "eos_token_id": 50279}  # fmt: skip
SHAPES = {
    "llama-3.1-8b": _LLAMA | {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "bos_token_id": 0,
        "eos_token_id": 1, "tie_word_embeddings": False},
    "llama-3.2-1b": _LLAMA | {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "bos_token_id": 0,
        "eos_token_id": 1, "tie_word_embeddings": True},
    "olmo-1b": _OLMO | {"architectures": ["OlmoForCausalLM"], "model_type": "olmo", "intermediate_size": 8192,
        "tie_word_embeddings": True},
    "olmoe-1b-7b": _OLMO | {"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "intermediate_size": 1024,
        "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False},
    "tiny": _LLAMA | {"vocab_size": 4096, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False,
        "torch_dtype": "float32"},
}  # fmt: skip
MARK = "@@ "
MIN_CELL_S = 6.0


def main() -> None:
    options = parse()
    if options.stage:
        child(options)
    else:
        Study(options).run()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--site", help="folder with vllm and msgspec, for PYTHONPATH")
    parser.add_argument("--vllm-python", default=sys.executable, help="the Python that has vllm, if not this one")
    parser.add_argument("--hf-python", default=sys.executable, help="the Python that has transformers, if not this one")
    parser.add_argument("--shape", default="llama-3.1-8b", choices=sorted(SHAPES))
    parser.add_argument("--stages", default=",".join(CELLS), help="in this order")
    parser.add_argument("--cells", help='instead of each stage\'s own, e.g. "512x128@1,8,128 2048x32@8"')
    parser.add_argument("--tp", type=int, default=1, help="GPUs of a vLLM stage")
    parser.add_argument("--vllm-args", default="{}", help='JSON for vllm.LLM, e.g. {"quantization": "fp8"}')
    parser.add_argument("--draft", choices=sorted(SHAPES), help="shape of speculative_config's draft model")
    parser.add_argument("--sampling", default="{}", help='JSON for SamplingParams or generate(), e.g. {"num_beams": 4}')
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--window-s", type=float, default=3.0, help="shortest measurement; always whole batches")
    parser.add_argument("--budget-s", type=float, default=560.0, help="seconds for all stages together")
    parser.add_argument("--energy", default="nvml", help="nvml; cpu is an estimate for trying the script")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--until-ns", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


# ---------------------------------------------------------------- the process that measures


class Study:
    """Reads the counter, runs the stages one after the other and writes the results so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        sys.path.insert(0, str(ROOT))
        if options.site:
            sys.path.append(options.site)  # last: only for packages that this Python lacks
        from loadgen.energy.choose import open_meter
        from loadgen.energy.sampler import Sampler

        self.options = options
        self.end_ns = time.monotonic_ns() + round(options.budget_s * 1e9)
        options.out.mkdir(parents=True, exist_ok=True)
        for folder, shape in {"model": options.shape, "draft": options.draft}.items():
            if shape:
                (options.out / folder).mkdir(exist_ok=True)
                (options.out / folder / "config.json").write_text(json.dumps(SHAPES[shape]))
        self.meter, reasons = open_meter(options.energy)
        if self.meter is None:
            raise SystemExit(f"no energy source: {reasons}")
        self.samples: list = []
        self.sampler = Sampler(self.meter, self.samples.extend)
        self.file = (options.out / "energy.jsonl").open("wb")
        self.written = 0
        self.summary = {
            "shape": options.shape, "config": SHAPES[options.shape],
            "tensor_parallel": options.tp, "repeats": options.repeats,
            "vllm_args": json.loads(options.vllm_args), "draft": options.draft,
            "sampling": json.loads(options.sampling), "window_s": options.window_s, "seed": options.seed,
            "weights": "random",
            "argv": [a for a in sys.argv[1:] if "/" not in a], "started_wall_s": time.time(), "gpus": gpu_facts(),
            "energy": {}, "stages": {}, "cells": [],
        }  # fmt: skip

    def run(self) -> None:
        self.sampler.start()
        try:
            time.sleep(2.5)
            self.summary["no_context_w"] = self.watts_since(2.0)
            self.say(f"no context: {self.summary['no_context_w']} W; {self.summary['gpus']}")
            stages = self.options.stages.split(",")
            for number, stage in enumerate(stages):
                shares_left = sum(SHARES[name] for name in stages[number:])
                left_ns = self.end_ns - time.monotonic_ns()
                if left_ns < 20e9:
                    self.say(f"{stage}: no time left")
                    break
                self.stage(stage, time.monotonic_ns() + round(left_ns * SHARES[stage] / shares_left))
        finally:
            self.finish()

    def stage(self, name: str, until_ns: int) -> None:
        started = time.monotonic()
        self.say(f"{name}: {(until_ns - time.monotonic_ns()) / 1e9:.0f} s")
        facts = self.summary["stages"][name] = {"ended": "unknown"}
        with (self.options.out / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                self.command(name, until_ns),
                env=self.environment(name),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                process_group=0,
            )
            try:
                facts["ended"] = self.follow(process, name, until_ns, log, facts)
            except Exception as err:  # one stage's failure must not end the other stages
                facts["ended"] = f"{type(err).__name__}: {err}"
            finally:
                end_group(process)
        facts["seconds"] = round(time.monotonic() - started, 1)
        self.say(f"{name}: {facts['ended']} after {facts['seconds']} s")
        self.write()

    def command(self, name: str, until_ns: int) -> list[str]:
        options = self.options
        python = options.vllm_python if name.startswith("vllm") else options.hf_python
        words = [python, __file__, "--stage", name, "--until-ns", str(until_ns), "--out", str(options.out.resolve())]
        for key in ("shape", "tp", "repeats", "window_s", "device", "seed", "cells", "vllm_args", "draft", "sampling"):
            if (value := getattr(options, key)) is not None:
                words += ["--" + key.replace("_", "-"), str(value)]
        return words

    def environment(self, name: str) -> dict[str, str]:
        extra = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
        if name.startswith("vllm"):
            if self.options.tp == 1:
                extra["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            if self.options.site:
                extra["PYTHONPATH"] = self.options.site
        return {**os.environ, **extra}

    def follow(self, process: subprocess.Popen, name: str, until_ns: int, log, facts: dict) -> str:
        """Handle every event of the child until it ends or its time is over; return how it ended."""
        lines: queue.Queue = queue.Queue()

        def read() -> None:
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        while True:
            left_s = (until_ns - time.monotonic_ns()) / 1e9 + 3
            try:
                line = lines.get(timeout=max(left_s, 0.01))
            except queue.Empty:
                return "ended by the deadline"
            if line is None:
                return "done" if process.wait() == 0 else f"failed with status {process.returncode}, see {name}.log"
            if not line.startswith(MARK):
                log.write(line)
                log.flush()
                continue
            event = json.loads(line[len(MARK) :])
            match event.pop("event"):
                case "ready":
                    facts.update(event)
                    self.say(f"{name}: ready, {event}")
                case "idle":
                    facts["resident_w"] = self.joules(event)["watts"]
                case "cell":
                    self.cell(name, event)
                case "note":
                    facts.setdefault("notes", []).append(event["text"])
                    self.say(f"{name}: {event['text']}")

    def cell(self, name: str, event: dict) -> None:
        """Add a cell for one batch size: joules of each repeat, and of its prefill alone."""
        full = [self.joules(window) for window in event["full"]]
        prefill = [self.joules(window) for window in event["prefill"]]
        measured = [part for part in full if part["joules"] is not None]
        size = event["batch"] * event["output_tokens"]
        per_token = [part["joules"] / part["batches"] / size for part in measured]
        cell = {
            "stage": name, "input_tokens": event["input_tokens"], "output_tokens": event["output_tokens"],
            "batch": event["batch"], "first_batch_s": event["first_batch_s"],
            "full": full, "prefill": prefill, "speculation": event["speculation"],
            "joules_per_output_token": mean(per_token),
            "spread": (max(per_token) - min(per_token)) / mean(per_token) if len(per_token) > 1 else None,
            "output_tokens_per_s": mean([part["batches"] * size / part["seconds"] for part in full]),
            "mean_w": mean([part["watts"] for part in measured]),
            "batch_s": mean([part["seconds"] / part["batches"] for part in full]),
            "prefill_joules_per_batch": mean([p["joules"] / p["batches"] for p in prefill if p["joules"] is not None]),
            "gpus": gpu_facts(),
        }  # fmt: skip
        self.summary["cells"].append(cell)
        shown = {key: round(value, 4) for key, value in cell.items() if isinstance(value, float)}
        self.say(f"{name} {event['input_tokens']}x{event['output_tokens']}@{event['batch']}: {shown}")
        self.write()

    def joules(self, window: dict) -> dict:
        """Add to a window its joules of all GPUs together and their error bound; None when it was not covered."""
        from loadgen.energy.counter_clock import align_to_counter_clock
        from loadgen.energy.series import series_by_domain

        wait_until = time.monotonic() + 1.0
        while self.samples and self.last_ns() < window["end_ns"] and time.monotonic() < wait_until:
            time.sleep(0.02)
        series = [
            align_to_counter_clock(domain_series) for domain_series in series_by_domain(list(self.samples)).values()
        ]
        parts = [
            (
                domain_series.energy_mj(window["start_ns"], window["end_ns"]),
                domain_series.uncertainty_mj(window["start_ns"], window["end_ns"]),
            )
            for domain_series in series
        ]
        seconds = (window["end_ns"] - window["start_ns"]) / 1e9
        covered = parts and all(energy is not None for energy, _ in parts)
        joules = sum(energy for energy, _ in parts) / 1e3 if covered else None
        return {
            **window,
            "seconds": seconds,
            "joules": joules,
            "u_joules": sum(u for _, u in parts) / 1e3 if covered else None,
            "watts": joules / seconds if joules is not None else None,
        }

    def last_ns(self) -> int:
        latest: dict[str, int] = {}
        for sample in self.samples[-64:]:
            latest[sample.domain] = sample.t_ns
        return min(latest.values())

    def watts_since(self, seconds: float) -> float | None:
        now_ns = time.monotonic_ns()
        return self.joules({"start_ns": now_ns - round(seconds * 1e9), "end_ns": now_ns})["watts"]

    def say(self, text: str) -> None:
        left_s = (self.end_ns - time.monotonic_ns()) / 1e9
        print(f"[{left_s:5.0f} s left] {text}", flush=True)

    def write(self) -> None:
        import msgspec

        new, self.written = self.samples[self.written :], len(self.samples)
        self.file.write(b"".join(msgspec.json.encode(sample) + b"\n" for sample in new))
        self.file.flush()
        self.summary["energy"] = {
            "domains": msgspec.to_builtins(self.meter.domains),
            "notes": self.meter.notes,
            "sampler": msgspec.to_builtins(self.sampler.report()),
        }
        draft = self.options.out / "summary.json.tmp"
        draft.write_text(json.dumps(self.summary, indent=1))
        draft.replace(self.options.out / "summary.json")

    def finish(self) -> None:
        self.sampler.stop()
        self.write()
        self.file.close()
        columns = ("joules_per_output_token", "spread", "output_tokens_per_s", "mean_w", "prefill_joules_per_batch")
        names = ("J/token", "spread", "token/s", "W", "J prefill")
        print(f"\n{'stage':<12} {'lengths':>9} {'batch':>5} {' '.join(f'{name:>9}' for name in names)}")
        for cell in self.summary["cells"]:
            columns_text = [f"{cell[key]:>9.4g}" if cell[key] is not None else f"{'-':>9}" for key in columns]
            lengths = f"{cell['input_tokens']}x{cell['output_tokens']}"
            print(f"{cell['stage']:<12} {lengths:>9} {cell['batch']:>5} {' '.join(columns_text)}")


def mean(values: list) -> float | None:
    return sum(values) / len(values) if values else None


def end_group(process: subprocess.Popen) -> None:
    for number, patience_s in ((signal.SIGTERM, 6), (signal.SIGKILL, 10)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)


def gpu_facts() -> list[dict]:
    """Read name, driver, limit, temperature, clock and throttling of each GPU. Empty without NVML; nothing is set."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [_gpu_facts(pynvml, pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _gpu_facts(pynvml, handle) -> dict:
    readers = {
        "name": lambda: pynvml.nvmlDeviceGetName(handle),
        "driver": lambda: pynvml.nvmlSystemGetDriverVersion(),
        "limit_w": lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "sm_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "event_reasons": lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    }
    facts = {}
    for key, ask in readers.items():
        with suppress(pynvml.NVMLError):
            facts[key] = ask()
    return facts


# ---------------------------------------------------------------- the child process that computes


def child(options: argparse.Namespace) -> None:
    """Load one framework and run its batches; report the start and end of each to the parent."""
    started = time.monotonic()
    engine = (Vllm if options.stage.startswith("vllm") else Transformers)(options)
    send("ready", load_s=round(time.monotonic() - started, 1), **engine.versions)
    idle_start = time.monotonic_ns()
    time.sleep(1.5)
    send("idle", start_ns=idle_start + 300_000_000, end_ns=time.monotonic_ns())
    for size in cells_of(options):
        if left_s(options) < MIN_CELL_S:
            send("note", text=f"no time for {size}: {left_s(options):.0f} s left")
            continue
        try:
            cell(engine, size, options)
        except Exception as err:
            send("note", text=f"{size} failed: {type(err).__name__}: {str(err)[:300]}")
            engine.forget()
    engine.close()


class Size(NamedTuple):
    input: int
    output: int
    batch: int


def cells_of(options: argparse.Namespace) -> list[Size]:
    """Return the sizes of e.g. `512x128@1,8 2048x32@8`, in that order."""
    sizes = []
    for group in (options.cells or CELLS[options.stage]).split():
        lengths, batches = group.split("@")
        sizes += [Size(*map(int, lengths.split("x")), int(batch)) for batch in batches.split(",")]
    return sizes


def cell(engine, size: Size, options: argparse.Namespace) -> None:
    start = time.monotonic()
    for _ in range(1 + 2 * engine.compiles):  # a CUDA graph is recorded on the second call, replayed from the third
        engine.generate(size if engine.first_is_slow else size._replace(output=min(2, size.output)))
    first_batch_s = round(time.monotonic() - start, 2)
    prefill = [window(engine, size._replace(output=1), options.window_s / 3 + 0.7)] if size.output > 1 else []
    full, counters_before = [], engine.speculated()
    for _ in range(options.repeats):
        if full and left_s(options) < full[-1]["seconds"] * 1.1:
            break
        full.append(window(engine, size, options.window_s))
    counters_after = engine.speculated()
    lengths = {"input_tokens": size.input, "output_tokens": size.output}
    speculation = {name: count - counters_before.get(name, 0) for name, count in counters_after.items()} or None
    send("cell", **lengths, batch=size.batch, first_batch_s=first_batch_s, full=full, prefill=prefill,
         speculation=speculation)  # fmt: skip


def window(engine, size: Size, wanted_s: float) -> dict:
    """Run whole batches for at least `wanted_s`; `distinct_last` counts the different last tokens of the last batch."""
    start_ns, batches = time.monotonic_ns(), 0
    while batches == 0 or time.monotonic_ns() - start_ns < wanted_s * 1e9:
        distinct = engine.generate(size)
        batches += 1
    end_ns = time.monotonic_ns()
    seconds = (end_ns - start_ns) / 1e9
    return {"start_ns": start_ns, "end_ns": end_ns, "batches": batches, "seconds": seconds, "distinct_last": distinct}


def left_s(options: argparse.Namespace) -> float:
    return (options.until_ns - time.monotonic_ns()) / 1e9


def send(event: str, **facts) -> None:
    print(MARK + json.dumps({"event": event, **facts}), flush=True)


class Vllm:
    """vllm.LLM in this process, token ids in, no text out."""

    compiles = False

    def __init__(self, options: argparse.Namespace) -> None:
        import numpy
        import torch
        import vllm

        self.rng, self.options, self.vllm = numpy.random.default_rng(options.seed), options, vllm
        self.sampling = {"temperature": 0, **json.loads(options.sampling)}
        eager = options.stage == "vllm-eager"
        cells = cells_of(options)
        max_batch = max(size.batch for size in cells)
        vllm_args = json.loads(options.vllm_args)
        self.first_is_slow = speculates = "speculative_config" in vllm_args
        if options.draft:
            vllm_args["speculative_config"]["model"] = str(options.out / "draft")
        graphs = {1, 2, 4, *range(8, 257, 8), *range(256, 513, 16)} & set(range(max_batch + 1))
        step_tokens = (
            1 + vllm_args["speculative_config"]["num_speculative_tokens"] if speculates else 1
        )  # tokens of a step
        sizes = sorted({step_tokens * batch for batch in graphs | {size.batch for size in cells}})
        self.llm = vllm.LLM(
            model=str(options.out / "model"),
            skip_tokenizer_init=True,
            load_format="dummy",
            max_num_seqs=max_batch,
            max_model_len=max(size.input + size.output for size in cells) + 16,
            enable_prefix_caching=False,
            enforce_eager=eager,
            tensor_parallel_size=options.tp,
            seed=options.seed,
            disable_log_stats=not speculates,
            **({} if eager else {"compilation_config": {"cudagraph_capture_sizes": sizes}}),
            **vllm_args,
        )
        self.vocabulary = SHAPES[options.shape]["vocab_size"]
        self.versions = {"vllm": vllm.__version__, "torch": torch.__version__}

    def generate(self, size: Size) -> int:
        """Run one batch; return the number of different last tokens of its answers."""
        ids = self.rng.integers(100, self.vocabulary - 100, size=(size.batch, size.input)).tolist()
        fixed = {"max_tokens": size.output, "ignore_eos": True, "detokenize": False}
        sampling = self.vllm.SamplingParams(**fixed, **self.sampling)
        answers = self.llm.generate([{"prompt_token_ids": row} for row in ids], sampling, use_tqdm=False)
        made = {len(answer.outputs[0].token_ids) for answer in answers}
        if made != {size.output}:
            raise RuntimeError(f"requested {size.output} tokens each, got {sorted(made)}")
        return len({answer.outputs[0].token_ids[-1] for answer in answers})

    def speculated(self) -> dict[str, int]:
        """Return vLLM's counters so far: drafts, draft_tokens, accepted_tokens and accepted_at_0, 1, ...

        Empty without speculative decoding.
        """
        if not self.first_is_slow:
            return {}
        counters, prefix = {}, "vllm:spec_decode_num_"
        for metric in self.llm.get_metrics():
            name = metric.name.removeprefix(prefix)
            if metric.name == prefix + "accepted_tokens_per_pos":
                counters |= {f"accepted_at_{position}": count for position, count in enumerate(metric.values)}
            elif metric.name.startswith(prefix):
                counters[name] = metric.value
        return counters

    def forget(self) -> None:
        """End the process, because an engine whose step failed hangs at the next one."""
        os._exit(1)

    def close(self) -> None:
        del self.llm


class Transformers:
    """generate() on token ids, one static batch; greedy unless --sampling says otherwise."""

    first_is_slow = True
    """The first answer of a new size took 5 s longer than the next ones, also in eager mode."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        import transformers

        torch.manual_seed(options.seed)
        self.torch, self.options = torch, options
        self.compiles = options.stage == "hf-compile"
        self.sampling = {"do_sample": False, **json.loads(options.sampling)}
        config = transformers.AutoConfig.from_pretrained(options.out / "model")
        torch.set_default_dtype(torch.float32 if options.shape == "tiny" else torch.bfloat16)
        with torch.device(options.device):
            self.model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}

    def generate(self, size: Size) -> int:
        """Run one batch; return the number of different last tokens of its answers."""
        torch = self.torch
        ids = torch.randint(
            100, self.model.config.vocab_size - 100, (size.batch, size.input), device=self.options.device
        )
        cache = {"cache_implementation": "static"} if self.compiles else {}
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=size.output,
                **self.sampling,
                **cache,
            )
        if self.options.device == "cuda":
            torch.cuda.synchronize()
        if out.shape[1] != size.input + size.output:
            raise RuntimeError(f"requested {size.output} tokens each, got {out.shape[1] - size.input}")
        return len(set(out[:, -1].tolist()))

    def speculated(self) -> dict[str, int]:
        return {}

    def forget(self) -> None:
        """Free the cache: running out of memory at one size does not affect the next."""
        self.torch.cuda.empty_cache()

    def close(self) -> None:
        del self.model


if __name__ == "__main__":
    main()
