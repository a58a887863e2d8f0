"""What `Engine.submit` returns: the events of one request, to be waited for in plain or asynchronous code."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

from athanor.base.errors import AthanorError
from athanor.engine.requests import Completion, Event, Request, gather

if TYPE_CHECKING:
    from athanor.engine.engine import Engine
    from athanor.engine.scheduler import Answer


class Stream:
    """What the engine knows of a request: its answers under way, and events that nobody has taken yet.

    failure: what ended it early. is_over: whether the last event has been put; what waits looks at nothing else, since
    it does so beside the engine's work. prompt_logprobs: of the prompt's tokens but the first, if asked for.
    """

    def __init__(self, request: Request, on_event: Callable[[Event], None] | None) -> None:
        self.request, self.on_event = request, on_event
        self.events: deque[Event] = deque()
        self.answers: list[Answer] = []
        self.prompt_logprobs: list[float] = []
        self.failure: Exception | None = None
        self.is_over = False
        self.cached = 0
        self.submitted, self.first_token = time.perf_counter(), 0.0

    def put(self, event: Event) -> None:
        self.first_token = self.first_token or time.perf_counter()
        if self.on_event is None:
            self.events.append(event)
            return
        try:
            self.on_event(event)
        except Exception as error:  # whatever a caller's function raises is the caller's to see
            self.failure = error


class Handle:
    """Iterating gives the request's events, and does the engine's work while there are none.

    With `on_event`, events go there instead, and the request goes on whether the handle is held or not; otherwise one
    that is no longer held is cancelled.
    """

    def __init__(self, engine: Engine, stream: Stream) -> None:
        self._engine, self._stream = engine, stream

    @property
    def prompt_logprobs(self) -> list[float]:
        """Of the prompt's tokens from the second on; once it has been read."""
        return self._stream.prompt_logprobs

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, found in the cache."""
        return self._stream.cached

    @property
    def first_token_seconds(self) -> float:
        return self._stream.first_token - self._stream.submitted

    @property
    def is_done(self) -> bool:
        return self._stream.is_over

    def cancel(self) -> None:
        """Ends the request and frees all that it has, after the step that another thread is at; its answers end with
        "cancelled".
        """
        self._engine.cancel(self._stream)

    def wait(self) -> None:
        """Works until the request is done. Raises what ended it early."""
        while not self.is_done:
            self._step(lambda: self.is_done)
        self._raise_failure()

    def __iter__(self) -> Iterator[Event]:
        try:
            while (event := self._next()) is not None:
                yield event
        finally:
            self._leave()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Each step of the engine is a task of a thread by itself, so that many who wait share few threads."""
        try:
            while True:
                while not self._is_ready():
                    await asyncio.to_thread(self._step, self._is_ready)
                if (event := self._next()) is None:
                    return
                yield event
        finally:
            self._leave()

    def result(self) -> list[Completion]:
        """All answers; waits for them. Raises AthanorError where events go to `on_event`."""
        if self._stream.on_event is not None:
            raise AthanorError("The answers of this request go to its on_event.")
        return gather(self, self._stream.request.sampling.n)

    def _next(self) -> Event | None:
        while not self._is_ready():
            self._step(self._is_ready)
        if self._stream.events:
            return self._stream.events.popleft()
        self._raise_failure()
        return None

    def _is_ready(self) -> bool:
        """Whether there is an event, or will be none."""
        return bool(self._stream.events) or self.is_done

    def _step(self, unless: Callable[[], bool]) -> None:
        if not self._engine.step(unless) and not unless():
            raise AthanorError("The engine has nothing to do for this request, which has not ended.")

    def _leave(self) -> None:
        """Ends the request without waiting for a step that another thread does."""
        if not self.is_done:
            self._engine.abandon(self._stream)

    def _raise_failure(self) -> None:
        """Raises what ended the request early, if anything did."""
        failure = self._stream.failure
        if isinstance(failure, AthanorError):
            raise failure
        if failure is not None:
            raise AthanorError(f"The request ended early: {type(failure).__name__}: {failure}") from failure

    def __del__(self) -> None:
        if self._stream.on_event is None and not self.is_done:
            self._engine.abandon(self._stream)
