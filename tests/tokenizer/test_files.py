"""The saved folder: read by transformers, read back by us, refused with a reason when it is broken or another kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from athanor.base.errors import TokenizerError
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.templates import CHAT_TEMPLATE


def test_load_gives_the_same_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    loaded = Tokenizer.load(folder)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.control == tokenizer.control
    text = "Tom's furnace 孩子们 <|im_end|> 🏳️‍🌈"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert (loaded.byte_lengths == tokenizer.byte_lengths).all()


def test_transformers_reads_the_folder(tokenizer: Tokenizer, peer: PreTrainedTokenizerBase, folder: Path) -> None:
    assert isinstance(peer, PreTrainedTokenizerFast)
    assert len(peer) == tokenizer.vocab_size
    assert peer.eos_token_id == tokenizer.end_of_turn_id
    assert peer.pad_token_id == tokenizer.end_of_text_id == tokenizer.pad_id
    assert peer.bos_token_id is None
    assert peer.model_max_length == 1024
    assert peer.chat_template == CHAT_TEMPLATE
    assert {*peer.all_special_ids} <= tokenizer.control_ids
    assert peer("furnace 炉火")["input_ids"] == tokenizer.encode("furnace 炉火")  # nothing is added around a text
    for name, token_id in tokenizer.control.items():
        assert peer.encode(name) == [token_id]
        assert tokenizer.decode([token_id]) == name
    ids = tokenizer.encode(" They're , here .\u00e9 e\u0301 ﬁ")
    assert peer.decode(ids) == tokenizer.decode(ids)  # no clean-up, no normaliser


def test_stop_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.stop_ids == (tokenizer.control["<|im_end|>"], tokenizer.control["<|endoftext|>"])


def damage(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def apply(document: dict[str, Any]) -> dict[str, Any]:
        change(document)
        return document

    return apply


def swap_merges(document: dict[str, Any]) -> None:
    merges = document["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        for entry in document["added_tokens"]:
            entry["content"] = new if entry["content"] == old else entry["content"]

    return apply


BROKEN = {
    "other model": (damage(lambda d: d["model"].update(type="WordPiece")), "WordPiece"),
    "normaliser": (damage(lambda d: d.update(normalizer={"type": "NFC"})), "normalises"),
    "pattern": (damage(lambda d: d["pre_tokenizer"]["pretokenizers"].pop(0)), "qwen2"),
    "prefix space": (damage(lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True)), "qwen2"),
    "post-processor": (damage(lambda d: d.update(post_processor={"type": "TemplateProcessing"})), "post_processor"),
    "byte fallback": (damage(lambda d: d["model"].update(byte_fallback=True)), "byte_fallback"),
    "ignore merges": (damage(lambda d: d["model"].update(ignore_merges=True)), "ignore_merges"),
    "unknown token": (damage(lambda d: d["model"].update(unk_token="<unk>")), "unk_token"),
    "merge lost": (damage(lambda d: d["model"]["merges"].pop()), "merges do not make"),
    "merges swapped": (damage(swap_merges), "merges do not make"),
    "merge of three": (damage(lambda d: d["model"]["merges"][0].append("x")), "not a complete"),
    "gap in ids": (damage(lambda d: d["model"]["vocab"].popitem()), "without gaps|at the end"),
    "ids repeated": (damage(lambda d: d["model"]["vocab"].update(a=0)), "without gaps"),
    "id not a number": (damage(lambda d: d["model"]["vocab"].update(a="x")), "not a complete"),
    "letter of no byte": (damage(lambda d: d["model"]["merges"].append(["中", "a"])), "not a complete"),
    "control token lost": (damage(lambda d: d["added_tokens"].pop(0)), "at the end"),
    "control token renamed": (damage(rename("<|im_end|>", "<|end|>")), r"<\|im_end\|> is missing"),
    "control token twice": (damage(rename("<|spare_0|>", "<|spare_1|>")), "named twice"),
    "greedy control token": (damage(lambda d: d["added_tokens"][0].update(lstrip=True)), "swallows"),
    "no model": (damage(lambda d: d.pop("model")), "not a complete"),
    "empty": (lambda d: {}, "not a complete"),
    "list": (lambda d: [], "not a complete"),
    "null model": (damage(lambda d: d.update(model=None)), "not a complete"),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_broken_files_are_refused_with_the_reason(case: str, folder: Path, tmp_path: Path) -> None:
    change, reason = BROKEN[case]
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(change(document)), encoding="utf-8")
    with pytest.raises(TokenizerError, match=reason) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"model": '])
def test_files_that_are_no_json(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not valid JSON"):
        Tokenizer.load(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="does not exist"):
        Tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(TokenizerError, match="cannot be read"):
        Tokenizer.load(tmp_path)
