"""Writing a tokenizer, ours or another model's, into GGUF metadata: a plain dict of the keys `tokenizer.*`.

llama.cpp knows ways of cutting text by name only, so a byte-level tokenizer from elsewhere gets the name under which a
collection of hard cases is cut alike; where no name does, it is refused, for other ids would be worse than no file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from athanor.base.errors import TokenizerError
from athanor.tokenizer.cuts import IGNORE_MERGES, PATTERNS, PRE_TOKENIZERS
from athanor.tokenizer.documents import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Document,
    byte_level_bpe,
    merges_of_scores,
)
from athanor.tokenizer.foreign import ForeignTokenizer
from athanor.tokenizer.spelling import byte_of, components
from athanor.tokenizer.templates import CHAT_TEMPLATE
from athanor.tokenizer.tokenizer import Tokenizer

_KEY = "tokenizer.ggml."
_PROBE = (
    "Hello, wOrld's WE'LL it'S 'tis CamelCase HTTPServer x86 1 12 123 1234 12345678 3.14 ½² ٣٤٥ Ⅷ一二三 $5 + <=> ^~"
    ' |`a`\r\n\n\n  two\t\ttabs \n \r\n\r\n trailing   \u00a0b\u3000c snake_case a-b "q" (p) [b] {c} https://a.b/c?d=e'
    "#f !!!\n/// ...\nnaïve cafe\u0301 ÄÖÜß éa ǅ ﬁ ħ 火和水，没有人。「日本語」カタカナ 한국어 हिन्दी ไทย עברית"
    " العربية۔ ქართული 👨\u200d👩\u200d👧🏳️ 🙂x\ufeff\u200b end  "
)


def to_gguf(tokenizer: Tokenizer | ForeignTokenizer, vocab_size: int | None = None) -> dict[str, Any]:
    """The metadata `tokenizer.*` of a GGUF file; values are str, int, float, bool and lists of them.

    vocab_size: rows of the model's embedding, where it has more of them than the tokenizer has ids.
    Raises TokenizerError when it has fewer, or llama.cpp has no name for the kind.
    """
    size = vocab_size or tokenizer.vocab_size
    pre: str | None
    if isinstance(tokenizer, Tokenizer):
        model, pre = tokenizer.document["model"], "qwen2"
        roles = {"bos": tokenizer.end_of_text_id, "eos": tokenizer.end_of_turn_id, "padding": tokenizer.pad_id}
        ends = {"add_bos_token": False}
        template: str | None = CHAT_TEMPLATE
    else:
        model, roles, template = tokenizer.document["model"], _roles(tokenizer), tokenizer.template
        pre = _pre(tokenizer)
        first, last = roles.get("bos"), roles.get("eos")
        ends = {"add_bos_token": first in tokenizer.start_ids, "add_eos_token": last in tokenizer.end_ids}
    tokens, types = _tokens(tokenizer.document, size)
    found: dict[str, Any] = {"model": "llama" if pre is None else "gpt2", "tokens": tokens, "token_type": types}
    if pre is None:
        found |= {"scores": _scores(tokenizer.document, tokens, types), "pre": "default"}
        found["add_space_prefix"] = _has_space_prefix(tokenizer.document)
    else:
        merges = [" ".join(merge) for merge in _pairs(model)]
        if not merges:
            raise TokenizerError("llama.cpp reads no tokenizer without merges.", "Train one with a larger vocabulary.")
        found |= {"pre": pre, "merges": merges}
    found |= {f"{role}_token_id": index for role, index in roles.items()} | ends
    metadata = {_KEY + key: value for key, value in found.items()}
    return metadata if template is None else {**metadata, "tokenizer.chat_template": template}


def _roles(tokenizer: ForeignTokenizer) -> dict[str, int]:
    """Ids of the tokens with a role, by llama.cpp's names; the tokens that end an answer are EOS, EOT and EOM."""
    ids = {str(token["content"]): int(token["id"]) for token in tokenizer.document["added_tokens"]}
    spelled = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    roles = {role: ids[tokenizer.names[name]] for role, name in spelled.items() if tokenizer.names.get(name) in ids}
    if tokenizer.stop_ids:
        roles.setdefault("eos", tokenizer.stop_ids[0])
        roles |= zip(("eot", "eom"), (i for i in tokenizer.stop_ids if i != roles["eos"]), strict=False)
    if len(tokenizer.start_ids) == 1:
        roles["bos"] = tokenizer.start_ids[0]
    return roles


def _tokens(document: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Every id's spelling and type; ids that nothing has are UNUSED."""
    model = document["model"]
    vocabulary = {int(index): (token, NORMAL) for token, index in model["vocab"].items()}
    if model.get("byte_fallback"):
        vocabulary |= {i: (token, BYTE) for i, (token, _) in vocabulary.items() if byte_of(token) is not None}
    for added in document["added_tokens"]:
        unknown = UNKNOWN if added["content"] == model.get("unk_token") else CONTROL
        vocabulary[int(added["id"])] = (added["content"], unknown if added["special"] else USER_DEFINED)
    if max(vocabulary) >= vocab_size:
        raise TokenizerError(f"The tokenizer has the id {max(vocabulary)}, the model only {vocab_size} ids.")
    every = [vocabulary.get(index, (f"[PAD{index}]", UNUSED)) for index in range(vocab_size)]
    return [token for token, _ in every], [kind for _, kind in every]


def _pairs(model: Mapping[str, Any]) -> list[list[str]]:
    return [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]


def _pre(tokenizer: ForeignTokenizer) -> str | None:
    """llama.cpp's name for the way of cutting; None for sentencepiece's, which is not cut."""
    document = tokenizer.document
    kind = str(document["model"]["type"])
    if tokenizer.kind == "pieces" and kind == "BPE":
        return None
    if tokenizer.kind != "bytes":
        raise TokenizerError(f"A {kind} tokenizer is not written into GGUF files.", "Only kinds of BPE are.")
    wanted, whole = _cuts(document), bool(document["model"].get("ignore_merges"))
    same = [names for names, pieces in _known_cuts().items() if pieces == wanted]
    for names in same:
        if (names[0] in IGNORE_MERGES) == whole:
            return names[0]
    if same:  # the flag matters only for tokens that merges do not make
        return same[0][0]
    raise TokenizerError("llama.cpp has no name for the way in which this tokenizer cuts text.")


def _cuts(document: Document) -> list[str]:
    from tokenizers import Tokenizer as Backend

    plain = byte_level_bpe({}, [], document["pre_tokenizer"])
    made = Backend.from_str(json.dumps(plain))
    return [piece for piece, _ in made.pre_tokenizer.pre_tokenize_str(_PROBE)] if made.pre_tokenizer else []


@cache
def _known_cuts() -> dict[tuple[str, ...], list[str]]:
    return {names: _cuts(byte_level_bpe({}, [], PRE_TOKENIZERS[names[0]])) for names in PATTERNS}


def _scores(document: Document, tokens: Sequence[str], types: Sequence[int]) -> list[float]:
    """Scores that imply the tokenizer's merges: of each token, minus the place of the first merge that makes it.

    Raises TokenizerError when no scores do.
    """
    merges = _pairs(document["model"])
    place: dict[str, int] = {}
    for left, right in merges:
        place.setdefault(left + right, len(place))
    scores = [-float(place.get(token, len(place))) for token in tokens]
    implied = {tuple(merge) for merge in merges_of_scores(tokens, scores, types)}
    if implied != {tuple(merge) for merge in merges}:
        raise TokenizerError(
            "This tokenizer's merges are not those that its tokens imply, as llama.cpp would have it.",
            "Such a tokenizer cannot be written into a GGUF file.",
        )
    return scores


def _has_space_prefix(document: Document) -> bool:
    return any(
        part.get("type") == "Prepend" or (part.get("type") == "Metaspace" and part.get("prepend_scheme") != "never")
        for key in ("normalizer", "pre_tokenizer")
        for part in components(document.get(key))
    )
