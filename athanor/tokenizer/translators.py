"""The tokenizers of Marian and M2M-100: sentencepiece cuts a text into pieces, and `vocab.json` gives these their ids.

A piece that has no id there is unknown, so sentencepiece's own ids are only known here. Marian has a model for either
side (`source.spm`, `target.spm`) and marks the language to be written as a token before the text, `>>fra<<`, where it
knows several (Junczys-Dowmunt et al. 2018); M2M-100 has one for all (`sentencepiece.bpe.model`), and its languages are
tokens behind those of `vocab.json`, in the order of their codes (Fan et al. 2020).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from athanor.base.errors import TokenizerError
from athanor.base.files import read_json, write_bytes, write_json
from athanor.tokenizer.documents import (
    BYTE,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Document,
    added_token,
    merges_of_scores,
    unigram,
    wrapping,
)
from athanor.tokenizer.foreign import ForeignTokenizer, backend_of, library_errors
from athanor.tokenizer.sentencepiece import UNIGRAM, SentencePiece, read_sentencepiece

if TYPE_CHECKING:
    import tokenizers

_LANGUAGES = {
    "m2m100": "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr "
    "ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps "
    "pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu",
    "wmt21": "en ha is ja cs ru zh de",
}
_FILES = {"marian": ("source.spm", "target.spm"), "m2m_100": ("sentencepiece.bpe.model",)}
_CLASSES = {"marian": "MarianTokenizer", "m2m_100": "M2M100Tokenizer"}
_KEPT = ("source_lang", "target_lang", "src_lang", "tgt_lang", "language_codes", "separate_vocabs")
_NEVER = -100.0  # score of what the source's side does not cut a text into


def is_translator(folder: Path, model_type: str) -> bool:
    """Whether a folder has these files, and no `tokenizer.json` that stands for them."""
    needed = ("vocab.json", *_FILES.get(model_type, ()))
    return model_type in _FILES and all((folder / name).is_file() for name in needed)


def read_translator(
    folder: Path, model_type: str, config: Mapping[str, Any], names: Mapping[str, str], stop_ids: Sequence[int]
) -> ForeignTokenizer:
    """config: of `tokenizer_config.json`; names: of the special tokens. Raises TokenizerError."""
    if config.get("separate_vocabs"):
        raise TokenizerError(
            f"{folder} has a vocabulary for either side, which is not read.", "Read is a Marian model with one."
        )
    ids = _vocabulary(folder / "vocab.json")
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", **names}
    for role in ("eos_token", "unk_token"):
        if names[role] not in ids:
            raise TokenizerError(f"{folder / 'vocab.json'} lacks {names[role]!r}.", "Fetch it again.")
    added = {name: ids[name] for name in names.values() if name in ids}
    end, start = [(names["eos_token"], ids[names["eos_token"]])], list[tuple[str, int]]()
    if model_type == "m2m_100":
        codes = str(config.get("language_codes") or "m2m100")
        if codes not in _LANGUAGES:
            raise TokenizerError(f"Languages {codes!r} are not known.", f"Known are {', '.join(_LANGUAGES)}.")
        languages = {f"__{code}__": len(ids) + i for i, code in enumerate(_LANGUAGES[codes].split())}
        first = f"__{config.get('src_lang') or 'en'}__"
        if first not in languages:
            raise TokenizerError(f"src_lang = {config.get('src_lang')!r} is none of the languages of {codes}.")
        start, added = [(first, languages[first])], added | languages
    else:
        added |= {name: i for name, i in ids.items() if name.startswith(">>") and name.endswith("<<")}
    models = [read_sentencepiece(folder / name) for name in _FILES[model_type]]
    scores = dict(zip(models[0].tokens, models[0].scores, strict=True))
    document = unigram(
        list(ids), [scores.get(token, _NEVER) for token in ids], unknown_id=ids[names["unk_token"]],
        byte_fallback=False, characters=b"", space_prefix=models[0].space_prefix, merge_spaces=False,
    )  # fmt: skip
    document["added_tokens"] = [added_token(i, name, True) for name, i in sorted(added.items(), key=lambda x: x[1])]
    document["post_processor"] = wrapping(start, end)
    kept = {name: config[name] for name in _KEPT if config.get(name) is not None}
    kept |= {"tokenizer_class": _CLASSES[model_type]}
    files = {name: (folder / name).read_bytes() for name in _FILES[model_type]}
    return TranslatorTokenizer(document, models[0], ids, files, kept, names, stop_ids)


class TranslatorTokenizer(ForeignTokenizer):
    """document: of all tokens, as they are decoded. source: cuts a text; ids: of its pieces, and of other tokens.
    files: what the folder has of sentencepiece, to be saved again, and config: what goes beside it.
    """

    def __init__(
        self,
        document: Document,
        source: SentencePiece,
        ids: Mapping[str, int],
        files: Mapping[str, bytes],
        config: Mapping[str, Any],
        names: Mapping[str, str],
        stop_ids: Sequence[int],
    ) -> None:
        super().__init__(document, stop_ids=stop_ids, template=None, names=names)
        self._vocabulary, self._files, self._config = dict(ids), dict(files), dict(config)
        self._ids = {token: i for token, i in ids.items() if token not in self.control}
        self._unknown = ids[names["unk_token"]]
        with library_errors():
            self._backend = backend_of(_cutting(source))

    def _ids_of(self, found: tokenizers.Encoding) -> list[int]:
        return [self._ids.get(piece, self._unknown) for piece in found.tokens]

    def save(self, folder: Path | str, max_length: int | None = None) -> None:
        """Writes the files that transformers reads: `vocab.json`, sentencepiece's, and `tokenizer_config.json`."""
        config = {**self._config, **self.names} | ({} if max_length is None else {"model_max_length": max_length})
        for name, data in self._files.items():
            write_bytes(Path(folder) / name, data)
        write_json(Path(folder) / "vocab.json", self._vocabulary)
        write_json(Path(folder) / "tokenizer_config.json", config)


def _vocabulary(path: Path) -> dict[str, int]:
    """In the order of the ids."""
    found = read_json(path)
    if (
        not isinstance(found, dict)
        or not found
        or sorted(map(repr, found.values())) != sorted(map(repr, range(len(found))))
    ):
        raise TokenizerError(f"{path} does not give each token an id from 0 upwards.", "Fetch it again.")
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def _cutting(model: SentencePiece) -> Document:
    """The document that cuts a text as sentencepiece does; pieces that no text is cut into have names that cannot be
    guessed.
    """
    tokens = [
        token if kind in (NORMAL, USER_DEFINED, BYTE) else secrets.token_hex(16)
        for token, kind in zip(model.tokens, model.types, strict=True)
    ]
    unknown = next((i for i, kind in enumerate(model.types) if kind == UNKNOWN), 0)
    document = unigram(
        tokens, model.scores, unknown_id=unknown, byte_fallback=BYTE in model.types, characters=model.characters,
        space_prefix=model.space_prefix, merge_spaces=model.merge_spaces,
    )  # fmt: skip
    if model.kind != UNIGRAM:
        document["model"] = {
            "type": "BPE",
            "unk_token": tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": BYTE in model.types,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges_of_scores(tokens, model.scores, model.types),
        }
    return document
