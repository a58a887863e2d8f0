"""What a step's logits say, and who is told: tokens are drawn, answers grow and end, events go to their streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from athanor.base.errors import AthanorError
from athanor.engine.beams import BeamSearch
from athanor.engine.drawing import NOTHING, Place, draw_places
from athanor.engine.handle import Stream
from athanor.engine.requests import Event, TokenLogprob, likeliest
from athanor.engine.scheduler import Answer, Scheduler
from athanor.engine.speculation import Speculation

_NOTHING_LEFT = {
    True: (
        "Nothing is left to be said: what the constraint needs next is among the banned tokens, or the vocabulary "
        "cannot write it.",
        "Change one of suppress_tokens, allowed_tokens, stop_ids and the constraint.",
    ),
    False: (
        "Nothing is left to be said: the settings ban every token.",
        "Change one of suppress_tokens, allowed_tokens and no_repeat_ngram_size.",
    ),
}


class Telling:
    """max_seq_len: where every answer ends. ended: streams whose requests end after this step, to which it adds, and
    other threads do.
    """

    def __init__(
        self, scheduler: Scheduler, speculation: Speculation | None, max_seq_len: int, ended: deque[Stream]
    ) -> None:
        self.scheduler, self.speculation, self.max_seq_len, self.ended = scheduler, speculation, max_seq_len, ended

    def say(self, writing: Sequence[list[Place]], logits: np.ndarray) -> None:
        """Draws a token for each place from its row of logits, and tells them as far as drafts came true."""
        tokens, logprobs, errors = draw_places([place for places in writing for place in places], logits)
        row = 0
        for places in writing:
            answer, drafted, said = places[0].answer, places[-1].drafted, list[int]()
            for n, place in enumerate(places):
                token, wanted = tokens[row + n], answer.request.sampling.logprobs
                if token == NOTHING:
                    self._end_silent(answer, errors[row + n])
                    break
                logprob = logprobs[row + n] if wanted or place.forced is None else 0.0
                came_true = n < len(drafted) and drafted[n] == token
                said.append(token)
                top = _alternatives(logits[row + n], token, logprob, wanted) if wanted else ()
                self._tell(answer, token, logprob, top, came_true)
                if answer.is_done or not came_true:
                    break
            row += len(places)
            if self.speculation:
                self.speculation.note_tokens(answer, said, len(drafted))
            while answer.forced and not answer.is_done and not answer.request.sampling.logprobs:
                self._tell(answer, answer.forced[0], 0.0, ())  # certain, so its logits need not be computed

    def _end_silent(self, answer: Answer, error: AthanorError | None) -> None:
        """Ends an answer to which its settings leave nothing to be said, or whose constraint failed with `error`."""
        if error or answer.guide is None or not answer.guide.accepts:
            self._fail(answer, error or AthanorError(*_NOTHING_LEFT[answer.guide is not None]))
            return
        text = answer.text.finish()[0] if answer.text else ""
        self._finish(answer)
        self._put(answer, Event(answer.index, -1, 0.0, text, "stop"))

    def _fail(self, answer: Answer, error: AthanorError) -> None:
        answer.stream.failure = answer.stream.failure or error
        answer.is_done = True
        self.ended.append(answer.stream)

    def _put(self, answer: Answer, event: Event) -> None:
        stream = answer.stream
        stream.put(event)
        if stream.failure is not None:
            self._fail(answer, AthanorError("The caller's function failed."))
        elif not stream.answers:
            stream.is_over = True

    def _finish(self, answer: Answer) -> None:
        self.scheduler.remove(answer)
        answer.stream.answers.remove(answer)
        answer.is_done = True

    def _tell(
        self, answer: Answer, token: int, logprob: float, top: tuple[TokenLogprob, ...], computed: bool = False
    ) -> None:
        """computed: whether the token's keys and values are in the cache already."""
        stream, sampling = answer.stream, answer.request.sampling
        if stream.failure is not None or stream in self.ended:
            answer.is_done = True
            self.ended.append(stream)
            return
        answer.push(token)
        if computed:
            self.scheduler.advance(answer, 1)
        long_enough = answer.said >= sampling.min_tokens
        reason, text = None, ""
        if token in answer.stop_ids and long_enough:
            reason = "stop"
        elif answer.text is not None:
            text, stopped = answer.text.push(token, long_enough)
            reason = "stop" if stopped else None
        ends = reason is None and self._follow(answer, token)
        if ends:
            reason = "stop"
        elif reason is None and (answer.said >= sampling.max_tokens or answer.length >= self.max_seq_len):
            reason = "length"
        if answer.text is not None and reason is not None and (ends or token in answer.stop_ids or reason == "length"):
            rest, stopped = answer.text.finish(long_enough)
            text, reason = text + rest, "stop" if stopped else reason
        if reason is not None:
            self._finish(answer)
        self._put(answer, Event(answer.index, token, logprob, text, reason, top))

    def _follow(self, answer: Answer, token: int) -> bool:
        """Notes a token within the answer's constraint, if it has one; whether nothing more may come."""
        if answer.guide is None:
            return False
        try:
            answer.forced = answer.forced_after(token, answer.guide, answer.forced)
        except AthanorError as error:
            answer.stream.failure = error
            return False
        return answer.guide.is_complete

    def search(self, beams: BeamSearch) -> None:
        """Goes on with all beams of a request; tells the best answers when there are no better ones."""
        stream, sampling = beams.live[0].answer.stream, beams.sampling
        try:
            if stream.failure is not None or not beams.advance(self.scheduler):
                return
        except Exception as error:  # of logits, or of memory for another beam
            stream.failure = error
            self.ended.append(stream)
            return
        answers, stream.answers = stream.answers, []
        for answer in answers:
            self.scheduler.remove(answer)
        if len(beams.finished) < sampling.n:
            stream.failure = AthanorError(
                f"There are only {len(beams.finished)} answers.", "Ask for fewer, or allow more."
            )
            stream.is_over = True
            return
        for answer, found in zip(answers, beams.finished[: sampling.n], strict=False):
            *before, last = found.said.all()
            for said in before:
                text = answer.text.push(said.token)[0] if answer.text else ""
                stream.put(Event(answer.index, said.token, said.logprob, text, None, said.top))
            stops = last.token in answer.stop_ids
            text = "" if stops or not answer.text else answer.text.push(last.token)[0]
            text += answer.text.finish()[0] if answer.text else ""
            reason = "stop" if stops else "length"
            stream.put(Event(answer.index, last.token, last.logprob, text, reason, last.top, found.score))
        stream.is_over = True


def _alternatives(row: np.ndarray, token: int, logprob: float, n: int) -> tuple[TokenLogprob, ...]:
    """The n likeliest of a row of logits, normed as the token that was drawn is."""
    exact = row.astype(np.float64)
    return likeliest(exact - (exact[token] - logprob), n)
