"""Which tokens are computed in the next step, and where their keys and values go.

Answers that are being written go first, a token each; what is left of the step's tokens goes to prompts, in parts if
they are long, in the order of arrival. When blocks run out, the answer that came last is put aside with its cache
(bit for bit: nothing is computed twice) and comes back as soon as there is
room. Where every layer has a window, blocks that no later token can see are given back while an answer goes on.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from athanor.base.errors import AthanorError
from athanor.engine.blocks import BlockPool, Node
from athanor.engine.constraint import Guide
from athanor.engine.logits import Adjustment
from athanor.engine.requests import Request
from athanor.engine.rung import Rung, Segment
from athanor.engine.text import StopText

if TYPE_CHECKING:
    from athanor.engine.beams import BeamSearch
    from athanor.engine.handle import Stream


@dataclass(eq=False)
class Source:
    """What answers of an encoder–decoder are about, of one request or of several alike. read: what the rung's `encode`
    gave, once one of them runs.
    """

    tokens: np.ndarray
    read: Any = None


class UnmovedError(Exception):
    """The contents of an answer's blocks could not be put aside or brought back."""

    def __init__(self, answer: Answer, cause: Exception) -> None:
        super().__init__(str(cause))
        self.answer, self.cause = answer, cause


class Answer:
    """One answer under way. tokens: (n,) int32, prompt and what was said; computed: how many of them are in the cache.

    stream: where its events go. saved: its blocks' contents while it is put aside. passed: how many of its first blocks
    are given back, because all windows have passed them. others: answers to the same prompt, which start when this one
    has read it. guide: where it stands within its constraint; forced: what it has to say next. chance: that a token
    guessed for it comes true, as far as that is known. is_first: the one of a request's answers that reads the prompt
    for all.
    """

    def __init__(
        self,
        request: Request,
        index: int,
        key: int,
        stream: Stream,
        text: StopText | None,
        arrival: tuple[int, int],
        limit: int,
    ) -> None:
        sampling = request.sampling
        self.request, self.index, self.key, self.stream, self.text = request, index, key, stream, text
        self.arrival = arrival
        self.n_prompt = len(request.prompt)
        self.longest = min(limit, self.n_prompt + sampling.max_tokens)
        self._tokens = np.empty(self.longest, dtype=np.int32)
        self._tokens[: self.n_prompt] = request.prompt
        self.length, self.computed, self.entered = self.n_prompt, 0, 0
        self.blocks: list[int] = []
        self.passed = 0
        self.node: Node = -1
        self.saved: np.ndarray | None = None
        self.is_running = False
        self.cached = 0  # tokens of the prompt that did not have to be computed
        self.others: list[Answer] = []
        self.stop_ids = request.stop_ids | frozenset(sampling.stop_ids)
        self.adjustment = Adjustment(sampling, request.prompt, self.stop_ids)
        self.filters = sampling.filters
        self.guide: Guide | None = None
        self.forced: Sequence[int] = ()
        self.chance: float | None = None
        self.is_done = False
        self.source: Source | None = None
        self.beams: BeamSearch | None = None
        self.is_first = False

    def __lt__(self, other: Answer) -> bool:
        return self.arrival < other.arrival

    @property
    def tokens(self) -> np.ndarray:
        return self._tokens[: self.length]

    def part(self, start: int, end: int) -> np.ndarray:
        """Of the tokens; end: at most `length`."""
        return self._tokens[start:end]

    @property
    def pending(self) -> int:
        return self.length - self.computed

    @property
    def is_noting_prompt(self) -> bool:
        return self.is_first and self.request.sampling.prompt_logprobs and self.computed < self.n_prompt

    @property
    def said(self) -> int:
        return self.length - self.n_prompt

    def become(self, other: Answer) -> None:
        """Has said what `other` has."""
        self._tokens[: other.length] = other.tokens
        self.length, self.adjustment = other.length, other.adjustment.branch()

    def push(self, token: int) -> None:
        self._tokens[self.length] = token
        self.length += 1
        self.adjustment.push(token)

    def follow(self, guide: Guide) -> None:
        """Lets a constraint decide, from the first token on."""
        self.guide, self.forced = guide, self._forced_by(guide)

    def forced_after(self, token: int, guide: Guide, forced: Sequence[int]) -> Sequence[int]:
        """What is forced next, where `forced` was and `token` was said; `guide` goes along."""
        guide.push(token)
        return forced[1:] or self._forced_by(guide)

    def _forced_by(self, guide: Guide) -> Sequence[int]:
        """A forced token that the settings ban is left to drawing, which finds nothing to be drawn."""
        return [*takewhile(lambda token: not self.adjustment.bans(token), guide.forced())]


@dataclass
class _Work:
    """Of a step: how many tokens of each answer, and of all."""

    tokens: int = 0
    of: dict[Answer, int] = field(default_factory=dict)


class Scheduler:
    """most_tokens: computed in a step; most_running: answers in it. window: of the layer that sees furthest, if all
    have one.
    """

    def __init__(self, rung: Rung, blocks: int, most_tokens: int, most_running: int, window: int | None = None) -> None:
        self.rung, self.pool = rung, BlockPool(blocks, rung.block_size)
        self.most_tokens, self.most_running, self.window = most_tokens, most_running, window
        self.waiting: deque[Answer] = deque()
        self.running: list[Answer] = []
        self.preemptions = 0

    def check(self, longest: int, beams: int = 1) -> None:
        """Raises AthanorError for an answer that would not fit even alone."""
        if beams * self._most_blocks(longest) > self.pool.n:
            places = self.pool.n * self.pool.block_size
            each = f" in each of {beams} beams" if beams > 1 else ""
            raise AthanorError(
                f"Prompt and answer may take {longest} tokens{each}; the cache holds {places}.",
                "Ask for fewer tokens, or give the engine more memory.",
            )
        if beams > self.most_running:
            raise AthanorError(f"beams = {beams}, but only {self.most_running} answers are written at a time.")

    def _blocks_for(self, places: int) -> int:
        return -(-places // self.pool.block_size)

    def _most_blocks(self, places: int) -> int:
        """That an answer of so many places ever has."""
        found = self._blocks_for(places)
        if self.window is None:
            return found
        return min(found, self._blocks_for(self.window + self.most_tokens) + 1)

    def schedule(self) -> dict[Answer, int]:
        """Answers and how many of their tokens are computed now; all of them have their blocks. Raises UnmovedError."""
        work = _Work()
        for answer in sorted(self.running, key=lambda answer: answer.pending > 1):  # those that write first
            if answer.is_running:
                self._add(answer, work)
        while self.waiting and work.tokens < self.most_tokens:
            spare = len(self.running) if work.of else 0
            if len(self.running) >= self.most_running or not self._admit(self.waiting[0], spare):
                # Beams that wait for one that was put aside have nothing to do, and make room for it.
                if work.of or not self.running or self.running[-1] < self.waiting[0]:
                    break
                self._put_aside(self.running[-1])
                continue
            answer = self.waiting[0]
            answer.is_running = True
            insort(self.running, answer)
            self.waiting.popleft()
            self._add(answer, work)
        return work.of

    def _add(self, answer: Answer, work: _Work) -> None:
        n = min(answer.pending, self.most_tokens - work.tokens)
        if n and self._make_room(answer, n, work):
            work.of[answer] = n
            work.tokens += n

    def _make_room(self, answer: Answer, n: int, work: _Work) -> bool:
        """Gives the answer blocks for n more tokens; those that came last are put aside for it."""
        needed = self._blocks_for(answer.computed + n) - len(answer.blocks)
        while needed > self.pool.available:
            last = self.running[-1]
            self._put_aside(last)
            work.tokens -= work.of.pop(last, 0)
            if last is answer:
                return False
        answer.blocks += self.pool.take(needed)
        return True

    def _put_aside(self, answer: Answer) -> None:
        if answer.computed:
            try:
                answer.saved = self._contents(answer)
            except Exception as error:  # numpy and torch have errors of their own for memory that is not there
                raise UnmovedError(answer, error) from error
        self.preemptions += 1
        self._drop_blocks(answer)
        self.wait(answer)
        self._stop_running(answer)

    def _contents(self, answer: Answer) -> np.ndarray:
        return self.rung.read_blocks(answer.blocks[answer.passed : self._blocks_for(answer.computed)])

    def wait(self, answer: Answer) -> None:
        """Puts it among those that wait, by arrival."""
        place = bisect(self.waiting, answer)
        self.waiting.insert(place, answer)

    def _admit(self, answer: Answer, spare: int) -> bool:
        """Whether there is room for all that it has so far, and `spare` blocks for those that run; then it has a
        beginning of it: what was put aside, or what others have computed.
        """
        most = self._most_blocks(answer.length)
        if answer.saved is not None:
            if min(self._blocks_for(answer.length) - answer.passed, most) + spare > self.pool.available:
                return False
            answer.blocks = [-1] * answer.passed + self.pool.take(len(answer.saved))
            try:
                self.rung.write_blocks(answer.blocks[answer.passed :], answer.saved)
            except Exception as error:
                raise UnmovedError(answer, error) from error
            answer.saved = None
            return True
        if not self._has_room_for(answer.source):
            return False
        node: Node = answer.request.salt
        found: list[int] = []
        if not answer.is_noting_prompt and answer.source is None:
            node, found = self.pool.find(node, answer.tokens[:-1])  # at least one place has to give logits
        answer.node, answer.blocks, answer.entered, answer.passed = node, found, len(found), 0
        answer.computed = answer.cached = len(found) * self.pool.block_size
        self._pass(answer)
        kept = len(found) - answer.passed
        if min(self._blocks_for(answer.length) - len(found), most - kept) + spare > self.pool.available:
            self._drop_blocks(answer)
            answer.computed = answer.entered = answer.passed = 0
            return False
        return True

    def _has_room_for(self, source: Source | None) -> bool:
        """Whether all sources that are kept have no more tokens than the cache has places; one is always kept."""
        if source is None or source.read is not None:
            return True
        running = [answer.source for answer in self.running]
        waiting = [answer.source for answer in self.waiting if answer.source is not None and answer.source.read]
        held = {id(one): len(one.tokens) for one in [*running, *waiting] if one is not None}
        return not held or sum(held.values()) + len(source.tokens) <= self.pool.n * self.pool.block_size

    def advance(self, answer: Answer, n: int) -> None:
        """Notes that n more tokens are in the cache; full blocks become known to others."""
        answer.computed += n
        size = self.pool.block_size
        while (end := (answer.entered + 1) * size) <= answer.computed and answer.source is None:
            ids = answer.part(end - size, end)
            answer.node = self.pool.enter(answer.node, ids, answer.blocks[answer.entered])
            answer.entered += 1
        self._pass(answer)

    def _pass(self, answer: Answer) -> None:
        """Gives back the blocks before the first that later tokens see."""
        if self.window is None:
            return
        first = min((answer.computed + 1 - self.window) // self.pool.block_size, len(answer.blocks) - 1)
        if first > answer.passed:
            self.pool.release(answer.blocks[answer.passed : first])
            answer.blocks[:first] = [-1] * first
            answer.passed = first

    def fork(self, answer: Answer, other: Answer) -> None:
        """Lets `other`, with the same prompt, go on where `answer` stands; it waits if there is no room."""
        if len(self.running) >= self.most_running or self.pool.available < 1 + len(self.running):
            self.wait(other)
            return
        self._share(answer, other)
        other.cached = other.computed

    def branch(self, answer: Answer, other: Answer) -> None:
        """Lets `other` be what `answer` is, whatever it was, to go on differently."""
        self.remove(other)
        other.become(answer)
        if answer.is_running and self.pool.available and len(self.running) < self.most_running:
            self._share(answer, other)
            return
        other.passed, other.node, other.entered, other.computed = (
            answer.passed, answer.node, answer.entered, answer.computed
        )  # fmt: skip
        other.saved = self._contents(answer) if answer.is_running else answer.saved
        self.wait(other)

    def _share(self, answer: Answer, other: Answer) -> None:
        full = answer.computed // self.pool.block_size
        rest = answer.computed % self.pool.block_size
        other.blocks, other.passed = answer.blocks[:full], answer.passed
        self.pool.share(other.blocks[answer.passed :])
        if rest:
            other.blocks += self.pool.take(1)
            self.rung.copy_block(answer.blocks[full], other.blocks[full])
        other.node, other.entered, other.computed = answer.node, answer.entered, answer.computed
        other.is_running = True
        insort(self.running, other)

    def remove(self, answer: Answer) -> None:
        """Frees all that it has, wherever it is."""
        if answer.is_running:
            self._stop_running(answer)
        elif answer in self.waiting:
            self.waiting.remove(answer)
        self._drop_blocks(answer)
        answer.saved = None

    def drop_all(self, work: Iterable[Answer]) -> list[Answer]:
        """Ends whatever was being done, wherever it stood: all answers of those who worked, ran or waited have nothing
        any longer.
        """
        streams = {answer.stream: None for answer in (*work, *self.running, *self.waiting)}
        dropped = [*self.running, *self.waiting, *(answer for stream in streams for answer in stream.answers)]
        self.running.clear()
        self.waiting.clear()
        for answer in dropped:
            answer.is_running, answer.blocks, answer.saved = False, [], None
        self.pool.release_all()
        return dropped

    def _stop_running(self, answer: Answer) -> None:
        answer.is_running = False
        self.running.remove(answer)

    def _drop_blocks(self, answer: Answer) -> None:
        self.pool.release(answer.blocks[answer.passed :])
        answer.blocks = []

    def start_over(self) -> None:
        """After a change of weights: nothing that was computed counts any longer."""
        self.pool.forget()
        for answer in [*self.running, *self.waiting]:
            self._drop_blocks(answer)
            answer.saved, answer.computed, answer.entered, answer.passed = None, 0, 0, 0
            answer.node = answer.request.salt
            if answer.beams is not None:
                answer.beams.start_over()

    def extend(self, answer: Answer, n: int) -> int:
        """Takes blocks for n tokens after those that are known, as far as nobody else will miss them; for how many."""
        spare = max(0, self.pool.available - len(self.running))
        needed = self._blocks_for(answer.length + n) - len(answer.blocks)
        answer.blocks += self.pool.take(min(needed, spare))
        return min(n, len(answer.blocks) * self.pool.block_size - answer.length)

    def segment(self, answer: Answer, n: int, drafted: Sequence[int] = ()) -> Segment:
        """The next n tokens of an answer, and those drafted; logits where a token follows, or everywhere in a prompt
        that wants them.
        """
        start, end = answer.computed, answer.computed + n + len(drafted)
        blocks = np.array(answer.blocks[: self._blocks_for(end)], dtype=np.int32)
        if answer.passed:
            blocks[: answer.passed] = blocks[answer.passed]
        wanted = int(answer.computed + n == answer.length) + len(drafted)
        if answer.is_noting_prompt:
            wanted = n
        tokens = answer.part(start, start + n)
        if drafted:
            tokens = np.append(tokens, np.array(drafted, dtype=np.int32))
        before = answer.part(max(0, start - self.rung.lookback), start)
        source = None if answer.source is None else answer.source.read
        return Segment(tokens, start, blocks, wanted, before, source)
