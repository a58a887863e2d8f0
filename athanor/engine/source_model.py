"""An encoder–decoder with its tokenizer: a text is read whole, and another one is written about it.

What an answer begins with is the file's: the decoder's start token, and where the model speaks several languages the
token of the one it shall write in (M2M-100, NLLB); Marian has that one before the source.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from athanor.base.errors import AthanorError, ModelError
from athanor.base.files import read_json
from athanor.engine.generation_config import defaults_of
from athanor.engine.language_model import LanguageModel, Message
from athanor.engine.requests import Request
from athanor.engine.rung import Rung
from athanor.engine.sampling import Sampling
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.foreign import ForeignTokenizer


class SourceModel(LanguageModel):
    """begins: ids that every answer begins with, the decoder's start token first; first: those of every source."""

    def __init__(
        self,
        model: EncoderDecoder,
        tokenizer: Tokenizer | ForeignTokenizer,
        defaults: Sampling,
        begins: Sequence[int],
        rung: Callable[[], Rung],
    ) -> None:
        super().__init__(model, tokenizer, defaults, rung=rung)  # type: ignore[arg-type]
        self.begins, self.first = tuple(begins), tuple(tokenizer.start_ids)

    def between(self, source: str | None = None, target: str | None = None) -> SourceModel:
        """The same model, reading and writing in these languages: names of tokens, as eng_Latn, fr or fra (for __fr__
        and >>fra<<). Raises AthanorError for one that the tokenizer does not have.
        """
        other = copy.copy(self)
        if source is not None:
            other.first = (self._language(source),)
        if target is not None:
            language = self._language(target)
            if self._is_told_in_source(language):
                other.first = (language,)
            else:
                other.begins = self.begins[0], language
        return other

    def _is_told_in_source(self, language: int) -> bool:
        """Whether the source begins with the language to be written (Marian), not the answer."""
        return self.tokenizer.token_bytes(language).startswith(b">>")

    def _language(self, name: str) -> int:
        control: Mapping[str, int] = getattr(self.tokenizer, "control", {})
        for spelling in (name, f"__{name}__", f">>{name}<<"):
            if spelling in control:
                return control[spelling]
        known = [token for token in control if ("_" in token or token.startswith(">>")) and token[0] != "<"]
        raise AthanorError(
            f"This model knows no language {name!r}.",
            f"Known: {', '.join(known[:20])}{' …' if len(known) > 20 else ''}." if known else "It has none to choose.",
        )

    def request(self, ids: Sequence[int], settings: Sampling) -> Request:
        return Request(self.begins, settings, self.stop_ids, source=ids)

    def text_prompt(self, text: str) -> list[int]:
        return [*self.first, *self.tokenizer.encode(text), *getattr(self.tokenizer, "end_ids", ())]

    def chat_prompt(self, messages: Sequence[Message], tools: Sequence[Message] | None = None) -> list[int]:
        raise AthanorError("This model answers texts, and holds no conversations.", "Give it a text to read.")


def source_model(
    place: Path, model: EncoderDecoder, tokenizer: Tokenizer | ForeignTokenizer, rung: Callable[[], Rung]
) -> SourceModel:
    """With the start, the language and the settings that the folder's files name; greedy unless they say to sample.
    Raises ModelError for ids that are none.
    """
    settings: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        path = place / name
        found = read_json(path) if path.is_file() else {}
        settings |= {key: value for key, value in found.items() if value is not None} if isinstance(found, dict) else {}
    begins = [settings.get("decoder_start_token_id", model.config.start_id), settings.get("forced_bos_token_id")]
    begins = [token for token in begins if token is not None]
    if not all(type(token) is int and 0 <= token < model.config.vocab_size for token in begins):
        raise ModelError(f"{place} says that answers begin with {begins}, which are not all tokens.")
    defaults = defaults_of(place, samples=settings.get("do_sample") is True, begun=len(begins))
    return SourceModel(model, tokenizer, defaults, begins, rung)


def between(lm: LanguageModel, source: Any, target: Any) -> LanguageModel:
    """`lm` reading and writing in these languages, None for its own. Raises AthanorError for a model without any, or
    one that it does not know.
    """
    if source is None and target is None:
        return lm
    if not isinstance(lm, SourceModel):
        raise AthanorError("This model has no languages to choose.", "They are for Marian, M2M-100 and NLLB.")
    return lm.between(*(None if name is None else str(name) for name in (source, target)))
