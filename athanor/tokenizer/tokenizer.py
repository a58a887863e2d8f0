"""`Tokenizer`: text to ids and ids to bytes, exactly, for every valid Unicode string.

tiktoken does the encoding (several times as fast as `tokenizers`, same ids: see `merges`); the rare text with a huge
run of blanks, on which its pattern engine gives up, goes through `tokenizers`. Text is always encoded as ordinary text:
a control token comes only from its id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from athanor.base.errors import TokenizerError
from athanor.base.files import fingerprint, to_json, write_json
from athanor.tokenizer import control as names
from athanor.tokenizer.file_format import read_document, to_document
from athanor.tokenizer.merges import merges_of
from athanor.tokenizer.pretokenization import PATTERN, has_huge_whitespace_run
from athanor.tokenizer.templates import CHAT_TEMPLATE

if TYPE_CHECKING:
    import tokenizers

_TEXTS_A_TASK = 256


class Tokenizer:
    """Byte-level BPE with control tokens at the end of the vocabulary.

    tokens: the ordinary tokens in order of id and of merging, the 256 single bytes first.
    control_names: the control tokens, which take the ids after them; those of `control.NAMED` must be among them.
    Raises TokenizerError when merging cannot make the tokens in this order.
    """

    def __init__(self, tokens: Sequence[bytes], control_names: Sequence[str]) -> None:
        import tiktoken

        if {*tokens[:256]} != {bytes([byte]) for byte in range(256)}:
            raise TokenizerError("The first 256 tokens must be the 256 bytes.")
        if missing := [name for name in names.NAMED if name not in control_names]:
            raise TokenizerError(f"The control token {missing[0]} is missing.", "Train the tokenizer again.")
        if len({*control_names}) != len(control_names):
            raise TokenizerError("A control token is named twice.")
        self._tokens, self._merges, self._control_names = list(tokens), merges_of(tokens), list(control_names)
        self.control: dict[str, int] = {name: len(tokens) + i for i, name in enumerate(control_names)}
        self.control_ids = frozenset(self.control.values())
        self.vocab_size = len(tokens) + len(control_names)
        self.end_of_text_id = self.control[names.END_OF_TEXT]
        self.start_ids = (self.end_of_text_id,)
        """What a plain text begins with, as in pre-training."""
        self.end_of_turn_id = self.control[names.TURN_END]
        self.stop_ids = (self.end_of_turn_id, self.end_of_text_id)
        self.never_said = tuple(i for name, i in self.control.items() if name not in names.SAID)
        """Control tokens that no answer holds: generation leaves them out."""
        self.byte_lengths = np.array([*map(len, tokens), *(0 for _ in control_names)], dtype=np.int32)
        """(vocab_size,) bytes of text that each token stands for; 0 for control tokens."""
        self.byte_lengths.setflags(write=False)
        self._bytes = {i: token for i, token in enumerate([*tokens, *(name.encode() for name in control_names)])}
        ranks = {token: rank for rank, token in enumerate(tokens)}
        self._encoding = tiktoken.Encoding("athanor", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})

    @property
    def pad_id(self) -> int:
        return self.end_of_text_id

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what decides the ids: equal for two tokenizers exactly when their `tokenizer.json` are equal."""
        return fingerprint(self.document)

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; what looks like a control token is spelled out.

        Raises TokenizerError when `text` holds a lone surrogate: that is half a character, which no UTF-8 can carry.
        """
        _refuse_surrogates(text)
        if has_huge_whitespace_run(text):
            ids: list[int] = self._slow_but_sure.encode(text).ids
            return ids
        return self._encoding.encode_ordinary(text)

    def encode_many(self, texts: Iterable[str], threads: int = 1) -> list[np.ndarray]:
        """Ids of every text as an int32 array, in order; the same for any number of threads."""
        every = list(texts)
        tasks = [every[i : i + _TEXTS_A_TASK] for i in range(0, len(every), _TEXTS_A_TASK)]
        with ThreadPoolExecutor(max(1, threads)) as pool:
            return [ids for task in pool.map(self._encode_task, tasks) for ids in task]

    def _encode_task(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(self.encode(text), dtype=np.int32) for text in texts]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; of a control token, its name."""
        return self.decode_bytes((token_id,))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Raises TokenizerError for an id outside the vocabulary."""
        try:
            return b"".join([self._bytes[token_id] for token_id in ids])
        except KeyError as error:
            raise TokenizerError(
                f"Token id {error} is not in the vocabulary of {self.vocab_size}.",
                "The ids were made with another tokenizer.",
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, control tokens as their names. Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, folder: Path | str, max_length: int | None = None, *, before: str = "", after: str = "") -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json` (with the chat template) into `folder`.

        max_length: the model's context in tokens, where it is known. before, after: control tokens that programs which
        read the files shall put around a text, for networks that are no decoders; they get no chat template.
        """
        folder = Path(folder)
        document, config = self.document, _config(max_length)
        if before or after:
            document["post_processor"] = self._around(before, after)
            del config["chat_template"]
            config |= {"eos_token": after, "mask_token": names.MASK}
        if before:
            inputs = ["input_ids", "token_type_ids", "attention_mask"]
            config |= {"cls_token": before, "sep_token": after, "model_input_names": inputs}
        write_json(folder / "tokenizer.json", document)
        write_json(folder / "tokenizer_config.json", config)

    def _around(self, before: str, after: str) -> dict[str, Any]:
        """before A after, of a pair before A after B after."""

        def part(text: str, type_id: int) -> list[dict[str, Any]]:
            ends = {"SpecialToken": {"id": after, "type_id": type_id}}
            return [{"Sequence": {"id": text, "type_id": type_id}}, ends]

        first = [{"SpecialToken": {"id": before, "type_id": 0}}] if before else []
        return {
            "type": "TemplateProcessing",
            "single": [*first, *part("A", 0)],
            "pair": [*first, *part("A", 0), *part("B", 1)],
            "special_tokens": {
                name: {"id": name, "ids": [self.control[name]], "tokens": [name]} for name in (before, after) if name
            },
        }

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Reads `tokenizer.json` of `folder`. Raises TokenizerError when it is missing, corrupt or of another kind."""
        path = Path(folder) / "tokenizer.json"
        tokens, merges, control_names = read_document(path)
        try:
            tokenizer = cls(tokens, control_names)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error.message}", error.hint) from None
        if tokenizer._merges != merges:
            raise TokenizerError(f"{path}: The merges do not make the vocabulary's tokens in the order of their ids.")
        return tokenizer

    @property
    def document(self) -> dict[str, Any]:
        return to_document(self._tokens, self._merges, self._control_names)

    @cached_property
    def _slow_but_sure(self) -> tokenizers.Tokenizer:
        from tokenizers import Tokenizer as Backend

        return Backend.from_str(to_json({**self.document, "added_tokens": []}))


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"The text holds a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), "
            "which is not a Unicode character.",
            "Repair it with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').",
        ) from None


def _config(max_length: int | None) -> dict[str, Any]:
    """`tokenizer_config.json`. The class is the plain one, for a Qwen class would bring its own normaliser along."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "eos_token": names.TURN_END,
        "pad_token": names.END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
    }
    if max_length is not None:
        config["model_max_length"] = max_length
    return config
