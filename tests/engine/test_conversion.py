"""Models between formats: whatever way a model goes, its ids, logits and settings are those it had."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import athanor
import athanor.models as models
from athanor.base.errors import AthanorError, ModelError
from athanor.engine.conversion import convert
from athanor.engine.language_model import LanguageModel
from athanor.models.build import build
from athanor.models.config import standard_config
from athanor.models.folder import save_model
from athanor.models.gguf.load import load_gguf
from athanor.models.gguf.reader import GgufFile
from athanor.models.gguf.save import save_gguf
from athanor.tokenizer.folder import from_folder
from tests.models.family_rows import PLAIN, SMALL, T5
from tests.models.test_families import reference, tokens

gguf = pytest.importorskip("gguf")

TEXTS = ["the old furnace, 12345 of them", "炉火慢慢燃烧", "  two\n\n blanks <|im_end|>", "naïve 👨‍👩‍👧 It's", ""]
MESSAGES = [{"role": "user", "content": "the old 炉火?"}]
SIZES: dict[str, Any] = {**SMALL, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of transformers with a tokenizer of `tokenizers`, a chat template and ids of its own."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(kinds.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=special)
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", 0)])
    folder = tmp_path_factory.mktemp("llama") / "small-llama"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>",
        chat_template="{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )  # fmt: skip
    ids = {"bos_token_id": 0, "eos_token_id": 4, "pad_token_id": 2}
    theirs = reference("LlamaForCausalLM", {**SIZES, **ids, "vocab_size": len(fast)})
    theirs.generation_config.update(temperature=0.3, do_sample=True, top_k=7, eos_token_id=[4, 1])
    theirs.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@torch.inference_mode()
def assert_same(one: LanguageModel, other: LanguageModel, tolerance: float = 0.0) -> None:
    """The same ids of texts and conversations, and the same logits and answers of them."""
    for text in TEXTS:
        assert one.tokenizer.encode(text) == other.tokenizer.encode(text)
    assert one.chat_prompt(MESSAGES) == other.chat_prompt(MESSAGES)
    assert one.tokenizer.stop_ids == other.tokenizer.stop_ids
    ids = torch.tensor([one.chat_prompt(MESSAGES)])
    mine, wanted = (lm.model(ids).float() for lm in (one, other))
    assert (mine - wanted).abs().max() <= tolerance * wanted.abs().max()
    if not tolerance:
        settings: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "suppress_tokens": ()}
        assert one.chat(MESSAGES, **settings).text == other.chat(MESSAGES, **settings).text


@torch.inference_mode()
def assert_transformers_agrees(folder: Path) -> None:
    """transformers loads the folder, with the same ids and logits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = athanor.load(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    cut = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert cut(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == lm.tokenizer.encode(text)
    ids = lm.chat_prompt(MESSAGES)
    assert cut.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False) == ids
    logits = theirs(torch.tensor([ids])).logits
    assert (lm.model(torch.tensor([ids])) - logits).abs().max() <= 1e-4 * logits.abs().max()


def read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


def test_a_run_goes_to_gguf_to_a_folder_and_to_gguf(folder: Path, lm: LanguageModel, tmp_path: Path) -> None:
    convert(folder, tmp_path / "one.gguf", "gguf", "F32")
    convert(tmp_path / "one.gguf", tmp_path / "folder", "hf")
    convert(tmp_path / "folder", tmp_path / "two.gguf", "gguf", "F32")
    for place in ("one.gguf", "folder", "two.gguf"):
        assert_same(athanor.load(tmp_path / place), lm)
    assert_transformers_agrees(tmp_path / "folder")
    one, two = (GgufFile(tmp_path / name) for name in ("one.gguf", "two.gguf"))
    again = {**two.metadata, "general.name": one.metadata["general.name"]}
    assert {key: again.get(key) for key in one.metadata} == one.metadata
    assert two.metadata["general.name"] == "folder"
    config = read(tmp_path / "folder" / "config.json")
    assert config["bos_token_id"] == lm.tokenizer.end_of_text_id
    assert config["eos_token_id"] == lm.tokenizer.stop_ids[0]
    written = read(tmp_path / "folder" / "generation_config.json")
    assert written["suppress_tokens"] == list(athanor.load(tmp_path / "one.gguf").defaults.suppress_tokens)
    assert read(tmp_path / "folder" / "tokenizer_config.json")["model_max_length"] == lm.model.config.max_seq_len


def test_a_folder_keeps_what_it_says(folder: Path, llama: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "ours", "hf")
    assert (tmp_path / "ours" / "athanor.json").read_bytes() == (folder / "athanor.json").read_bytes()
    assert isinstance(athanor.load(tmp_path / "ours").tokenizer, type(athanor.load(folder).tokenizer))
    convert(llama, tmp_path / "theirs", "hf")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert read(tmp_path / "theirs" / "config.json")[name] == read(llama / "config.json")[name]
    before, after = (read(place / "generation_config.json") for place in (llama, tmp_path / "theirs"))
    del before["transformers_version"]
    assert before.items() <= after.items()
    for place in (tmp_path / "ours", tmp_path / "theirs"):
        assert_transformers_agrees(place)
    assert_same(athanor.load(llama), athanor.load(tmp_path / "theirs"))
    assert athanor.load(tmp_path / "theirs").defaults == athanor.load(llama).defaults


def test_a_folder_from_elsewhere_goes_to_gguf_and_back(llama: Path, tmp_path: Path) -> None:
    made = convert(llama, tmp_path / "m.gguf", "gguf", "F32")
    assert (made.family, made.form, made.context) == ("llama", "F32", None)
    assert made.bytes == (tmp_path / "m.gguf").stat().st_size
    assert GgufFile(tmp_path / "m.gguf").metadata["general.name"] == "small-llama"
    convert(tmp_path / "m.gguf", tmp_path / "again", "hf")
    for place in (tmp_path / "m.gguf", tmp_path / "again"):
        found = athanor.load(place)
        assert found.tokenizer.start_ids == (0,)
        assert_same(found, athanor.load(llama))
    assert_transformers_agrees(tmp_path / "again")


def test_shards_become_one_file(llama: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    shutil.copytree(llama, tmp_path / "shards", ignore=shutil.ignore_patterns("*.safetensors"))
    LlamaForCausalLM.from_pretrained(llama).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    convert(tmp_path / "shards", tmp_path / "one", "hf")
    assert [file.name for file in (tmp_path / "one").glob("*.safetensors*")] == ["model.safetensors"]
    assert_same(athanor.load(tmp_path / "one"), athanor.load(llama))


def test_formats_of_a_folder(llama: Path, tmp_path: Path) -> None:
    sizes = {}
    for form, dtype in (("f32", "float32"), ("F16", "float16"), ("bf16", "bfloat16")):
        made = convert(llama, tmp_path / form, "hf", form)
        config = read(tmp_path / form / "config.json")
        assert (config["dtype"], config["torch_dtype"], made.form) == (dtype, dtype, form.upper())
        sizes[form] = (tmp_path / form / "model.safetensors").stat().st_size
        assert made.bytes == sum(file.stat().st_size for file in (tmp_path / form).iterdir())
    assert sizes["F16"] == pytest.approx(sizes["f32"] / 2, rel=0.05)
    assert convert(tmp_path / "bf16", tmp_path / "b.gguf", "gguf").form == "BF16"
    assert convert(tmp_path / "b.gguf", tmp_path / "b2.gguf", "gguf").form == "BF16"
    assert convert(tmp_path / "F16", tmp_path / "f.gguf", "gguf").form == "F16"
    assert convert(tmp_path / "f.gguf", tmp_path / "f", "hf").form == "F32"


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("encoder", ("BertForMaskedLM", PLAIN)),
        ("encoder-decoder", ("T5ForConditionalGeneration", {**T5, "num_layers": 3})),
    ],
)
def test_no_decoder_is_a_folder_but_no_gguf(name: str, row: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    theirs = reference(*row)
    theirs.save_pretrained(tmp_path / name)
    (tmp_path / name / "generation_config.json").unlink(missing_ok=True)  # as older folders are
    convert(tmp_path / name, tmp_path / "again", "hf")
    again = type(theirs).from_pretrained(tmp_path / "again").eval()
    asked = {"input_ids": tokens()} | ({"decoder_input_ids": tokens()} if name != "encoder" else {})
    with torch.inference_mode():
        assert torch.equal(again(**asked).logits, theirs(**asked).logits)
    if name != "encoder":
        said = again.generate(tokens(), max_new_tokens=5, do_sample=False)
        assert torch.equal(said, theirs.generate(tokens(), max_new_tokens=5, do_sample=False))
    with pytest.raises(ModelError, match="holds no decoder"):
        convert(tmp_path / name, tmp_path / "m.gguf", "gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_a_folder_of_sentences_keeps_its_pooling(tmp_path: Path) -> None:
    reference("BertModel", PLAIN).save_pretrained(tmp_path / "bert")
    kept = {"modules.json": "[]", "1_Pooling/config.json": "{}", "sentence_bert_config.json": '{"max_seq_length": 9}'}
    (tmp_path / "bert" / "1_Pooling").mkdir()
    for name, text in kept.items():
        (tmp_path / "bert" / name).write_text(text)
    convert(tmp_path / "bert", tmp_path / "again", "hf")
    assert {name: (tmp_path / "again" / name).read_text() for name in kept} == kept


def test_a_quantised_file_in_another_format(llama: Path, tmp_path: Path) -> None:
    """Q4_1, which only llama.cpp writes, made here by its Python package."""
    convert(llama, tmp_path / "f32.gguf", "gguf", "F32")
    quantised(tmp_path / "f32.gguf", tmp_path / "q4_1.gguf")
    found = athanor.load(tmp_path / "q4_1.gguf")
    for form, tolerance in (("F32", 0.0), ("Q8_0", 0.1), ("Q4_0", 0.6)):
        assert convert(tmp_path / "q4_1.gguf", tmp_path / f"{form}.gguf", "gguf", form).form == form
        assert_same(athanor.load(tmp_path / f"{form}.gguf"), found, tolerance)
    assert convert(tmp_path / "Q4_0.gguf", tmp_path / "folder", "hf").form == "F32"
    assert_same(athanor.load(tmp_path / "folder"), athanor.load(tmp_path / "Q4_0.gguf"))


def quantised(source: Path, place: Path) -> None:
    file = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(place, "llama")
    for key, field in file.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(
                key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
    for tensor in file.tensors:
        kind = gguf.GGMLQuantizationType["Q4_1" if len(tensor.data.shape) > 1 else "F32"]
        writer.add_tensor(tensor.name, gguf.quants.quantize(tensor.data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("large", [1e5, 1e38])
def test_numbers_that_a_format_cannot_hold_are_refused(large: float, llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "large")
    model = models.load(llama)
    with torch.no_grad():
        next(p for p in model.parameters() if p.dim() == 2)[3, 3] = large
    save_model(model, tmp_path / "large", stop_ids=(4,))
    with pytest.raises(ModelError, match=r"F16 cannot.*BF16 and F32 can"):
        convert(tmp_path / "large", tmp_path / "m.gguf", "gguf")
    with pytest.raises(ModelError, match=r"float16 cannot.*BF16"):
        convert(tmp_path / "large", tmp_path / "half", "hf", "F16")
    if large > 1e30:
        with pytest.raises(ModelError, match=r"Q4_0 cannot|Q8_0 cannot"):
            convert(tmp_path / "large", tmp_path / "m.gguf", "gguf", "Q4_0")
    assert [file.name for file in tmp_path.iterdir()] == ["large"]
    convert(tmp_path / "large", tmp_path / "m.gguf", "gguf", "BF16")
    ids = tokens(1)
    with torch.inference_mode():
        assert torch.isfinite(load_gguf(tmp_path / "m.gguf")(ids)).all() or large > 1e30


def test_a_model_that_diverged_is_not_written(tmp_path: Path) -> None:
    model = build(standard_config(96, 64, d_model=64, n_layers=1), 0)
    with torch.no_grad():
        model.embedding.tokens.weight[1, 1] = torch.nan
    with pytest.raises(ModelError, match="not numbers"):
        save_gguf(model, tmp_path / "m.gguf", "F32")
    assert not any(tmp_path.iterdir())


def test_what_is_there_stays_there(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "run" / "model"
    shutil.copytree(folder, source)
    before = sorted(tmp_path.rglob("*"))
    refused: list[tuple[str, Any, str]] = [
        ("run/model", "hf", "is or holds the model"),
        ("run", "hf", "is or holds the model"),
        ("run/model", "gguf", "does not end in .gguf"),
        ("new", "gguf", "does not end in .gguf"),
        ("new.gguf", "hf", "would be a folder"),
    ]
    for name, to, message in refused:
        with pytest.raises(ModelError, match=message):
            convert(source, tmp_path / name, to, replace=True)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("kept")
    (tmp_path / "letters.gguf").mkdir()
    with pytest.raises(ModelError, match=r"exists.*--force"):
        convert(source, tmp_path / "letters", "hf")
    with pytest.raises(ModelError, match="no model folder"):
        convert(source, tmp_path / "letters", "hf", replace=True)
    with pytest.raises(ModelError, match="is a folder"):
        convert(source, tmp_path / "letters.gguf", "gguf", replace=True)
    assert (tmp_path / "letters" / "dear.txt").read_text() == "kept"
    convert(source, tmp_path / "m.gguf", "gguf")
    with pytest.raises(ModelError, match="is or holds"):
        convert(tmp_path / "m.gguf", tmp_path / "m.gguf", "gguf", replace=True)
    convert(source, tmp_path / "m.gguf", "gguf", "Q8_0", replace=True)
    convert(source, tmp_path / "copy", "hf")
    (tmp_path / "copy" / "old.bin").touch()
    convert(source, tmp_path / "copy", "hf", replace=True)
    assert not (tmp_path / "copy" / "old.bin").exists()


@pytest.mark.parametrize(("to", "form", "known"), [("gguf", "q6_k", "Q8_0, Q4_0"), ("hf", "Q8_0", "F32, F16, BF16")])
def test_formats_that_are_not_written(folder: Path, tmp_path: Path, to: Any, form: str, known: str) -> None:
    with pytest.raises(ModelError, match=known):
        convert(folder, tmp_path / "m.gguf", to, form)


def test_a_file_cut_short_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "m.gguf", "gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    for part in (10, 1000, len(data) // 2, len(data) - 40):
        (tmp_path / "cut.gguf").write_bytes(data[:part])
        with pytest.raises(ModelError, match="not a sound GGUF file"):
            convert(tmp_path / "cut.gguf", tmp_path / "out", "hf")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cut.gguf", "m.gguf"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_disk_that_cannot_be_written_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Any, number: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, "made up")

    monkeypatch.setattr("athanor.models.folder.save_file", fail)
    monkeypatch.setattr("athanor.models.gguf.writer.pack", fail)
    with pytest.raises(AthanorError, match=r"disk is full|No permission"):
        convert(folder, tmp_path / ("m.gguf" if to == "gguf" else "m"), to)
    assert not any(tmp_path.iterdir())


def test_ids_that_the_folder_lacks_are_none(tmp_path: Path) -> None:
    """No empty list of ends, which would stop nothing and confuse readers."""
    settings = {**SIZES, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    reference("LlamaForCausalLM", settings).save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").unlink()
    convert(tmp_path / "m", tmp_path / "again", "hf")
    assert read(tmp_path / "again" / "generation_config.json")["eos_token_id"] is None
    with pytest.raises(AthanorError, match="tokenizer"):
        from_folder(tmp_path / "again")


def test_nothing_but_a_model_is_replaced(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "home", "mixed", "real", "run/sft/model", "cache"):
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "mixed" / "thesis.txt").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "run" / "sft" / "stage.json").write_text("{}")
    (tmp_path / "cache" / "model.safetensors").unlink()
    (tmp_path / "cache" / "model.safetensors").symlink_to(tmp_path / "real" / "model.safetensors")
    (tmp_path / "here" / "below").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here" / "below")
    before = sorted(tmp_path.rglob("*"))
    refused = {
        ".": "where you are", "..": "where you are", str(tmp_path / "here"): "where you are", "../../home": "your home",
        "../../mixed": "thesis.txt", "../../link": "is a link", "../../run/sft/model": "belongs to a run",
        "../../cache": "model.safetensors, which",
    }  # fmt: skip
    for name, message in refused.items():
        with pytest.raises(ModelError, match=message):
            convert(folder, name, "hf", replace=True)
    assert sorted(tmp_path.rglob("*")) == before
    convert(folder, tmp_path / "real", "hf", replace=True)


@pytest.mark.parametrize("text", ['{"temperature": NaN}', '{"x": "\\ud800"}', '{"eos_token_id": 1e400}'])
def test_settings_that_cannot_be_written_again_are_named(folder: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"generation_config\.json holds"):
        convert(tmp_path / "m", tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()
