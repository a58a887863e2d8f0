"""Marian's and M2M-100's tokenizers against those of transformers, on models that sentencepiece trains here."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from athanor.base.errors import TokenizerError
from athanor.tokenizer.folder import from_folder

transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")
ENGLISH = ["the old furnace burns slowly while children read letters and numbers aloud", "a naïve café, no. 3?"] * 20
GERMAN = ["der alte Ofen brennt langsam, während Kinder Buchstaben und Zahlen vorlesen", "ß, süß und 4 Öfen!"] * 20
TEXTS = (
    "the old furnace", "Children  read\tletters \n aloud ", "süße Öfen", "☃☃ x☃y ☃", "</s> <pad> __fr__ >>deu<< ▁",
    "ﬁne ½ Ａ", "12 numbers, 3 letters?", "漢字 and é", " ",
)  # fmt: skip


def train(path: Path, texts: list[str], kind: str, size: int) -> list[str]:
    """The pieces that stand for text."""
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, vocab_size=size, model_type=kind,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [model.id_to_piece(i) for i in range(len(model)) if not model.is_control(i) and not model.is_unknown(i)]


def m2m(folder: Path) -> None:
    pieces = train(folder / "sentencepiece.bpe.model", ENGLISH + GERMAN, "bpe", 160)
    random.Random(1).shuffle(pieces)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces[4:]]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "config.json").write_text(json.dumps({"model_type": "m2m_100", "eos_token_id": 2}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"src_lang": "de", "tokenizer_class": "M2M100Tokenizer"}))


def marian(folder: Path) -> None:
    pieces = train(folder / "source.spm", ENGLISH, "unigram", 90) + train(folder / "target.spm", GERMAN, "unigram", 90)
    pieces = sorted({*pieces})
    random.Random(2).shuffle(pieces)
    tokens = ["</s>", "<unk>", *pieces[3:], ">>deu<<", ">>nld<<", "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "config.json").write_text(json.dumps({"model_type": "marian", "eos_token_id": 0}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "de"}))


def peer(folder: Path) -> Any:
    """transformers' tokenizer, which must not take words of a text for control tokens."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    made = {"marian": transformers.MarianTokenizer, "m2m_100": transformers.M2M100Tokenizer}[kind]
    return made.from_pretrained(folder, split_special_tokens=True)


@pytest.mark.filterwarnings("ignore:Recommended")
@pytest.mark.parametrize("make", [m2m, marian])
def test_ids_and_texts_are_those_of_transformers(make: Any, tmp_path: Path) -> None:
    make(tmp_path)
    ours, theirs = from_folder(tmp_path), peer(tmp_path)
    unknown = 0
    for text in (*TEXTS, *ENGLISH[:2], *GERMAN[:2]):
        ids = [*ours.start_ids, *ours.encode(text), *ours.end_ids]
        wanted = theirs(text).input_ids
        if not any(name in text for name in ("</s>", ">>")):
            assert ids == wanted
        assert not {*ours.encode(text)} & ours.control_ids - {ours.control["<unk>"]}
        unknown += ids.count(ours.control["<unk>"])
        said = [i for i in ids if i not in ours.control_ids]
        assert ours.decode(said).strip() == theirs.decode(said).strip()
    assert unknown > 5
    assert len(ours.control) > 4
    assert all(theirs.convert_tokens_to_ids(name) == i for name, i in ours.control.items())


@pytest.mark.parametrize("make", [m2m, marian])
def test_a_saved_tokenizer_is_the_same(make: Any, tmp_path: Path) -> None:
    folder, other = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    other.mkdir()
    make(folder)
    ours = from_folder(folder)
    ours.save(other, max_length=40)
    (other / "config.json").write_text((folder / "config.json").read_text())
    again, theirs = from_folder(other), peer(other)
    assert again.control == ours.control
    assert (again.start_ids, again.end_ids, again.stop_ids) == (ours.start_ids, ours.end_ids, ours.stop_ids)
    for text in TEXTS[:3]:
        assert again.encode(text) == ours.encode(text)
        assert theirs(text).input_ids == [*again.start_ids, *again.encode(text), *again.end_ids]


def test_broken_folders_have_a_sentence(tmp_path: Path) -> None:
    for number, (name, content, said) in enumerate(
        (
            ("vocab.json", "[]", "an id from 0 upwards"),
            ("vocab.json", '{"</s>": 0, "<unk>": 0}', "an id from 0 upwards"),
            ("vocab.json", '{"</s>": true}', "an id from 0 upwards"),
            ("vocab.json", '{"</s>": 0}', "lacks '<unk>'"),
            ("source.spm", "nothing", "cannot be read as a sentencepiece model"),
            ("tokenizer_config.json", '{"separate_vocabs": true}', "a vocabulary for either side"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        marian(folder)
        (folder / name).write_text(content)
        with pytest.raises(TokenizerError, match=said):
            from_folder(folder)
    m2m(tmp_path)
    for config, said in ({"src_lang": "xx"}, "none of the languages"), ({"language_codes": "y"}, "not known"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(TokenizerError, match=said):  # type: ignore[arg-type]
            from_folder(tmp_path)
