"""Measure the energy of the same work on random weights and on trained ones' statistics, in turn, on one NVIDIA GPU.

    python -m benchmarks.paper.measure_weights OUT.jsonl MODEL TRAINED TEXT SECONDS REPEATS

MODEL has no weights, TRAINED is from benchmarks.paper.trained_weights, TEXT is a file of any text. Two vLLM engines are
resident at once and only one works at a time, in random order. One line a measurement: the growth of the GPU's counter
in joules, interpolated between its updates, the tokens, and the mean SM clock.
"""

import json
import multiprocessing
import random
import sys
import threading
import time
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

DECODED, PREFILLED = 400, 4096
"""Tokens of an answer of a decode batch, and of a prompt of a prefill batch."""
WORK = [("decode", batch, "random") for batch in (1, 8, 32, 128, 256)] + [
    ("decode", 128, "text"), ("decode", 128, "greedy"),
    ("prefill", 16, "random"), ("prefill", 16, "text"), ("prefill", 16, "same"),
]  # fmt: skip


def serve(pipe: Connection, folder: str, load_format: str, text: str) -> None:
    """Do the work that arrives through the pipe, and answer with (start, end, tokens)."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder, load_format=load_format, gpu_memory_utilization=0.42, max_model_len=8192, max_num_seqs=256,
        enable_prefix_caching=False,
    )  # fmt: skip
    words = llm.get_tokenizer().encode(Path(text).read_text(errors="replace")[:2_000_000], add_special_tokens=False)
    vocabulary = min(json.loads((Path(folder) / "config.json").read_text())["vocab_size"], 50_000)
    rng = random.Random(7)

    def prompt(length: int, content: str) -> dict[str, list[int]]:
        match content:
            case "text":
                start = rng.randrange(len(words) - length)
                return {"prompt_token_ids": words[start : start + length]}
            case "same":
                return {"prompt_token_ids": [1000] * length}
        return {"prompt_token_ids": [rng.randrange(300, vocabulary) for _ in range(length)]}

    pipe.send("ready")
    while (work := pipe.recv()) is not None:
        kind, batch, content, seconds = work
        length, answer = (64, DECODED) if kind == "decode" else (PREFILLED, 1)
        temperature = 0.0 if content == "greedy" or kind == "prefill" else 1.0
        options = SamplingParams(max_tokens=answer, ignore_eos=True, detokenize=False, temperature=temperature)
        batches = [[prompt(length, content) for _ in range(batch)] for _ in range(12)]
        llm.generate(batches[-1], SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)
        start, rounds = time.monotonic(), 0
        while time.monotonic() - start < seconds:
            llm.generate(batches[rounds % 12], options, use_tqdm=False)
            rounds += 1
        pipe.send((start, time.monotonic(), rounds * batch * (answer if kind == "decode" else length)))


class Gpu:
    """Reads the energy counter and the SM clock of the first GPU in a thread of its own."""

    def __init__(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._nvml, self._gpu = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
        self.name = pynvml.nvmlDeviceGetName(self._gpu)
        self._updates: list[tuple[float, int]] = []
        self._clocks: list[tuple[float, int]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            mj, now = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu), time.monotonic()
            if not self._updates or mj != self._updates[-1][1]:
                self._updates.append((now, mj))
                self._clocks.append((now, self._nvml.nvmlDeviceGetClockInfo(self._gpu, self._nvml.NVML_CLOCK_SM)))
            time.sleep(0.005)

    def joules(self, at: float) -> float:
        """Return the counter at an instant that it has passed."""
        for (t0, e0), (t1, e1) in pairwise(self._updates):
            if t0 <= at <= t1:
                return (e0 + (e1 - e0) * (at - t0) / (t1 - t0)) / 1e3
        raise SystemExit("the energy counter did not move around the measurement")

    def mean_clock(self, start: float, end: float) -> float:
        clocks = [mhz for now, mhz in self._clocks if start <= now <= end]
        return sum(clocks) / len(clocks)


def start_engines(model: str, trained: str, text: str) -> dict[str, Connection]:
    """Start the two engines one after the other: each sizes its cache by the memory that is free."""
    context, pipes = multiprocessing.get_context("spawn"), {}
    for name, folder, load_format in (("dummy", model, "dummy"), ("trained", trained, "auto")):
        pipes[name], far_end = context.Pipe()
        context.Process(target=serve, args=(far_end, folder, load_format, text)).start()
        far_end.close()
        pipes[name].recv()
    return pipes


def main(out: Path, model: str, trained: str, text: str, seconds: float, repeats: int) -> None:
    gpu, pipes, rng = Gpu(), start_engines(model, trained, text), random.Random(3)
    with out.open("w") as lines:
        for repeat in range(repeats):
            for kind, batch, content in rng.sample(WORK, len(WORK)):
                for name in rng.sample(sorted(pipes), 2):
                    pipes[name].send((kind, batch, content, seconds))
                    start, end, tokens = pipes[name].recv()
                    time.sleep(0.3)  # the counter must pass the end
                    row: dict[str, Any] = {
                        "card": gpu.name, "weights": name, "kind": kind, "batch": batch, "content": content,
                        "repeat": repeat, "seconds": end - start, "tokens": tokens,
                        "joules": gpu.joules(end) - gpu.joules(start), "sm_mhz": gpu.mean_clock(start, end),
                    }  # fmt: skip
                    lines.write(json.dumps(row) + "\n")
                    lines.flush()
    for pipe in pipes.values():
        pipe.send(None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5], float(sys.argv[5]), int(sys.argv[6]))
