"""Tokenizers that came with somebody else's model, with the model's own chat template.

They answer to the same names as `Tokenizer`; texts are cut by the `tokenizers` library. Read are BPE over bytes (GPT-2,
Llama 3, Qwen), BPE with bytes for what has no token (Llama 2, Mistral, Gemma), Unigram (T5, XLM-R) and WordPiece
(BERT); the last two, and normalizers, may lose something of a text. Control tokens come only from ids and from the
template's own text: the library is given a vocabulary in which nobody can write them, and a conversation's contents are
put into the template's output after its control tokens were found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from athanor.base.errors import TokenizerError
from athanor.base.files import write_json
from athanor.tokenizer.documents import wrapped_with
from athanor.tokenizer.limits import check_limits
from athanor.tokenizer.spelling import bytes_of_tokens, components, control_tokens, kind_of, without_control
from athanor.tokenizer.templates import MAX_CHARACTERS, render_template

if TYPE_CHECKING:
    import tokenizers

_MARK = re.compile("\ue000(\\d{1,9})\ue001")


@contextmanager
def library_errors() -> Iterator[None]:
    """Whatever the library objects to, its panics included (which are no `Exception`), as a TokenizerError."""
    try:
        yield
    except (TokenizerError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise TokenizerError(f"The tokenizer cannot be read ({type(error).__name__}: {error}).") from None


class ForeignTokenizer:
    """document: the content of a `tokenizer.json`. stop_ids: tokens that end an answer. template: the chat template.
    names: the spelling of `bos_token`, `eos_token`, `pad_token`… where the model has them.

    Raises TokenizerError for a kind that is not read, or a document that is broken.
    """

    def __init__(
        self, document: Mapping[str, Any], *, stop_ids: Sequence[int], template: str | None, names: Mapping[str, str]
    ) -> None:
        self.document, self.names, self.template = dict(document), dict(names), template
        with library_errors():
            check_limits(self.document)
            "".join([template or "", *names.values()]).encode()  # or none of it could be written
            self.kind = kind_of(self.document)
            self._added = control_tokens(self.document, stop_ids)
            special = {int(token["id"]) for token in self._added.values() if token["special"]}
            self.control = {name: int(token["id"]) for name, token in self._added.items()}
            self._bytes = bytes_of_tokens(self.document, self.kind)
            self._backend = backend_of(without_control(self.document, self._added))
            self.start_ids, self.end_ids = wrapped_with(document.get("post_processor"))
        self.vocab_size = max(self._bytes) + 1
        if strangers := {*self.start_ids, *self.end_ids, *stop_ids} - self._bytes.keys():
            raise TokenizerError(f"The tokenizer names the token {min(strangers)}, which it does not have.")
        self.control_ids = frozenset(self.control.values())
        self.stop_ids = tuple(stop_ids)
        self.end_of_text_id = self.control.get("<|endoftext|>", self.stop_ids[0] if self.stop_ids else 0)
        self.never_said = tuple(sorted(special - {*self.stop_ids}))
        self._drops_blank = self._begins_with_blank()

    @property
    def pad_id(self) -> int:
        return self.control.get(self.names.get("pad_token", ""), self.end_of_text_id)

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """(vocab_size,) bytes of text that each token stands for; 0 for control tokens."""
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        for index, data in self._bytes.items():
            lengths[index] = 0 if index in self.control_ids else len(data)
        return lengths

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text, without `start_ids` and `end_ids`; what looks like a control token is spelled out."""
        return self._encode(text, self._backend)

    def token_bytes(self, token_id: int) -> bytes:
        """A word's blank is part of its token: `▁the` is b" the"."""
        return self.decode_bytes((token_id,))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Raises TokenizerError for an id outside the vocabulary."""
        try:
            return b"".join([self._bytes[token_id] for token_id in ids])
        except KeyError as error:
            raise TokenizerError(f"Token id {error} is not in the vocabulary.") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids that `encode` gave: without the blank that some tokenizers put before a text."""
        text = self.decode_bytes(ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._drops_blank else text

    def conversation(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> list[int]:
        """The ids of a conversation. Raises TokenizerError without a template, or when it refuses."""
        if self.template is None:
            raise TokenizerError(
                "This model has no chat template.", "It continues texts: `athanor generate MODEL --prompt …`."
            )
        self._refuse_control([tools, [{k: v for k, v in m.items() if k != "content"} for m in messages]])
        contents = [str(message.get("content") or "") for message in messages]
        marked = [{**m, "content": _marked(i, m.get("content"))} for i, m in enumerate(messages)]
        laid_out = render_template(self.template, marked, tools, add_generation_prompt, **self.names)
        return self._sections(_MARK.split(laid_out), [text.strip() for text in contents])

    def _sections(self, parts: Sequence[str], contents: Sequence[str]) -> list[int]:
        """Ids of the template's text (even places) and contents (their numbers at odd places), cut at the template's
        control tokens."""
        if any(int(number) >= len(contents) for number in parts[1::2]):
            raise TokenizerError("The chat template failed: it writes a message that there is not.")
        if sum(len(contents[int(number)]) for number in parts[1::2]) > MAX_CHARACTERS + sum(map(len, contents)):
            raise TokenizerError("The chat template writes the messages again and again.", "Use another one.")
        ids: list[int] = []
        section, strip = "", False
        for place, part in enumerate(parts):
            if place % 2:
                section += contents[int(part)]
                continue
            at = 0
            for found in self._control_pattern.finditer(part) if self.control else ():
                token = self._added[found[0]]
                section += part[at : found.start()]
                section = section.lstrip() if strip else section
                ids += self._section(section.rstrip() if token.get("lstrip") else section, first=not ids)
                ids.append(int(token["id"]))
                section, strip, at = "", bool(token.get("rstrip")), found.end()
            section += part[at:]
        return ids + self._section(section.lstrip() if strip else section, first=not ids)

    def _section(self, text: str, first: bool) -> list[int]:
        if not text:
            return []
        return self._encode(text, self._backend if first else self._inner)

    def save(self, folder: Path | str, max_length: int | None = None) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json` (with the chat template), as transformers reads them."""
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **self.names,
        }
        if self.template is not None:
            config["chat_template"] = self.template
        if max_length is not None:
            config["model_max_length"] = max_length
        write_json(Path(folder) / "tokenizer.json", self.document)
        write_json(Path(folder) / "tokenizer_config.json", config)

    def _encode(self, text: str, backend: tokenizers.Tokenizer) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TokenizerError("The text holds a lone surrogate, which is not a Unicode character.") from None
        with library_errors():
            found = backend.encode(text, add_special_tokens=False)
        return self._ids_of(found)

    def _ids_of(self, found: tokenizers.Encoding) -> list[int]:
        return list(found.ids)

    @cached_property
    def _inner(self) -> tokenizers.Tokenizer:
        """For what follows a control token: some tokenizers put a blank only before the very first word."""
        cut = self.document.get("pre_tokenizer")
        if not any(part.get("prepend_scheme") == "first" for part in components(cut)):
            return self._backend
        document = {**without_control(self.document, self._added), "pre_tokenizer": _never_first(cut)}
        with library_errors():
            return backend_of(document)

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.control, key=len, reverse=True))))

    def _begins_with_blank(self) -> bool:
        """Whether a whole text's first blank is the tokenizer's own."""
        if self.kind == "words":
            return True
        return any(
            (part["type"] == "Strip" and part.get("content") == " " and bool(part.get("start")))
            or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
            for part in components(self.document.get("decoder"))
        )

    def _refuse_control(self, value: Any) -> None:
        """Tools and calls are written by the template itself: they must not hold what it would take for control."""
        for text in _texts(value):
            if self.control and (found := self._control_pattern.search(text)):
                raise TokenizerError(f"A tool or its call holds the control token {found[0]}.", "Remove it.")


def backend_of(document: Mapping[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend

    return Backend.from_str(json.dumps(document, ensure_ascii=False))


def _marked(index: int, content: Any) -> Any:
    """A content as the template sees it: its own blanks around a mark, for templates that strip them."""
    text = str(content or "")
    core = text.strip()
    if not core:
        return content
    start = text.index(core)
    return f"{text[:start]}\ue000{index}\ue001{text[start + len(core) :]}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _never_first(cut: Any) -> Any:
    if cut.get("type") == "Sequence":
        return {**cut, "pretokenizers": [_never_first(part) for part in cut["pretokenizers"]]}
    return {**cut, "prepend_scheme": "never"} if cut.get("prepend_scheme") == "first" else cut
