"""Which sequence has which block of the cache: reference counts, prefixes that sequences share, eviction.

A full block that has been computed is entered in a tree, under the block before it and its ids: each key holds the ids
themselves, so a block is never taken for another's. A tree's root is its salt: where two tenants must not learn from
each other's speed, they have trees of their own. A block that no sequence has any longer stays in the tree until its
memory is needed, least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import count

import numpy as np

Node = int | str  # a place in the tree; numbers are never used twice


class BlockPool:
    """n blocks of `block_size` places."""

    def __init__(self, n: int, block_size: int) -> None:
        self.n, self.block_size = n, block_size
        self._free = deque(range(n))
        self._owners = [0] * n
        self._idle: OrderedDict[int, None] = OrderedDict()  # in the tree and without an owner, oldest first
        self._tree: dict[tuple[Node, bytes], tuple[Node, int]] = {}
        self._entry: dict[int, tuple[Node, bytes]] = {}  # block → its key
        self._numbers = count()

    @property
    def available(self) -> int:
        """Blocks that `take` could give."""
        return len(self._free) + len(self._idle)

    def find(self, node: Node, ids: np.ndarray) -> tuple[Node, list[int]]:
        """The blocks that hold the longest known beginning of `ids` (int32), with one owner more; and the last node."""
        found: list[int] = []
        for start in range(0, len(ids) - self.block_size + 1, self.block_size):
            entry = self._tree.get((node, ids[start : start + self.block_size].tobytes()))
            if entry is None:
                break
            node, block = entry
            found.append(block)
            self.share([block])
        return node, found

    def enter(self, node: Node, ids: np.ndarray, block: int) -> Node:
        """Makes a full block known; returns its node, or that of another block with the same text."""
        key = node, ids.tobytes()
        if key in self._tree:
            return self._tree[key][0]
        made = next(self._numbers)
        self._tree[key], self._entry[block] = (made, block), key
        return made

    def share(self, blocks: Sequence[int]) -> None:
        """Adds an owner to each."""
        for block in blocks:
            if not self._owners[block]:
                self._idle.pop(block, None)
            self._owners[block] += 1

    def take(self, n: int) -> list[int]:
        """n blocks with one owner each; n at most `available`."""
        taken = []
        for _ in range(n):
            if self._free:
                block = self._free.popleft()
            else:
                block, _ = self._idle.popitem(last=False)
                del self._tree[self._entry.pop(block)]
            self._owners[block] = 1
            taken.append(block)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Takes an owner from each; the end of a text is forgotten before its beginning."""
        for block in reversed(blocks):
            self._owners[block] -= 1
            if self._owners[block]:
                continue
            if block in self._entry:
                self._idle[block] = None
            else:
                self._free.appendleft(block)  # memory that has been touched is used again first

    def release_all(self) -> None:
        """Takes all owners, whatever call was broken off before; what is known of texts stays."""
        self._tree = {key: found for key, found in self._tree.items() if self._entry.get(found[1]) == key}
        self._entry = {block: key for key, (_, block) in self._tree.items()}
        self._owners = [0] * self.n
        idle = [block for block in self._idle if block in self._entry]
        self._idle = OrderedDict.fromkeys([*idle, *self._entry])
        self._free = deque(block for block in range(self.n) if block not in self._entry)

    def forget(self) -> None:
        """Empties the tree: what the blocks hold is no longer what their ids would give."""
        for block in self._idle:
            self._free.append(block)
        self._idle.clear()
        self._tree.clear()
        self._entry.clear()
