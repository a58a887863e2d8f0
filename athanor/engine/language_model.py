"""`athanor.load`: a model and its tokenizer as one object that chats and completes text, whole or streamed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from athanor.base.errors import AthanorError, ModelError
from athanor.base.files import read_json
from athanor.engine.decoding import decode, request_keys
from athanor.engine.locate import find_model
from athanor.engine.sampling import Sampling
from athanor.models.decoder import Decoder
from athanor.models.folder import load_decoder
from athanor.models.gguf.load import model_of
from athanor.models.gguf.reader import GgufFile
from athanor.tokenizer import StreamDecoder, Tokenizer
from athanor.tokenizer.chat import render
from athanor.tokenizer.folder import from_folder
from athanor.tokenizer.foreign import ForeignTokenizer
from athanor.tokenizer.gguf import from_gguf

Message = Mapping[str, Any]

_TOGETHER = 64  # prompts that are answered at a time; their cache has to fit into memory


@dataclass(frozen=True)
class Reply:
    """text: without the stop token. tokens: ids said, the stop token included. finish_reason: "stop" or "length".

    timings: prompt_tokens, completion_tokens, seconds, first_token_seconds, tokens_per_second (after the first).
    """

    text: str
    tokens: list[int]
    finish_reason: str
    timings: dict[str, float]


@dataclass(frozen=True)
class Piece:
    """A part of a streamed answer; the last one carries the whole reply."""

    text: str
    reply: Reply | None = None


class LanguageModel:
    """Sampling settings are keywords of every method (see `engine.sampling.Sampling`); the model folder gives their
    defaults.
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer | ForeignTokenizer, defaults: Sampling | None = None
    ) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ModelError(
                f"The tokenizer has {tokenizer.vocab_size} ids, the model only {model.config.vocab_size}.",
                "They belong to different models.",
            )
        self.model, self.tokenizer, self.defaults = model, tokenizer, defaults or Sampling()

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.stop_ids)

    def chat(self, messages: Sequence[Message], tools: Sequence[Message] | None = None, **sampling: Any) -> Reply:
        """The assistant's answer to a conversation in OpenAI's schema."""
        return self.chat_many([messages], tools, **sampling)[0]

    def chat_many(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[Message] | None = None, **sampling: Any
    ) -> list[Reply]:
        return self._replies([self.chat_prompt(messages, tools) for messages in conversations], sampling)

    def generate(self, prompt: str, **sampling: Any) -> Reply:
        """Continues plain text."""
        return self.generate_many([prompt], **sampling)[0]

    def generate_many(self, prompts: Sequence[str], **sampling: Any) -> list[Reply]:
        return self._replies([self.text_prompt(prompt) for prompt in prompts], sampling)

    def stream(
        self, prompt: str | Sequence[Message], tools: Sequence[Message] | None = None, **sampling: Any
    ) -> Iterator[Piece]:
        """Pieces of the answer to a conversation, or of the continuation of a text, as they come; never half a
        character.

        Closing the iterator stops the work.
        """
        ids = self.text_prompt(prompt) if isinstance(prompt, str) else self.chat_prompt(prompt, tools)
        gathered = _Gathered(self.tokenizer, self.stop_ids, len(ids))
        settings = self.sampling(sampling)
        for event in decode(self.model, [ids], settings, self.stop_ids, request_keys(settings.seed, 1)):
            text = gathered.add(event.token, event.finish_reason)
            if event.finish_reason:
                yield Piece(text, gathered.reply())
            elif text:
                yield Piece(text)

    def chat_prompt(self, messages: Sequence[Message], tools: Sequence[Message] | None = None) -> list[int]:
        return render(self.tokenizer, messages, tools, add_generation_prompt=True).ids

    def text_prompt(self, text: str) -> list[int]:
        """A text begins as in pre-training: ours after an end of text, another's as its tokenizer has it."""
        return [*self.tokenizer.start_ids, *self.tokenizer.encode(text)] or [self.tokenizer.end_of_text_id]

    def sampling(self, changes: Mapping[str, Any]) -> Sampling:
        """The defaults with `changes`; ids that are no tokens are never drawn, for a model's table may be longer than
        its vocabulary. Raises AthanorError for a setting that does not exist or cannot be used.
        """
        known = {field.name for field in dataclasses.fields(Sampling)}
        if unknown := sorted(set(changes) - known):
            raise AthanorError(f"There is no sampling setting {unknown[0]!r}.", f"Known: {', '.join(sorted(known))}.")
        settings = dataclasses.replace(self.defaults, **changes)
        beyond = range(self.tokenizer.vocab_size, self.model.config.vocab_size)
        return (
            dataclasses.replace(settings, suppress_tokens=(*settings.suppress_tokens, *beyond)) if beyond else settings
        )

    def _replies(self, prompts: list[list[int]], changes: Mapping[str, Any]) -> list[Reply]:
        settings = self.sampling(changes)
        replies: list[Reply] = []
        for start in range(0, len(prompts), _TOGETHER):
            some = prompts[start : start + _TOGETHER]
            gathered = [_Gathered(self.tokenizer, self.stop_ids, len(ids)) for ids in some]
            keys = request_keys(settings.seed, 1).repeat(len(some)) if settings.seed is not None else None
            for event in decode(self.model, some, settings, self.stop_ids, keys):
                gathered[event.request].add(event.token, event.finish_reason)
            replies += [each.reply() for each in gathered]
        return replies


class _Gathered:
    """One answer under way."""

    def __init__(self, tokenizer: Tokenizer | ForeignTokenizer, stop_ids: frozenset[int], prompt_tokens: int) -> None:
        self.decoder, self.stop_ids, self.prompt_tokens = StreamDecoder(tokenizer), stop_ids, prompt_tokens
        self.tokens: list[int] = []
        self.texts: list[str] = []
        self.finish_reason = "length"
        self.times = [time.perf_counter()]

    def add(self, token: int, finish_reason: str | None) -> str:
        self.tokens.append(token)
        self.times.append(time.perf_counter())
        text = "" if token in self.stop_ids else self.decoder.push(token)
        if finish_reason:
            self.finish_reason = finish_reason
            text += self.decoder.finish()
        self.texts.append(text)
        return text

    def reply(self) -> Reply:
        seconds = self.times[-1] - self.times[0]
        first = self.times[1] - self.times[0] if self.tokens else 0.0
        rest = max(seconds - first, 1e-9)
        timings = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.tokens),
            "seconds": seconds,
            "first_token_seconds": first,
            "tokens_per_second": (len(self.tokens) - 1) / rest if len(self.tokens) > 1 else 0.0,
        }
        return Reply("".join(self.texts), self.tokens, self.finish_reason, timings)


def load(name: str | Path, *, dtype: torch.dtype | None = None) -> LanguageModel:
    """Loads a model folder, a GGUF file, the last model of a run by its name or folder, or a packaged model.

    Raises ModelError or TokenizerError when a file is missing, corrupt, or of an unknown kind.
    """
    place = find_model(name)
    if place.suffix == ".gguf":
        file = GgufFile(place)
        foreign = from_gguf(file.metadata, str(place))
        return LanguageModel(model_of(file, dtype), foreign, Sampling(suppress_tokens=foreign.never_said))
    model = load_decoder(place, dtype)
    tokenizer = Tokenizer.load(place) if (place / "athanor.json").is_file() else from_folder(place)
    return LanguageModel(model, tokenizer, _defaults(place))


def _defaults(folder: Path) -> Sampling:
    path = folder / "generation_config.json"
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object.")
    known = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "suppress_tokens")
    given: dict[str, Any] = {name: found[name] for name in known if found.get(name) is not None}
    if isinstance(given.get("suppress_tokens"), list):
        given["suppress_tokens"] = tuple(given["suppress_tokens"])
    try:
        return Sampling(**given)
    except AthanorError as error:
        raise ModelError(f"{path}: {error.message}", error.hint) from None
