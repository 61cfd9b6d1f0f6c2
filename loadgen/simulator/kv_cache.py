"""The KV cache in blocks, with vLLM's prefix cache: which blocks a prompt finds there, and which are evicted. No clock.

As in vLLM V1 (block_pool.py, single_type_kv_cache_manager.py): full blocks of a prompt are cached when the step that
computes them is scheduled, and those of an answer too (here: at its end, since nobody can ask for them earlier); a hit
never covers the last token; of two sequences that compute the same block each keeps its own copy; a sequence gives its
blocks back from its end, so that of one prompt the end is evicted first; and blocks without a hash are used before the
least recently used cached one is evicted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from loadgen.simulator.engine import Sequence

KV_BLOCK_TOKENS = 16
"""Tokens of a block of the KV cache; vLLM's default."""
MAX_EVICTED = 1_000_000
"""Evicted blocks that are remembered, the last ones: 16 million tokens."""


class Block:
    """A full block of the cache whose tokens, and all before them, have `hash`."""

    __slots__ = ("hash", "holders")

    def __init__(self, block_hash: Hashable) -> None:
        self.hash = block_hash
        self.holders = 1
        """Sequences that use it; without any it stays until room is needed."""


class Found(NamedTuple):
    """Leading blocks of a prompt that are cached, and the number behind them that were until they were evicted."""

    hits: int
    evicted: int


class BlockPool:
    """KV-cache blocks: free, private to one sequence, or cached by hash."""

    def __init__(self, blocks: int, prefix_caching: bool) -> None:
        self.blocks, self.prefix_caching = blocks, prefix_caching
        self.free = blocks
        """Blocks that hold nothing."""
        self._cached: dict[Hashable, Block] = {}
        self._copies: dict[Hashable, list[Block]] = {}
        """Further blocks of the same hash, from sequences that computed it at the same time."""
        self._unheld: OrderedDict[Block, None] = OrderedDict()
        """Cached blocks without a holder, the least recently used first."""
        self._evicted: OrderedDict[Hashable, None] = OrderedDict()

    @property
    def used(self) -> int:
        return self.blocks - self.free - len(self._unheld)

    def find(self, seq: Sequence) -> Found:
        """Look up the blocks of a sequence that waits. At least its last token must still be computed.

        Whoever holds a block holds all before it, and gives them back later: a block is never cached, or remembered
        as evicted, without those before it.
        """
        if not self.prefix_caching:
            return Found(0, 0)
        hashes, cached, evicted = seq.block_hashes, self._cached, self._evicted
        blocks = range(min(len(hashes), (seq.input_tokens + seq.emitted - 1) // KV_BLOCK_TOKENS))
        hits = bisect_left(blocks, True, key=lambda i: hashes[i] not in cached)
        known = bisect_left(blocks, True, lo=hits, key=lambda i: hashes[i] not in evicted)
        return Found(hits, known - hits)

    def admit(self, seq: Sequence, hits: int, tokens: int) -> bool:
        """Hold `hits` cached blocks and allocate room for `tokens` after them. If all tokens of the sequence have no
        room, change nothing and return False."""
        rest = seq.input_tokens + seq.emitted - hits * KV_BLOCK_TOKENS
        room = self.free + len(self._unheld) - -(-rest // KV_BLOCK_TOKENS)
        if room < 0:
            return False
        blocks = [self._cached[block_hash] for block_hash in seq.block_hashes[:hits]]
        if room < sum([not block.holders for block in blocks]):
            return False
        for block in blocks:
            if not block.holders:
                del self._unheld[block]
            block.holders += 1
        seq.cached_blocks = blocks
        seq.computed = hits * KV_BLOCK_TOKENS
        return self.grow(seq, tokens)

    def grow(self, seq: Sequence, tokens: int) -> bool:
        """Allocate room for `tokens` more. Without room, change nothing and return False."""
        need = -(-(seq.computed + tokens - seq.room) // KV_BLOCK_TOKENS)
        if need > self.free + len(self._unheld):
            return False
        while self.free < need:
            self._evict()
        if need > 0:
            self.free -= need
            seq.private_blocks += need
        return True

    def publish(self, seq: Sequence, computed: int) -> None:
        """Cache the blocks of a sequence that are full when its first `computed` tokens are."""
        if not self.prefix_caching:
            return
        full = seq.block_hashes[len(seq.cached_blocks) : computed // KV_BLOCK_TOKENS]
        for block_hash in full:
            block = Block(block_hash)
            if self._cached.setdefault(block_hash, block) is not block:
                self._copies.setdefault(block_hash, []).append(block)
            self._evicted.pop(block_hash, None)
            seq.cached_blocks.append(block)
        seq.private_blocks -= len(full)

    def release(self, seq: Sequence) -> None:
        """Take back all blocks of a sequence; those that are full stay cached."""
        self.publish(seq, seq.computed)
        for block in reversed(seq.cached_blocks):
            block.holders -= 1
            if not block.holders:
                self._unheld[block] = None
        self.free += seq.private_blocks
        seq.private_blocks, seq.cached_blocks = 0, []

    def _evict(self) -> None:
        """Free the least recently used block that is cached and has no holder."""
        block, _ = self._unheld.popitem(last=False)
        self.free += 1
        copies = self._copies.get(block.hash)
        if copies is None:
            del self._cached[block.hash]
            self._evicted[block.hash] = None
            if len(self._evicted) > MAX_EVICTED:
                self._evicted.popitem(last=False)
            return
        if self._cached[block.hash] is block:
            self._cached[block.hash] = copies.pop(0)
        else:
            copies.remove(block)
        if not copies:
            del self._copies[block.hash]
