"""The tokenizer of a Hugging Face folder: `tokenizer.json`, or the older files that stand for one.

Those are `vocab.json` with `merges.txt` (GPT-2, RoBERTa, OPT), `vocab.txt` (BERT), sentencepiece's `tokenizer.model`
(Llama 2, T5), and that of translators (`translators`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from athanor.base.errors import AthanorError, TokenizerError
from athanor.base.files import read_json
from athanor.tokenizer.cuts import PRE_TOKENIZERS
from athanor.tokenizer.documents import (
    Document,
    added_token,
    byte_level_bpe,
    wordpiece,
    wrapped_with,
    wrapping,
)
from athanor.tokenizer.foreign import ForeignTokenizer
from athanor.tokenizer.gguf import from_sentencepiece
from athanor.tokenizer.sentencepiece import read_sentencepiece
from athanor.tokenizer.spelling import vocabulary
from athanor.tokenizer.templates import read_template
from athanor.tokenizer.translators import is_translator, read_translator

_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_WRAPPED = ("roberta", "bart", "longformer", "led", "deberta")  # model types whose texts stand between <s> and </s>
_SENTENCEPIECE = (
    "llama",
    "mistral",
    "mixtral",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "phi3",
    "t5",
    "mt5",
    "umt5",
)


def from_folder(folder: Path | str) -> ForeignTokenizer:
    """The tokenizer of a Hugging Face folder. Raises TokenizerError."""
    folder = Path(folder)
    try:
        return _from_folder(folder)
    except TokenizerError:
        raise
    except AthanorError as error:  # of a file that is missing or no JSON
        raise TokenizerError(error.message, error.hint) from None


def _from_folder(folder: Path) -> ForeignTokenizer:
    config, model = _object(folder / "tokenizer_config.json"), _object(folder / "config.json")
    names, stops = _special_names(folder, config), list[int]()
    for found in (_object(folder / "generation_config.json"), model):
        ends = found.get("eos_token_id")
        stops += [i for i in (ends if isinstance(ends, list) else [ends]) if type(i) is int and i not in stops]
    if not (folder / "tokenizer.json").is_file() and is_translator(folder, str(model.get("model_type"))):
        return read_translator(folder, str(model.get("model_type")), config, names, stops)
    try:
        document = _document(folder, config, str(model.get("model_type")), names)
        document = _with_configured_ends(document, config, names)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise TokenizerError(
            f"The tokenizer of {folder} is not complete ({type(error).__name__}: {error}).", "Fetch it again."
        ) from None
    has_template = config or (folder / "chat_template.jinja").is_file()
    template = read_template(folder) if has_template else None
    return ForeignTokenizer(document, stop_ids=stops, template=template, names=names)


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise TokenizerError(f"{path} is not a JSON object.")
    return found


def _special_names(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    names = {}
    for source in (_object(folder / "special_tokens_map.json"), config):
        for name in _NAMES:
            value = source.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                names[name] = value
    return names


def _document(folder: Path, config: Mapping[str, Any], model_type: str, names: dict[str, str]) -> Document:
    if (folder / "tokenizer.json").is_file():
        return _object(folder / "tokenizer.json")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _words_and_merges(folder, model_type, names)
    if (folder / "vocab.txt").is_file():
        return _word_list(folder, config)
    if (folder / "tokenizer.model").is_file() and model_type in _SENTENCEPIECE:
        document = from_sentencepiece(read_sentencepiece(folder / "tokenizer.model"))
        return _with_extra_ids(document, config) if model_type == "t5" else document
    raise TokenizerError(
        f"{folder} has no tokenizer that can be read.",
        "Read are tokenizer.json, vocab.json with merges.txt, vocab.txt, for Marian and M2M-100 vocab.json with "
        "sentencepiece's models, and for Llama, Mistral, Gemma, Phi-3 and T5 tokenizer.model. transformers writes the "
        "first: AutoTokenizer.from_pretrained(…).save_pretrained(…).",
    )


def _with_extra_ids(document: Document, config: Mapping[str, Any]) -> Document:
    """T5's sentinels, which stand after the sentencepiece model's tokens, the last one first."""
    tokens, count = vocabulary(document["model"]), int(config.get("extra_ids", 100))
    if "<extra_id_0>" in tokens or not 0 <= count <= 10_000:
        return document
    sentinels = [added_token(len(tokens) + i, f"<extra_id_{count - 1 - i}>", True) for i in range(count)]
    return {**document, "added_tokens": [*document["added_tokens"], *sentinels]}


def _words_and_merges(folder: Path, model_type: str, names: dict[str, str]) -> Document:
    words = {str(token): int(index) for token, index in _object(folder / "vocab.json").items()}
    lines = _lines(folder / "merges.txt")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    document = byte_level_bpe(words, merges, PRE_TOKENIZERS["gpt-2"])
    usual = ("<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>")
    special = {name for name in (*usual, *names.values()) if name in words}
    if "<|endoftext|>" in words:
        names.setdefault("eos_token", "<|endoftext|>")
    document["added_tokens"] = [added_token(words[name], name, True) for name in sorted(special, key=words.__getitem__)]
    if model_type in _WRAPPED or "roberta" in model_type:
        document["post_processor"] = wrapping([("<s>", words["<s>"])], [("</s>", words["</s>"])])
    return document


def _word_list(folder: Path, config: Mapping[str, Any]) -> Document:
    tokens = _lines(folder / "vocab.txt")
    lowercase = config.get("do_lower_case") is not False
    accents = config.get("strip_accents")
    document = wordpiece(
        tokens,
        unknown="[UNK]",
        lowercase=lowercase,
        strip_accents=accents if isinstance(accents, bool) else lowercase,
    )
    ids = {token: index for index, token in enumerate(tokens)}
    special = [name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in ids]
    document["added_tokens"] = [added_token(ids[name], name, True) for name in special]
    document["post_processor"] = wrapping([("[CLS]", ids["[CLS]"])], [("[SEP]", ids["[SEP]"])])
    return document


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read ({error}).") from None
    return text.removesuffix("\n").split("\n")


def _with_configured_ends(document: Document, config: Mapping[str, Any], names: Mapping[str, str]) -> Document:
    """The document with BOS and EOS around a text as `add_bos_token` and `add_eos_token` say, where they do."""
    ids = {**vocabulary(document["model"]), **{str(t["content"]): int(t["id"]) for t in document["added_tokens"]}}
    ends = list(wrapped_with(document.get("post_processor")))
    for place, (switch, name) in enumerate((("add_bos_token", "bos_token"), ("add_eos_token", "eos_token"))):
        wanted, index = config.get(switch), ids.get(names.get(name, ""))
        if wanted is True and index is not None and index not in ends[place]:
            ends[place] = (index, *ends[place])
        elif wanted is False:
            ends[place] = tuple(i for i in ends[place] if i != index)
    if tuple(ends) == wrapped_with(document.get("post_processor")):
        return document
    spelled = {index: name for name, index in ids.items()}
    before, after = ([(spelled[i], i) for i in side] for side in ends)
    return {**document, "post_processor": wrapping(before, after)}
