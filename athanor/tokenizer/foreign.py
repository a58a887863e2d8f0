"""Tokenizers that came with somebody else's model: any byte-level BPE, with the model's own chat template.

They answer to the same names as `Tokenizer`. Texts are cut by the `tokenizers` library. A conversation is laid out by
the template in the sandbox of `templates`, with a mark in place of every content; the contents are then encoded as
ordinary text, so that nobody can write a control token. (A content that begins with blanks may be cut differently from
what the template's author had; that is the price.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from athanor.base.errors import TokenizerError
from athanor.base.files import read_json, to_json
from athanor.tokenizer.file_format import byte_level, unspell
from athanor.tokenizer.pretokenization import PATTERN
from athanor.tokenizer.templates import read_template, render_template

_MARK = re.compile("\ue000(\\d+)\ue001")

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level("ByteLevel")]}


# llama.cpp's names for how text is cut before merging.
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _GPT2,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2]},
    "qwen2": _split(PATTERN),
    "llama-bpe": _split(_LLAMA3),
}


class ForeignTokenizer:
    """document: the content of a `tokenizer.json`. stop_ids: tokens that end an answer. template: the chat template.

    Raises TokenizerError for a kind that is not byte-level BPE.
    """

    def __init__(
        self, document: Mapping[str, Any], *, stop_ids: Sequence[int], template: str | None, names: Mapping[str, str]
    ) -> None:
        from tokenizers import Tokenizer as Backend

        self._names = dict(names)
        try:
            model = document["model"]
            if model["type"] != "BPE" or model.get("byte_fallback") or document.get("normalizer") is not None:
                raise TokenizerError("This tokenizer is not a byte-level BPE.", "Only such are read.")
            vocabulary = {str(token): int(index) for token, index in model["vocab"].items()}
            self.control = {str(t["content"]): int(t["id"]) for t in document["added_tokens"] if t["special"]}
            others = {str(t["content"]): int(t["id"]) for t in document["added_tokens"] if not t["special"]}
            self._backend = Backend.from_str(to_json(dict(document)))
            plain = {**document, "added_tokens": [t for t in document["added_tokens"] if not t["special"]]}
            self._plain = Backend.from_str(to_json(plain | {"post_processor": None}))
        except TokenizerError:
            raise
        except Exception as error:  # whatever is wrong inside the library's file is reported by it
            raise TokenizerError(f"The tokenizer cannot be read ({error}).") from None
        self._bytes = {index: text.encode() for text, index in {**self.control, **others}.items()}
        for token, index in vocabulary.items():
            if index not in self._bytes:
                self._bytes[index] = unspell(token)
        self.vocab_size = max(self._bytes) + 1
        self.control_ids = frozenset(self.control.values())
        self.stop_ids = tuple(stop_ids)
        self.end_of_text_id = self.control.get("<|endoftext|>", self.stop_ids[0] if self.stop_ids else 0)
        self.never_said = tuple(sorted(self.control_ids - {*self.stop_ids}))
        self.template = template

    @property
    def pad_id(self) -> int:
        return self.end_of_text_id

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """(vocab_size,) bytes of text that each token stands for; 0 for control tokens."""
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        for index, data in self._bytes.items():
            lengths[index] = 0 if index in self.control_ids else len(data)
        return lengths

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; what looks like a control token is spelled out."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TokenizerError("The text holds a lone surrogate, which is not a Unicode character.") from None
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        return self.decode_bytes((token_id,))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Raises TokenizerError for an id outside the vocabulary."""
        try:
            return b"".join([self._bytes[token_id] for token_id in ids])
        except KeyError as error:
            raise TokenizerError(f"Token id {error} is not in the vocabulary.") from None

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def conversation(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> list[int]:
        """The ids of a conversation. Raises TokenizerError without a template, or when it refuses."""
        if self.template is None:
            raise TokenizerError("This model has no chat template.", "Complete plain text with it instead.")
        self._refuse_control([tools, [{k: v for k, v in m.items() if k != "content"} for m in messages]])
        contents = [str(message.get("content") or "") for message in messages]
        marked = [{**message, "content": f"\ue000{i}\ue001"} for i, message in enumerate(messages)]
        laid_out = render_template(self.template, marked, tools, add_generation_prompt, **self._names)
        ids: list[int] = []
        for place, part in enumerate(_MARK.split(laid_out)):
            if place % 2:
                ids += self.encode(contents[int(part)])
            else:
                ids += self._backend.encode(part, add_special_tokens=False).ids
        return ids

    def _refuse_control(self, value: Any) -> None:
        """Tools and calls are written by the template itself: they must not hold what it would take for control."""
        text = to_json(value)
        found = next((name for name in self.control if name in text), None)
        if found is not None:
            raise TokenizerError(f"A tool or its call holds the control token {found}.", "Remove it.")


def from_gguf(metadata: Mapping[str, Any], place: str) -> ForeignTokenizer:
    """The tokenizer inside a GGUF file. Raises TokenizerError for a kind that is not read."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise TokenizerError(
            f"{place} has a tokenizer of the kind {kind!r}, cut as {pre!r}.", f"Read are gpt2 with: {known}."
        )
    tokens, kinds = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    merges, end = metadata.get("tokenizer.ggml.merges"), metadata.get("tokenizer.ggml.eos_token_id")
    if not (isinstance(tokens, list) and isinstance(kinds, list) and isinstance(merges, list) and tokens):
        raise TokenizerError(f"{place} lacks the tokenizer's tokens, their types or its merges.")
    if len(kinds) != len(tokens) or not isinstance(end, int) or not 0 <= end < len(tokens):
        raise TokenizerError(f"{place} has a tokenizer whose parts do not fit together.")
    added = [
        {
            "id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": kind == _CONTROL,
        }
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]  # fmt: skip
    document = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": None,
        "decoder": byte_level("ByteLevel"),
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }
    first = metadata.get("tokenizer.ggml.bos_token_id")
    names = {"eos_token": tokens[end]}
    if isinstance(first, int) and 0 <= first < len(tokens):
        names["bos_token"] = tokens[first]
    template = metadata.get("tokenizer.chat_template")
    return ForeignTokenizer(
        document, stop_ids=(end,), template=template if isinstance(template, str) else None, names=names
    )


_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types


def from_folder(folder: Path | str) -> ForeignTokenizer:
    """The tokenizer of a Hugging Face folder. Raises TokenizerError."""
    folder = Path(folder)
    document, names = read_json(folder / "tokenizer.json"), {}
    if not isinstance(document, dict):
        raise TokenizerError(f"{folder / 'tokenizer.json'} is not a JSON object.")
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name) if isinstance(config, dict) else None
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            names[name] = value
    stops: list[int] = []
    for file in ("generation_config.json", "config.json"):
        found = read_json(folder / file) if (folder / file).is_file() else {}
        ends = found.get("eos_token_id") if isinstance(found, dict) else None
        stops += [i for i in (ends if isinstance(ends, list) else [ends]) if isinstance(i, int) and i not in stops]
    template = read_template(folder) if config or (folder / "chat_template.jinja").is_file() else None
    return ForeignTokenizer(document, stop_ids=stops, template=template, names=names)
