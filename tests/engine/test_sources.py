"""Encoder–decoders in the engine: greedy answers are those of transformers, and the same bits in any company."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import athanor
import athanor.models as models
from athanor.base.errors import AthanorError, ModelError
from athanor.engine.answer_file import answer_file
from athanor.engine.engine import Engine
from athanor.engine.requests import Request
from athanor.engine.sampling import Sampling
from athanor.engine.source_rung import SourceRung
from athanor.engine.speculation import Lookup, Text
from athanor.models.encoder_decoder import EncoderDecoder
from tests.engine.conftest import TEXTS
from tests.models.family_rows import PAIRS
from tests.models.test_families import reference

transformers = pytest.importorskip("transformers")
NO_STOP: frozenset[int] = frozenset()


def both(name: str, folder: Path) -> tuple[Any, EncoderDecoder]:
    architecture, settings = PAIRS[name]
    theirs = reference(architecture, settings)
    theirs.save_pretrained(folder)
    ours = models.load(folder)
    assert isinstance(ours, EncoderDecoder)
    return theirs, ours


def sources(model: EncoderDecoder, lengths: tuple[int, ...] = (5, 30, 1, 17)) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, 95, n).tolist() for n in lengths if n <= model.config.encoder.max_seq_len]


@torch.inference_mode()
@pytest.mark.parametrize("name", PAIRS)
def test_greedy_answers_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs, ours = both(name, tmp_path)
    start, n = ours.config.start_id, min(20, ours.config.decoder.max_seq_len - 2)
    layers = theirs.config.to_dict()  # transformers makes T5's cache with as many layers as the encoder has
    shallow = layers.get("num_decoder_layers", 0) > layers.get("num_layers", 0)
    forced = 5 if name.startswith("m2m") else None
    never = theirs.config.pad_token_id  # in transformers it has no position, where the model says it itself
    settings = Sampling(temperature=0, max_tokens=n, suppress_tokens=(never,))
    prompt = [start] if forced is None else [start, forced]
    asked = [Request(prompt, settings, NO_STOP, source=source) for source in sources(ours)]
    said = Engine.of(ours).generate(asked)
    for request, (completion,) in zip(asked, said, strict=True):
        wanted = theirs.generate(
            torch.tensor([request.source]), max_new_tokens=n + len(prompt) - 1, do_sample=False, num_beams=1,
            eos_token_id=None, forced_eos_token_id=None, forced_bos_token_id=forced, decoder_start_token_id=start,
            use_cache=not shallow, suppress_tokens=[never],
        )[0]  # fmt: skip
        assert completion.tokens == wanted.tolist()[len(prompt) : len(prompt) + n]


@pytest.fixture(scope="module", params=["t5", "bart", "marian", "switch, full experts"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> EncoderDecoder:
    return both(request.param, tmp_path_factory.mktemp("model"))[1]


def requests(model: EncoderDecoder, seed: int = 2) -> list[Request]:
    rng = np.random.default_rng(seed)
    lengths = tuple(rng.integers(1, 40, 6).tolist())
    some = sources(model, lengths)
    some.append(some[0])
    return [
        Request(
            [model.config.start_id], Sampling(1.0, seed=i, max_tokens=38, n=1 + i % 3), frozenset({2}), source=source
        )
        for i, source in enumerate(some)
    ]


def test_what_is_said_is_the_same_as_alone(model: EncoderDecoder) -> None:
    some = requests(model)
    alone = [Engine.of(model).generate([request])[0] for request in some]
    for settings in ({}, {"most_running": 3}, {"blocks": 7}):
        engine = Engine.of(model, **settings)
        for _ in range(2):
            said = engine.generate(some)
            assert [[c.logprobs for c in each] for each in said] == [[c.logprobs for c in each] for each in alone]
        assert engine.free_blocks == engine.blocks
        assert (engine.preemptions > 0) == ("blocks" in settings)


def test_fp32_is_that_of_the_weights_whatever_their_type(model: EncoderDecoder) -> None:
    some, rounded = requests(model), copy.deepcopy(model).bfloat16()
    exact = Engine(SourceRung(copy.deepcopy(rounded).float()), model.config)
    assert Engine(SourceRung(rounded, "fp32"), model.config).generate(some) == exact.generate(some)
    assert next(rounded.parameters()).dtype == torch.bfloat16


def test_weights_that_are_no_numbers_change_nothing(model: EncoderDecoder) -> None:
    some, engine, broken = requests(model)[:2], Engine.of(model), copy.deepcopy(model)
    expected = engine.generate(some)
    with torch.no_grad():
        list(broken.encoder.parameters())[-1].fill_(torch.nan)
    with pytest.raises(ModelError, match="not numbers"):
        engine.update_weights(broken)
    assert engine.generate(some) == expected


def test_equal_sources_are_read_once(model: EncoderDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    (request, *_) = requests(model)
    other, engine = replace(request, salt="another tenant"), Engine.of(model)
    (alone,) = Engine.of(model).generate([request])
    read, encode = list[int](), engine.rung.encode  # type: ignore[attr-defined]
    monkeypatch.setattr(engine.rung, "encode", lambda some: (read.append(len(some)), encode(some))[1])
    said = engine.generate([request, request, other, request])
    assert sum(read) == 2
    assert [completion.tokens for each in said for completion in each] == [one.tokens for one in alone] * 4
    assert not engine._sources, "they end with what asked for them"


def test_what_is_copied_from_a_source_is_guessed(model: EncoderDecoder) -> None:
    source = np.arange(10, 40, dtype=np.int32)
    text = Text(np.array([0, 20, 21], np.int32), 1, Sampling(), 0, source)
    assert list(Lookup().propose(text, 4)) == [22, 23, 24, 25]
    (request,) = requests(model)[1:2]
    expected = Engine.of(model).generate([request])
    assert Engine.of(model, drafter=Lookup()).generate([request]) == expected


def test_log_probabilities_are_those_of_the_whole_pass(model: EncoderDecoder) -> None:
    (request,) = requests(model)[1:2]
    handle = Engine.of(model).submit(request)
    completion = handle.result()[0]
    target = torch.tensor([[*request.prompt, *completion.tokens[:-1]]])
    whole = models.new(_roomy(model), 0)
    whole.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = torch.log_softmax(whole(torch.tensor([request.source]), target)[0], -1)
    wanted = expected.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
    np.testing.assert_allclose(completion.logprobs, wanted.numpy(), atol=1e-4)


def _roomy(model: EncoderDecoder) -> Any:
    """Experts of the decoder that take any number of tokens: the whole target is one pass here."""
    from athanor.engine.source_rung import _without_capacity

    return replace(model.config, decoder=_without_capacity(model.config.decoder))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
def test_a_source_read_among_others_has_the_same_bits(name: str, threads: int, tmp_path: Path) -> None:
    rung, before = SourceRung(both(name, tmp_path)[1]), torch.get_num_threads()
    assert rung._reader is not None
    lengths = (5, 30, 1, 17, 32, 33, 39, 5) if name != "t5" else (5, 270, 1, 17, 32, 33, 129, 5, 64, 300, 31, 200, 1500)
    some = [np.random.default_rng(n).integers(3, 95, n).tolist() for n in lengths]
    torch.set_num_threads(threads)
    try:
        together, alone = rung.encode(some), [rung.encode([source])[0] for source in some]
    finally:
        torch.set_num_threads(before)
    for source, one, other in zip(some, together, alone, strict=True):
        plain = rung._alone(source)
        assert torch.equal(one.hidden, other.hidden)
        for ours, same, theirs in zip(one.layers, other.layers, plain.layers, strict=True):
            assert torch.equal(ours[0], same[0])
            assert torch.equal(ours[1], same[1])
            n = len(source)
            np.testing.assert_allclose(ours[0][..., :n], theirs[0][..., :n].detach(), atol=2e-5)
            np.testing.assert_allclose(ours[1][:, :n], theirs[1][:, :n].detach(), atol=2e-5)


def test_sources_are_read_once_and_forgotten(model: EncoderDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    engine, read = Engine.of(model), []
    plain = engine.rung.encode  # type: ignore[attr-defined]

    def encode(sources: list[list[int]]) -> Any:
        found = plain(sources)
        read.extend(map(weakref.ref, found))
        return found

    monkeypatch.setattr(engine.rung, "encode", encode)
    handle = engine.submit(replace(requests(model)[2], stop_ids=NO_STOP))
    assert len(handle.result()) == 3
    assert len(read) == 1
    gc.collect()
    assert read[0]() is None


def test_no_more_sources_are_kept_than_the_cache_has_places(model: EncoderDecoder) -> None:
    engine, most = Engine.of(model, blocks=6), 0
    handles = [engine.submit(request) for request in requests(model)]
    while engine.step():
        about = {id(a.source): a.source for a in [*engine._scheduler.running, *engine._scheduler.waiting] if a.source}
        most = max(most, sum(len(source.tokens) for source in about.values() if source.read))
    assert 60 < most <= 6 * 16
    assert all(handle.is_done for handle in handles)


def test_what_cannot_be_read_is_refused(model: EncoderDecoder) -> None:
    engine, start = Engine.of(model), [model.config.start_id]
    with pytest.raises(AthanorError, match="The source is empty"):
        engine.submit(Request(start))
    with pytest.raises(AthanorError, match="The source has id 96"):
        engine.submit(Request(start, source=[96]))
    with pytest.raises(AthanorError, match="The source has 600 tokens"):
        engine.submit(Request(start, source=[3] * 600))


def test_new_weights_count_for_sources_too(model: EncoderDecoder) -> None:
    engine, request = Engine.of(model), requests(model)[0]
    before = engine.generate([request])
    handle = engine.submit(request)
    engine.step()
    other = models.new(model.config, 1)
    engine.update_weights(other)  # type: ignore[arg-type]
    handle.result()
    assert engine.generate([request]) == Engine.of(other).generate([request]) != before  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As NLLB: languages are tokens, a source begins with its own, an answer with the one that is forced."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder = tmp_path_factory.mktemp("translator")
    special = ["<s>", "<pad>", "</s>", "<unk>", "eng_Latn", "fra_Latn", "deu_Latn"]
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=90, special_tokens=special, show_progress=False))
    made.add_special_tokens([AddedToken(name, special=True) for name in special])
    template = [(name, made.token_to_id(name)) for name in ("eng_Latn", "</s>")]
    made.post_processor = processors.TemplateProcessing("eng_Latn $A </s>", None, template)
    architecture, settings = PAIRS["m2m_100"]
    reference(architecture, settings).save_pretrained(folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"decoder_start_token_id": 2, "forced_bos_token_id": 5, "eos_token_id": 2, "max_length": 30})
    )
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "pad_token": "<pad>"}))
    return folder


@torch.inference_mode()
def test_a_folder_searches_as_it_says(translator: Path, tmp_path: Path) -> None:
    """As Marian's and NLLB's do; the token that is forced counts for the length."""
    folder = shutil.copytree(translator, tmp_path / "searching")
    settings = json.loads((folder / "generation_config.json").read_text())
    searching = {"num_beams": 4, "length_penalty": 1.5, "early_stopping": True, "bad_words_ids": [[90], [91, 92]]}
    (folder / "generation_config.json").write_text(json.dumps(settings | searching))
    lm = athanor.load(folder)
    assert (lm.defaults.beams, lm.defaults.length_penalty, lm.defaults.early_stopping) == (4, 1.5, True)
    assert lm.defaults.suppress_tokens == (90,)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    for text in ("children read letters aloud", "the old furnace"):
        ids = torch.tensor([lm.text_prompt(text)])
        never = list(range(lm.tokenizer.vocab_size, 96))
        wanted = theirs.generate(
            ids, max_new_tokens=13, num_return_sequences=3, suppress_tokens=never, bad_words_ids=None,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        replies = lm.generate_many([text], n=3, max_tokens=12)
        for reply, tokens, score in zip(replies, wanted.sequences.tolist(), wanted.sequences_scores, strict=True):
            assert [2, 5, *reply.tokens] == tokens[: 2 + len(reply.tokens)]
            assert reply.score == pytest.approx(float(score), abs=2e-5)
    assert lm.generate("the", temperature=1.0, seed=1).score is None, "who wants to draw wants no beams"


@torch.inference_mode()
def test_a_folder_translates(translator: Path) -> None:
    lm = athanor.load(translator)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(translator / "tokenizer.json"))
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(translator)
    texts = ["children read letters aloud", "the old furnace"]
    for language, forced in ((None, 5), ("deu_Latn", 6)):
        ours = lm if language is None else lm.between(target=language)  # type: ignore[attr-defined]
        never = (*range(7), *range(lm.tokenizer.vocab_size, 96))  # control tokens, and what is none
        replies = ours.generate_many(texts, max_tokens=18, suppress_tokens=never)
        for text, reply in zip(texts, replies, strict=True):
            ids = tokenizer(text, return_tensors="pt").input_ids
            begun = torch.tensor([[2, forced]])
            wanted = theirs.generate(
                ids, decoder_input_ids=begun, max_new_tokens=18, forced_bos_token_id=None, suppress_tokens=[*never]
            )[0]
            assert [2, forced, *reply.tokens] == wanted.tolist()
            assert reply.text == tokenizer.decode(wanted, skip_special_tokens=True)
            assert reply.timings["prompt_tokens"] == ids.shape[1]
    assert "".join(piece.text for piece in ours.stream(texts[1], max_tokens=18, suppress_tokens=never)) == reply.text
    source = lm.between("fra_Latn").text_prompt("the")  # type: ignore[attr-defined]
    assert (source[0], source[-1]) == (5, 2)
    with pytest.raises(AthanorError, match="no language 'klingon'"):
        lm.between("klingon")  # type: ignore[attr-defined]
    with pytest.raises(AthanorError, match="no conversations"):
        lm.chat([{"role": "user", "content": "x"}])


def test_the_command_translates(translator: Path) -> None:
    words = ["generate", str(translator), "the old furnace", "--to", "deu_Latn", "--max-tokens", "9", "--json"]
    done = subprocess.run([sys.executable, "-m", "athanor.cli.main", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lm = athanor.load(translator).between(target="deu_Latn")  # type: ignore[attr-defined]
    assert json.loads(done.stdout)["tokens"] == lm.generate("the old furnace", max_tokens=9).tokens


def test_lines_of_a_file_name_their_languages(translator: Path, tmp_path: Path) -> None:
    lm = athanor.load(translator)
    lines: list[Any] = ["the old furnace", {"prompt": "the old furnace", "from": "fra_Latn", "to": "deu_Latn", "id": 1}]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    assert answer_file(lm, ["m"], source, target, {"max_tokens": 9}).refused == 0
    told = [json.loads(line)["text"] for line in target.read_text().splitlines()]
    other = lm.between("fra_Latn", "deu_Latn")  # type: ignore[attr-defined]
    assert other.engine is lm.engine
    assert told == [each.generate("the old furnace", max_tokens=9).text for each in (lm, other)]
    assert answer_file(lm, ["m"], source, target, {"max_tokens": 9}).before == 2
    with pytest.raises(AthanorError, match="something else"):
        answer_file(other, ["m"], source, target, {"max_tokens": 9})
    source.write_text(json.dumps({"prompt": "x", "to": "klingon"}))
    with pytest.raises(AthanorError, match=r"Line 1 of .* no language 'klingon'"):
        answer_file(lm, ["m"], source, tmp_path / "other.jsonl", {})


@torch.inference_mode()
def test_marian_is_told_the_language_before_the_source(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    from tests.tokenizer.test_translators import marian, peer

    marian(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    size = len(json.loads((tmp_path / "vocab.json").read_text()))
    ends = {"pad_token_id": size - 1, "decoder_start_token_id": size - 1, "eos_token_id": 0, "forced_eos_token_id": 0}
    architecture, settings = PAIRS["marian"]
    theirs = reference(architecture, {**settings, "vocab_size": size, **ends})
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    lm, tokenizer = athanor.load(tmp_path), peer(tmp_path)
    never = [size - 1, 0]
    ids = tokenizer(">>nld<< the old furnace", return_tensors="pt").input_ids
    wanted = theirs.generate(
        ids, max_new_tokens=12, do_sample=False, num_beams=1, suppress_tokens=never, forced_eos_token_id=None
    )[0].tolist()
    other = lm.between(target="nld")  # type: ignore[attr-defined]
    assert other.text_prompt("the old furnace") == ids[0].tolist()
    assert other.generate("the old furnace", max_tokens=12, suppress_tokens=never).tokens == wanted[1:13]
