"""The engine: requests in, events out; whoever waits for an event does the next step for all.

Requests join and leave at any step, prompts are read in parts between the tokens of others, and what a request says
depends on nothing but itself: the rung's bits do not depend on company, and the noise is keyed by request and place.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count, islice
from threading import RLock
from weakref import WeakValueDictionary

import numpy as np

from athanor.base.errors import AthanorError, ModelError
from athanor.base.machine import available_memory
from athanor.engine.beams import BeamSearch
from athanor.engine.constraint import Guidance
from athanor.engine.drawing import Place, places_of
from athanor.engine.handle import Handle, Stream
from athanor.engine.logits import chosen_logprobs
from athanor.engine.requests import Completion, Event, Request, request_keys
from athanor.engine.rung import Rung
from athanor.engine.rungs import rung_of
from athanor.engine.sampling import Sampling
from athanor.engine.scheduler import Answer, Scheduler, Source, UnmovedError
from athanor.engine.source_rung import read_sources
from athanor.engine.speculation import MOST_GUESSED, Drafter, Speculation
from athanor.engine.telling import Telling
from athanor.engine.text import BeginningOfText, StopText
from athanor.models.config import EncoderDecoderConfig, ModelConfig
from athanor.models.decoder import Decoder
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.tokenizer import StreamDecoder, Tokenizer
from athanor.tokenizer.foreign import ForeignTokenizer

_SHARE_OF_MEMORY = 0.25  # of what is free, for keys and values; pages are only taken when they are written
_MOST_PLACES = 32_768  # unless one context takes more


@dataclass(frozen=True)
class Limits:
    """Of an `Engine`, which says what each of them is."""

    blocks: int | None = None
    most_tokens: int = 512
    most_running: int = 256


class Engine:
    """tokenizer: needed for events with text and for stop strings. blocks: of the cache, by default for 32,768 tokens
    or one context, if that is longer, but for no more than fit into a quarter of the free memory. most_tokens: computed
    in a step, which is how long a token may wait for others' prompts; most_running: answers at a time. drafter:
    guesses tokens, to verify several at once where that pays.
    """

    def __init__(
        self,
        rung: Rung,
        config: ModelConfig | EncoderDecoderConfig,
        tokenizer: Tokenizer | ForeignTokenizer | None = None,
        *,
        blocks: int | None = None,
        most_tokens: int = 512,
        most_running: int = 256,
        drafter: Drafter | None = None,
    ) -> None:
        self._encoder = config.encoder if isinstance(config, EncoderDecoderConfig) else None
        self.config = config.decoder if isinstance(config, EncoderDecoderConfig) else config
        self.rung, self.tokenizer, self._config = rung, tokenizer, config
        blocks = _default_blocks(rung, self.config) if blocks is None else blocks
        for name, value in ("blocks", blocks), ("most_tokens", most_tokens), ("most_running", most_running):
            if value < 1:
                raise AthanorError(f"{name} = {value} leaves the engine nothing to work with.", "Take 1 or more.")
        rung.allocate(blocks)
        self._scheduler = Scheduler(rung, blocks, most_tokens, most_running, _widest_window(self.config))
        self.speculation = Speculation(drafter, self.config.vocab_size) if drafter else None
        self._lock = RLock()
        self._submitted: deque[Answer] = deque()
        self._abandoned: deque[Stream] = deque()
        self._ended: deque[Stream] = deque()
        self._sources: WeakValueDictionary[tuple[str, bytes], Source] = WeakValueDictionary()
        self._telling = Telling(self._scheduler, self.speculation, self.config.max_seq_len, self._ended)
        self._is_busy = False
        self._arrivals = count()

    @classmethod
    def of(
        cls,
        model: Decoder | EncoderDecoder,
        tokenizer: Tokenizer | ForeignTokenizer | None = None,
        precision: str = "fp32",
        *,
        blocks: int | None = None,
        most_tokens: int = 512,
        most_running: int = 256,
        drafter: Drafter | None = None,
    ) -> Engine:
        """On the best rung for this model."""
        rung = rung_of(model, precision)
        return cls(
            rung, model.config, tokenizer, blocks=blocks, most_tokens=most_tokens, most_running=most_running,
            drafter=drafter,
        )  # fmt: skip

    def submit(self, request: Request, on_event: Callable[[Event], None] | None = None) -> Handle:
        """Takes a request; its events come to the handle, or to `on_event`. Waits for no step that is under way.

        Raises AthanorError for one that this model or this cache cannot answer.
        """
        request.check(self.config, self._encoder)
        sampling = request.sampling
        if sampling.stop and self.tokenizer is None:
            raise AthanorError("Stop strings need a tokenizer, which this engine does not have.")
        guide = self.guidance.guide(sampling.constraint) if sampling.constraint else None
        limit = self.config.max_seq_len
        self._scheduler.check(min(limit, len(request.prompt) + sampling.max_tokens), sampling.beams)
        keys = request_keys(sampling.seed, sampling.n) if request.keys is None else request.keys
        stream, arrival = Stream(request, on_event), next(self._arrivals)
        source = Source(np.array(request.source, dtype=np.int64)) if self._encoder else None
        for number in range(max(sampling.n, sampling.beams)):
            index = number % sampling.n
            answer = Answer(request, index, int(keys[index]), stream, self._text(request), (arrival, number), limit)
            answer.source = source
            stream.answers.append(answer)
            if guide is not None:
                answer.follow(guide.copy())
        first, *others = stream.answers
        first.is_first = True
        if sampling.beams == 1:
            first.others = others
        else:
            first.beams = BeamSearch(stream.answers[:])
            for other in others:
                other.beams = first.beams
        self._submitted.append(first)
        return Handle(self, stream)

    def _enter(self, first: Answer) -> None:
        """Lets a request that was submitted wait for its turn. All that are under way with the same source share it, so
        that it is encoded and kept once.
        """
        if first.stream.is_over or first in self._scheduler.waiting:  # cancelled, or this was interrupted before
            return
        if first.source is not None:
            source = self._sources.setdefault((first.request.salt, first.source.tokens.tobytes()), first.source)
            for answer in first.stream.answers:
                answer.source = source
        self._scheduler.wait(first)

    def _text(self, request: Request) -> StopText | None:
        if self.tokenizer is None:
            return None
        decoder = StreamDecoder(self.tokenizer)
        return StopText(BeginningOfText(decoder) if len(request.source) else decoder, request.sampling.stop)

    def generate(self, requests: Iterable[Request]) -> list[list[Completion]]:
        """All answers to all requests."""
        asked = list(requests)
        gathered = [[Completion() for _ in range(request.sampling.n)] for request in asked]
        self.answer([(request, partial(_add, into)) for request, into in zip(asked, gathered, strict=True)])
        return gathered

    def answer(self, asked: Iterable[tuple[Request, Callable[[Event], None]]]) -> list[Handle]:
        """Submits all and waits for them. If one fails or is refused, none goes on."""
        handles: list[Handle] = []
        try:
            for request, on_event in asked:
                handles.append(self.submit(request, on_event))
            for handle in handles:
                handle.wait()
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    def step(self, unless: Callable[[], bool] | None = None) -> bool:
        """Computes the next tokens of all; whether there was anything to do. unless: asked before, for another thread
        may have done what was waited for.

        Ctrl-C ends all requests under way. Raises AthanorError in a callback of this engine.
        """
        with self._alone(refused="go on"):
            if unless is not None and unless():
                return True
            work: dict[Answer, int] = {}
            try:
                work = self._scheduler.schedule()
                if work:
                    self._compute(work)
                return bool(work)
            except UnmovedError as error:
                self._fail([error.answer], error.cause)
            except Exception as error:
                self._fail(work or [*self._scheduler.running, *islice(self._scheduler.waiting, 1)], error)
            except BaseException:  # it may have come between any two instructions
                self._fail(self._scheduler.drop_all(work), AthanorError("The engine was interrupted."))
                raise
            return True

    def _fail(self, answers: Iterable[Answer], error: Exception) -> None:
        for stream in {answer.stream: None for answer in answers if not answer.stream.is_over}:
            stream.failure = stream.failure or error
            self._ended.append(stream)

    @contextmanager
    def _alone(self, refused: str = "") -> Iterator[None]:
        """One thread at a time; what begins and ends meanwhile, in other threads, in a callback or where a stream is
        collected, does so afterwards. refused: what cannot be done within a callback, if so.
        """
        with self._lock:
            if refused and self._is_busy:
                raise AthanorError(
                    f"A callback of the engine, within its step, cannot let it {refused}.",
                    "Submit or cancel requests there, and wait for them outside.",
                )
            before, self._is_busy = self._is_busy, True
            try:
                if not before:
                    self._sweep()
                yield
            finally:
                try:
                    if not before:
                        self._sweep()
                finally:
                    self._is_busy = before
        if not before:
            self._end_cancelled()  # after the last sweep, and before the lock was free

    def cancel(self, stream: Stream) -> None:
        """Ends a request, wherever it is; while a step is under way, at its end."""
        self._ended.append(stream)
        self._end_cancelled()

    def _end_cancelled(self) -> None:
        """Unless another thread is at work, which will do it afterwards."""
        if self._ended and self._lock.acquire(blocking=False):
            try:
                with self._alone():
                    pass
            finally:
                self._lock.release()

    def abandon(self, stream: Stream) -> None:
        """As `cancel`, at the next step; may be called wherever a handle is collected."""
        self._abandoned.append(stream)

    def update_weights(self, model: Decoder | EncoderDecoder) -> None:
        """Takes over the weights of a model with the same configuration; requests under way go on with these. Raises
        ModelError.
        """
        if model.config != self._config:
            raise ModelError("The new weights belong to a model of another configuration.")
        with self._alone(refused="take over weights"):
            try:
                self.rung.update_weights(model)  # type: ignore[arg-type]
            finally:
                self._scheduler.start_over()
                for source in list(self._sources.values()):
                    source.read = None

    @cached_property
    def guidance(self) -> Guidance:
        if self.tokenizer is None:
            raise AthanorError("Constraints need a tokenizer, which this engine does not have.")
        return Guidance(self.tokenizer, self.config.vocab_size)

    @property
    def free_blocks(self) -> int:
        """Blocks of the cache that no request has."""
        with self._alone():
            return self._scheduler.pool.available

    @property
    def blocks(self) -> int:
        return self._scheduler.pool.n

    @property
    def preemptions(self) -> int:
        """How often an answer was put aside for lack of memory."""
        return self._scheduler.preemptions

    def _sweep(self) -> None:
        """What is interrupted here is done again by the next."""
        while self._submitted:
            self._enter(self._submitted[0])
            self._submitted.popleft()
        for streams in self._abandoned, self._ended:
            while streams:
                self._end(streams[0])
                streams.popleft()

    def _end(self, stream: Stream) -> None:
        indices = dict.fromkeys(answer.index for answer in stream.answers)
        while stream.answers:
            self._scheduler.remove(stream.answers[-1])
            stream.answers.pop()
        if stream.failure is None:
            for index in indices:
                stream.put(Event(index, -1, 0.0, finish_reason="cancelled"))
        stream.is_over = True

    def _compute(self, work: dict[Answer, int]) -> None:
        started, all_write = time.perf_counter(), all(answer.said for answer in work)
        if self._encoder is not None:
            read_sources(self.rung, work)  # type: ignore[arg-type]
        drafts = self._drafts(work)
        segments = [
            self._scheduler.segment(answer, n, drafts[answer][-1].drafted if answer in drafts else ())
            for answer, n in work.items()
        ]
        logits = self.rung.forward(segments)
        writing, rows, row = list[list[Place]](), list[int](), 0
        searching: list[BeamSearch] = []
        for (answer, n), segment in zip(work.items(), segments, strict=True):
            if answer.is_noting_prompt:
                self._note_prompt(answer, logits[row : row + n])
            row += segment.wanted
            self._scheduler.advance(answer, n)
            if answer.pending:
                continue
            if answer in drafts:
                writing.append(drafts[answer])
                rows += range(row - segment.wanted, row)
                continue
            if answer.is_first and not answer.said:
                answer.stream.cached = answer.cached
            if answer.beams is not None:
                if answer.beams.note(answer, logits[row - 1]):
                    searching.append(answer.beams)
                continue
            if not answer.said:
                for other in answer.others:
                    self._scheduler.fork(answer, other)
                others = [answer, *(other for other in answer.others if other.is_running)]
                answer.others = []
            else:
                others = [answer]
            writing += [places_of(other) for other in others]
            rows += [row - 1] * len(others)
        if writing:
            # A whole step's logits need not be copied where each is used once, in order.
            whole = rows == [*range(len(logits))]
            self._telling.say(writing, logits if whole else logits[rows])
        for beams in searching:
            self._telling.search(beams)
        if self.speculation and all_write:
            self.speculation.note_step(sum(len(segment.tokens) for segment in segments), time.perf_counter() - started)

    def _drafts(self, work: dict[Answer, int]) -> dict[Answer, list[Place]]:
        """Of answers for which tokens are verified in this step: the places that are drawn."""
        writing = [
            answer
            for answer, n in work.items()
            if answer.said
            and answer.beams is None
            and answer.computed >= answer.n_prompt
            and answer.computed + n == answer.length
        ]
        rows = sum(work.values())
        guesses = self.speculation.guesses(writing, rows) if self.speculation and writing else {}
        drafts = {}
        for answer in writing:
            if not (answer in guesses or (answer.forced and answer.request.sampling.logprobs)):
                continue
            room = min(MOST_GUESSED, answer.longest - answer.length - 1, self._scheduler.most_tokens - rows)
            try:
                places = places_of(answer, guesses.get(answer, ()), room)
            except AthanorError:  # of its constraint; if the guess was right, it comes again when the token is said
                continue
            room = self._scheduler.extend(answer, len(places) - 1)
            if room > 0:
                drafts[answer] = places[: room + 1]
                rows += room
        return drafts

    def _note_prompt(self, answer: Answer, logits: np.ndarray) -> None:
        start = answer.computed + 1
        following = answer.part(start, min(start + len(logits), answer.n_prompt))
        found = chosen_logprobs(logits[: len(following)], following).tolist()
        answer.stream.prompt_logprobs[answer.computed :] = found  # with new weights it is read once more


def _add(completions: list[Completion], event: Event) -> None:
    completions[event.index].add(event)


def complete(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: frozenset[int],
    keys: np.ndarray | None = None,
) -> list[Completion]:
    """`sampling.n` answers to each prompt, in order. keys: (answers,) uint64, by default made from the seed and the
    answer's number.
    """
    n = sampling.n
    keys = request_keys(sampling.seed, len(prompts) * n) if keys is None else keys
    answers = engine.generate(
        Request(prompt, sampling, stop_ids, keys[i * n : i * n + n].tolist()) for i, prompt in enumerate(prompts)
    )
    return [answer for group in answers for answer in group]


def _widest_window(config: ModelConfig) -> int | None:
    windows = [layer.attention.window for layer in config.layers]
    return None if None in windows else max(window for window in windows if window is not None)


def _default_blocks(rung: Rung, config: ModelConfig) -> int:
    context = -(-config.max_seq_len // rung.block_size)
    affordable = int(available_memory() * _SHARE_OF_MEMORY) // rung.bytes_per_block
    return max(1, min(max(context, _MOST_PLACES // rung.block_size), affordable))
