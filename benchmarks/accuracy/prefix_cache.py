"""Hold the simulated KV cache against vLLM's own, block by block: what prompts find, what fits, and what is evicted.

    .engines/vllm/bin/python -m benchmarks.accuracy.prefix_cache       about 10 seconds; any environment with vLLM 0.32

Both get the same prompts, which begin alike, run side by side and end in any order, in a cache that is too small.
"""

import argparse
from hashlib import sha256
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

from vllm.v1.core.block_pool import BlockPool as VllmPool

from loadgen.simulator.engine import Sequence
from loadgen.simulator.kv_cache import KV_BLOCK_TOKENS, BlockPool, Found


class Counts(NamedTuple):
    """Prompts that were looked up, and the blocks that they found, or would have found before an eviction."""

    prompts: int = 0
    hits: int = 0
    evicted: int = 0


class Vllm:
    """vLLM's pool, used as its KV cache manager does: look up, touch, allocate, cache, and free in reverse order."""

    def __init__(self, blocks: int) -> None:
        self.pool = VllmPool(blocks + 1, True, KV_BLOCK_TOKENS)  # one of them is its null block
        self.hits: list[Any] = []

    def find(self, seq: Sequence) -> int:
        self.hits = []
        for block_hash in seq.block_hashes[: (seq.input_tokens - 1) // KV_BLOCK_TOKENS]:
            block = self.pool.get_cached_block(block_hash, [0])
            if not block:
                break
            self.hits += block
        return len(self.hits)

    def admit(self, seq: Sequence) -> list[Any] | None:
        """Return the blocks of a sequence, which all are computed; None where they do not fit."""
        need = -(-seq.input_tokens // KV_BLOCK_TOKENS) - len(self.hits)
        unheld = sum(block.ref_cnt == 0 for block in self.hits)
        if need + unheld > self.pool.get_num_free_blocks():
            return None
        self.pool.touch(self.hits)
        blocks = self.hits + self.pool.get_new_blocks(need)
        request = SimpleNamespace(block_hashes=list(seq.block_hashes))
        full = seq.input_tokens // KV_BLOCK_TOKENS
        self.pool.cache_full_blocks(request, blocks, len(self.hits), full, KV_BLOCK_TOKENS, 0)
        return blocks


def prompt(rng: Random) -> Sequence:
    """Return a prompt of up to nine full blocks, which many others begin with."""
    path = "".join(rng.choices("ab", k=rng.randint(0, 3))) + rng.choice(["", "x", "y"]) * rng.randint(0, 6)
    hashes = tuple(sha256(path[: i + 1].encode()).digest() for i in range(len(path)))
    return Sequence(0, len(path) * KV_BLOCK_TOKENS + rng.randint(0, KV_BLOCK_TOKENS - 1) or 1, 1, hashes)


def compare(seed: int, steps: int = 150) -> Counts:
    """Do the same to both. Raises AssertionError where they differ."""
    rng, counts = Random(seed), Counts()
    blocks = rng.randint(20, 60)
    ours, theirs = BlockPool(blocks, prefix_caching=True), Vllm(blocks)
    running: list[tuple[Sequence, list[Any]]] = []
    for step in range(steps):
        if rng.random() < 0.55:
            seq = prompt(rng)
            found, hits = ours.find(seq), theirs.find(seq)
            assert found.hits == hits, f"seed {seed}, step {step}: {found.hits} blocks found, vLLM finds {hits}"
            fits, held = _admit(ours, seq, found), theirs.admit(seq)
            assert fits == (held is not None), f"seed {seed}, step {step}: only one of them has room"
            counts = Counts(counts.prompts + 1, counts.hits + found.hits, counts.evicted + found.evicted)
            if held is not None:
                running.append((seq, held))
        elif running:
            seq, held = running.pop(rng.randrange(len(running)))
            ours.release(seq)
            theirs.pool.free_blocks(reversed(held))
        free = theirs.pool.get_num_free_blocks()
        assert ours.blocks - ours.used == free, f"seed {seed}, step {step}: {ours.used} blocks used"
    return counts


def _admit(pool: BlockPool, seq: Sequence, found: Found) -> bool:
    if not pool.admit(seq, found.hits, seq.input_tokens - found.hits * KV_BLOCK_TOKENS):
        return False
    pool.publish(seq, seq.input_tokens)
    seq.computed = seq.input_tokens
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=300)
    options = parser.parse_args()
    totals = [compare(seed) for seed in range(options.seeds)]
    prompts, hits, evicted = (sum(column) for column in zip(*totals, strict=True))
    print(f"the same as vLLM: {prompts:,} prompts, {hits:,} blocks found, {evicted:,} evicted before")


if __name__ == "__main__":
    main()
