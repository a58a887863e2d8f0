"""`athanor.load`: a model and its tokenizer as one object that chats and completes text, whole or streamed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from athanor.base.errors import AthanorError, ModelError
from athanor.engine.constraint import KEYWORDS, constraint_of
from athanor.engine.draft_model import DraftModel, check_vocabularies
from athanor.engine.engine import Engine, Limits
from athanor.engine.generation_config import defaults_of
from athanor.engine.handle import Handle
from athanor.engine.locate import find_model
from athanor.engine.requests import Completion, Event, Request, TokenLogprob
from athanor.engine.rung import Cache, Rung
from athanor.engine.rungs import WantedFormat, open_rung, rung_of
from athanor.engine.sampling import Sampling
from athanor.engine.speculation import Drafter, Lookup
from athanor.models.decoder import Decoder
from athanor.models.encoder import Encoder
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.models.folder import load_model
from athanor.models.gguf.load import model_of
from athanor.models.gguf.reader import GgufFile
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.chat import render
from athanor.tokenizer.folder import from_folder
from athanor.tokenizer.foreign import ForeignTokenizer
from athanor.tokenizer.gguf import from_gguf

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """text: without the stop token. tokens: ids said, the stop token included. finish_reason: "stop", "length" or
    "cancelled"; only with "stop" is what a constraint asks for complete.

    timings: prompt_tokens, cached_tokens, completion_tokens, seconds, first_token_seconds, tokens_per_second (after the
    first). score: of beam search. logprobs: one a token. top: the likeliest at each, and prompt_logprobs: of the
    prompt's tokens from the second on, where they are asked for.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    timings: dict[str, float]
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[TokenLogprob, ...]] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    score: float | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a streamed answer; the last one carries the whole reply."""

    text: str
    reply: Reply | None = None


class LanguageModel:
    """Sampling settings are keywords of every method (see `engine.sampling.Sampling`); the model folder gives their
    defaults. So is what an answer may look like: any_json=True, json_schema, regex, choices or grammar
    (`engine.constraint.constraint_of`). The `_many` methods give `n` replies to each prompt, one prompt's after the
    other's.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | ForeignTokenizer,
        defaults: Sampling | None = None,
        precision: str = "fp32",
        rung: Callable[[], Rung] | None = None,
        drafter: Drafter | None = None,
        limits: Limits | None = None,
    ) -> None:
        """precision: as `rungs.rung_of` takes it. rung: makes what executes the model otherwise. drafter: guesses
        tokens, which changes speed alone. limits: of the engine, which may be set until it is made.
        """
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ModelError(
                f"The tokenizer has {tokenizer.vocab_size} ids, the model only {model.config.vocab_size}.",
                "They belong to different models.",
            )
        self.model, self.tokenizer, self.defaults = model, tokenizer, defaults or Sampling()
        self.precision, self._rung, self.drafter, self.limits = precision, rung, drafter, limits or Limits()
        self._made: list[Engine] = []  # at most one; copies of this object have the same
        self._making = Lock()

    @property
    def engine(self) -> Engine:
        """Made with the first request; after a change of the model's weights it wants its `update_weights`."""
        with self._making:
            if not self._made:
                self._made.append(self._make_engine())
            return self._made[0]

    def _make_engine(self) -> Engine:
        if self._rung is None:
            return Engine.of(self.model, self.tokenizer, self.precision, drafter=self.drafter, **vars(self.limits))
        rung = self._rung()
        return Engine(rung, self.model.config, self.tokenizer, drafter=self.drafter, **vars(self.limits))

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.stop_ids)

    def chat(self, messages: Sequence[Message], tools: Sequence[Message] | None = None, **sampling: Any) -> Reply:
        """The assistant's answer to a conversation in OpenAI's schema."""
        return self._replies([self.chat_prompt(messages, tools)], _single(self.sampling(sampling)))[0]

    def chat_many(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[Message] | None = None, **sampling: Any
    ) -> list[Reply]:
        prompts = [self.chat_prompt(messages, tools) for messages in conversations]
        return self._replies(prompts, self.sampling(sampling))

    def generate(self, prompt: str, **sampling: Any) -> Reply:
        """Continues plain text."""
        return self._replies([self.text_prompt(prompt)], _single(self.sampling(sampling)))[0]

    def generate_many(self, prompts: Sequence[str], **sampling: Any) -> list[Reply]:
        return self._replies([self.text_prompt(prompt) for prompt in prompts], self.sampling(sampling))

    def stream(
        self, prompt: str | Sequence[Message], tools: Sequence[Message] | None = None, **sampling: Any
    ) -> Iterator[Piece]:
        """Pieces of the answer to a conversation, or of the continuation of a text, as they come; never half a
        character.

        Closing the iterator stops the work. Raises AthanorError at once for what cannot be asked.
        """
        ids = self.prompt(prompt, tools)
        request = self.request(ids, _single(self.sampling(sampling)))
        engine, gathered = self.engine, _Gathered(len(ids))
        return _pieces(engine.submit(request), gathered)

    def submit(self, prompt: str | Sequence[Message], settings: Sampling) -> Underway:
        """Begins to answer a conversation or to continue a text, beside whatever else is under way."""
        ids = self.prompt(prompt)
        request = self.request(ids, settings)
        engine, gathered = self.engine, [_Gathered(len(ids)) for _ in range(settings.n)]
        return Underway(engine.submit(request, partial(_add, gathered)), gathered)

    def request(self, ids: Sequence[int], settings: Sampling) -> Request:
        """To answer what `prompt` gave."""
        return Request(ids, settings, self.stop_ids)

    def prompt(self, prompt: str | Sequence[Message], tools: Sequence[Message] | None = None) -> list[int]:
        """The ids of a text or of a conversation."""
        return self.text_prompt(prompt) if isinstance(prompt, str) else self.chat_prompt(prompt, tools)

    def chat_prompt(self, messages: Sequence[Message], tools: Sequence[Message] | None = None) -> list[int]:
        return render(self.tokenizer, messages, tools, add_generation_prompt=True).ids

    def text_prompt(self, text: str) -> list[int]:
        """A text begins as in pre-training: ours after an end of text, another's as its tokenizer has it."""
        return [*self.tokenizer.start_ids, *self.tokenizer.encode(text)] or [self.tokenizer.end_of_text_id]

    def sampling(self, changes: Mapping[str, Any]) -> Sampling:
        """The defaults with `changes`. What the defaults suppress stays so beside other tokens, unless none is named;
        ids that are no tokens are never drawn, for a model's table may be longer than its vocabulary. The defaults'
        stop strings do not go with a constraint.

        Raises AthanorError for a setting that does not exist or cannot be used.
        """
        if constraint := constraint_of({name: changes[name] for name in KEYWORDS if name in changes}):
            changes = {"stop": (), **changes, "constraint": constraint}
        changes = {name: value for name, value in changes.items() if name not in KEYWORDS}
        known = {field.name for field in dataclasses.fields(Sampling)}
        if unknown := sorted(set(changes) - known):
            raise AthanorError(
                f"There is no sampling setting {unknown[0]!r}.", f"Known: {', '.join(sorted({*known, *KEYWORDS}))}."
            )
        settings = dataclasses.replace(self.defaults, **{**_searching(self.defaults, changes), **changes})
        beyond = range(self.tokenizer.vocab_size, self.model.config.vocab_size)
        own = self.defaults.suppress_tokens if settings.suppress_tokens else ()
        never = dict.fromkeys([*settings.suppress_tokens, *own, *beyond])
        return dataclasses.replace(settings, suppress_tokens=tuple(never))

    def as_drafter(self, target: LanguageModel) -> Drafter:
        """This model as one that guesses for a larger one. Raises ModelError for another kind or vocabulary."""
        if not isinstance(self.model, Decoder):
            raise ModelError("An encoder–decoder cannot guess for another model.", "Take a decoder.")
        check_vocabularies(self.tokenizer, target.tokenizer)
        rung = self._rung() if self._rung else rung_of(self.model, self.precision)
        return DraftModel(rung, self.model.config, target.model.config.vocab_size)

    def _replies(self, prompts: list[list[int]], settings: Sampling) -> list[Reply]:
        requests = [self.request(ids, settings) for ids in prompts]
        gathered = [[_Gathered(len(ids)) for _ in range(settings.n)] for ids in prompts]
        asked = [(request, partial(_add, into)) for request, into in zip(requests, gathered, strict=True)]
        handles = self.engine.answer(asked)
        return [each.reply(handle) for handle, into in zip(handles, gathered, strict=True) for each in into]


def _searching(defaults: Sampling, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from wanting beams, or from wanting to draw. Raises AthanorError where both are wanted."""
    draws = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
    drawing = [name for name, off in draws.items() if changes.get(name, off) != off]
    beams = changes.get("beams", 1 if drawing else defaults.beams)
    if not isinstance(beams, int) or beams <= 1:
        for name in ("length_penalty", "early_stopping"):
            if name in changes:
                raise AthanorError(f"{name} belongs to beam search.", "Ask for 2 beams or more.")
        return {"beams": beams}
    if drawing:
        name = drawing[0]
        raise AthanorError(
            f"{name} = {changes[name]} contradicts beams = {beams}: beam search draws nothing.",
            f"Leave {name} out, or take beams = 1.",
        )
    return draws


def _pieces(handle: Handle, gathered: _Gathered) -> Iterator[Piece]:
    for event in handle:
        gathered.add(event)
        if event.finish_reason:
            yield Piece(event.text, gathered.reply(handle))
        elif event.text:
            yield Piece(event.text)


def _single(settings: Sampling) -> Sampling:
    if settings.n != 1:
        raise AthanorError(f"n = {settings.n} answers were asked of what gives one.", "chat_many gives several.")
    return settings


def _add(gathered: list[_Gathered], event: Event) -> None:
    gathered[event.index].add(event)


class _Gathered:
    """One answer under way."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion = Completion()
        self.started = self.ended = time.perf_counter()
        self.first = 0.0

    def add(self, event: Event) -> None:
        self.completion.add(event)
        self.ended = time.perf_counter()
        self.first = self.first or self.ended - self.started

    def reply(self, handle: Handle) -> Reply:
        said, seconds = self.completion, self.ended - self.started
        rest = max(seconds - self.first, 1e-9)
        timings = {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": handle.cached_tokens,
            "completion_tokens": len(said.tokens),
            "seconds": seconds,
            "first_token_seconds": self.first,
            "tokens_per_second": (len(said.tokens) - 1) / rest if len(said.tokens) > 1 else 0.0,
        }
        return Reply(
            said.text,
            said.tokens,
            said.finish_reason,
            timings,
            said.logprobs,
            said.top,
            handle.prompt_logprobs,
            said.score,
        )


class Underway:
    """Replies that are being written."""

    def __init__(self, handle: Handle, gathered: list[_Gathered]) -> None:
        self._handle, self._gathered = handle, gathered

    def replies(self) -> list[Reply]:
        """Waits for them."""
        self._handle.wait()
        return [each.reply(self._handle) for each in self._gathered]

    def cancel(self) -> None:
        self._handle.cancel()


def load(
    name: str | Path,
    *,
    dtype: torch.dtype | None = None,
    format: WantedFormat = "auto",
    cache: Cache = "auto",
    speculate: str | Path | LanguageModel = "lookup",
    limits: Limits | None = None,
) -> LanguageModel:
    """Loads a model folder, a GGUF file, the last model of a run by its name or folder, or a packaged model.

    dtype: of `LanguageModel.model`, by default as it is stored. format: of the weights that answers are computed with:
    "fp32", "bf16", "int8" (a scale a row), "int4" (a scale for 32 columns); "auto" keeps that of the file. The last two
    also round activations. cache: of keys and values; "int8" takes half the memory of "auto". speculate:
    how tokens are guessed, to verify several at once where that is faster: "lookup" in the text so far, by a smaller
    model with the same vocabulary, or "off". limits: how much is kept and computed at a time.
    Raises ModelError or TokenizerError when a file is missing, corrupt, or of an unknown kind.
    """
    lm = _load(find_model(name), dtype, format, cache)
    lm.limits = limits or lm.limits
    if isinstance(speculate, LanguageModel):
        lm.drafter = speculate.as_drafter(lm)
    elif speculate == "lookup":
        lm.drafter = Lookup()
    elif speculate != "off":
        lm.drafter = _draft_model(find_model(speculate), lm)
    return lm


def _draft_model(place: Path, target: LanguageModel) -> Drafter:
    """In the fastest format that it can have; what it says is verified anyway."""
    try:
        return _load(place, None, "int4").as_drafter(target)
    except ModelError:
        return _load(place, None, "auto").as_drafter(target)


def _load(place: Path, dtype: torch.dtype | None, format: WantedFormat, cache: Cache = "auto") -> LanguageModel:
    if place.suffix == ".gguf":
        file = GgufFile(place)
        foreign = from_gguf(file.metadata, str(place))
        model, defaults = model_of(file, dtype), Sampling(suppress_tokens=foreign.never_said)
        return LanguageModel(model, foreign, defaults, rung=partial(open_rung, model, format, place, cache))
    loaded = load_model(place, dtype)
    if isinstance(loaded, Encoder):
        raise ModelError(
            f"{place} holds no decoder but an {type(loaded).__name__}, which does not continue a text.",
            "Take a decoder; `athanor embed` embeds texts with an encoder.",
        )
    tokenizer = Tokenizer.load(place) if (place / "athanor.json").is_file() else from_folder(place)
    rung = partial(open_rung, loaded, format, cache=cache)
    if isinstance(loaded, EncoderDecoder):
        from athanor.engine.source_model import source_model

        return source_model(place, loaded, tokenizer, rung)
    return LanguageModel(loaded, tokenizer, defaults_of(place), rung=rung)
