"""Masks: the shares that BERT has, whole words and whole characters, and the same draws after resuming; and the losses
of encoders against transformers'.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from athanor import models
from athanor.base.errors import ModelError, TokenizerError
from athanor.base.randomness import generator
from athanor.models.build import new
from athanor.models.config import EmbeddingConfig, HeadConfig
from athanor.models.encoder import Encoder
from athanor.tokenizer import Tokenizer, train_tokenizer
from athanor.tokenizer import control as names
from athanor.training.batches import IGNORED
from athanor.training.drawn import DrawnBatches, Pieces, SpecialTokens
from athanor.training.masking import FOLLOWS, RANDOM, EncoderBatch, MaskedPairs, MaskedTexts, Masking, hide
from athanor.training.objectives import Electra, masked_language_model, replaced_tokens
from athanor.training.objectives.replaced import _sample, discriminate, fill
from athanor.training.words import Words
from tests.training.texts import SIZES, encoder_config, make_tokenizer, shards, special, text, unigram_nats


def masked(rows: int = 4, length: int = 64, seed: int = 1, masking: Masking | None = None) -> DrawnBatches:
    pieces = Pieces(*shards(), length - 2)
    masking = masking or Masking(Words(make_tokenizer()))
    return DrawnBatches(MaskedTexts(pieces, special(), masking, seed), rows, length, seed)


def pairs(rows: int = 4, length: int = 64, seed: int = 1) -> DrawnBatches:
    words = Words(make_tokenizer())
    pieces = Pieces(*shards(), length - 3, least=16)
    return DrawnBatches(MaskedPairs(pieces, special(), Masking(words), words, seed), rows, length, seed)


def test_words_are_what_lies_between_blanks_and_characters_stay_whole() -> None:
    tokenizer = train_tokenizer(["unbelievable stories, 42 of them"], 512)
    line = "unthinkable naïve stories, 42 of them: 猫は魚 привет"
    ids = np.array(tokenizer.encode(line))
    starts = Words(tokenizer).starts(ids)
    groups = np.split(ids, np.flatnonzero(starts)[1:])
    assert [tokenizer.decode(group) for group in groups] == [
        "unthinkable", " ", "naïve", " stories", ",", " ", "4", "2", " of", " them", ":", " ", "猫", "は", "魚", " ",
        "привет",
    ]  # fmt: skip


def test_hidden_are_whole_words_at_the_wanted_rate_and_with_berts_shares() -> None:
    tokenizer, words = make_tokenizer(), Words(make_tokenizer())
    counts, n_tokens, fates = [], 0, []
    for number in range(400):
        ids = np.array(tokenizer.encode(text(number)))
        inputs, targets = hide(ids, Masking(words), special(), generator(0, "test", number))
        chosen = targets != IGNORED
        for word in np.split(chosen, np.flatnonzero(words.starts(ids))[1:]):
            assert word.all() or not word.any()
        assert (inputs[~chosen] == ids[~chosen]).all()
        assert (targets[chosen] == ids[chosen]).all()
        counts.append(chosen.sum())
        n_tokens += len(ids)
        kept = inputs[chosen] == ids[chosen]
        fates += np.where(inputs[chosen] == special().mask, 0, np.where(kept, 1, 2)).tolist()
    assert sum(counts) / n_tokens == pytest.approx(0.15, abs=0.01)
    shares = np.bincount(fates) / len(fates)
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


def test_single_tokens_are_hidden_as_often_as_by_transformers(tmp_path: Path) -> None:
    make_tokenizer().save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path, mask_token=names.MASK)
    ids = np.array(make_tokenizer().encode(text(1)) * 200)
    torch.manual_seed(0)
    collator = transformers.DataCollatorForLanguageModeling(theirs, mlm_probability=0.15)
    inputs, labels = collator.torch_mask_tokens(
        torch.from_numpy(ids.copy())[None], torch.zeros(1, len(ids), dtype=torch.bool)
    )
    ours, targets = hide(ids, Masking(), special(), generator(0, "test"))
    assert (targets != IGNORED).mean() == pytest.approx(float((labels != -100).float().mean()), abs=0.02)
    assert (ours == special().mask).mean() == pytest.approx(float((inputs == special().mask).float().mean()), abs=0.02)


def test_masks_differ_by_epoch_and_are_the_same_after_resuming() -> None:
    batches = masked(rows=2)
    examples = batches.examples
    first, again, later = (examples.draw(3, epoch)["tokens"] for epoch in (0, 0, 1))
    assert (first == again).all()
    assert (first != later).any()
    for _ in range(30):  # beyond an epoch
        batches.next()
    assert batches.position.epoch > 0
    resumed = masked(rows=2)
    resumed.set_position(batches.get_position())
    for _ in range(3):
        ours, theirs = batches.next().columns, resumed.next().columns
        assert all(torch.equal(column, theirs[name]) for name, column in ours.items())


def test_pairs_follow_half_of_the_time_and_say_so() -> None:
    tokens, offsets = shards()
    documents = [tokens[a : b - 1].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    examples = pairs().examples
    labels = []
    for index in range(len(examples.lengths)):
        for epoch in range(8):
            drawn = examples.draw(index, epoch)
            original = np.where(drawn["targets"] == IGNORED, drawn["tokens"], drawn["targets"])
            assert original[0] == special().classify
            breaks = np.flatnonzero(original == special().separate)
            assert len(breaks) == 2
            first, second = original[1 : breaks[0]].tolist(), original[breaks[0] + 1 : breaks[1]].tolist()
            assert (drawn["segments"] == (np.arange(len(original)) > breaks[0])).all()
            labels.append(drawn["pair_labels"][0])
            joined = any(_within(first + second, document) for document in documents)
            assert labels[-1] == RANDOM or joined
            assert any(_within(second, document) for document in documents)
    assert {FOLLOWS, RANDOM} == {*labels}
    assert np.mean(labels) == pytest.approx(0.5, abs=0.1)


def _within(part: list[int], whole: list[int]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def unpacked(batch: EncoderBatch) -> dict[str, torch.Tensor]:
    """The columns with one text a row, padded, and the attention mask."""
    texts = [
        (row, batch.document_ids[row] == document)
        for row in range(len(batch.tokens))
        for document in range(int(batch.document_ids[row].max()) + 1)
    ]
    columns = {
        name: torch.nn.utils.rnn.pad_sequence(
            [column[row][where] for row, where in texts], True, IGNORED if name in ("targets", "pair_labels") else 0
        )
        for name, column in batch.columns.items()
    }
    lengths = torch.tensor([int(where.sum()) for _, where in texts])
    return columns | {"mask": (torch.arange(columns["tokens"].shape[1]) < lengths[:, None]).long()}


def test_the_loss_of_packed_pairs_is_that_of_transformers_bert(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = transformers.BertForPreTraining(
        transformers.BertConfig(vocab_size=512, max_position_embeddings=64, **SIZES)
    ).eval()
    theirs.save_pretrained(tmp_path)
    ours = models.load(tmp_path)
    assert isinstance(ours, Encoder)
    batch = pairs().next()
    assert isinstance(batch, EncoderBatch)
    alone = unpacked(batch)
    with torch.no_grad():
        wanted = theirs(
            alone["tokens"], alone["mask"], alone["segments"],
            labels=alone["targets"], next_sentence_label=alone["pair_labels"][:, 0],
        ).loss  # fmt: skip
    loss = masked_language_model(ours, batch)
    assert float(loss.sum) / loss.count == pytest.approx(float(wanted), rel=1e-5)
    parts = [masked_language_model(ours, part) for part in batch.split(1)]
    assert sum(float(part.sum) for part in parts) == pytest.approx(float(loss.sum), rel=1e-5)
    assert loss.metrics["masked"] + loss.metrics["next_sentence"] == pytest.approx(float(loss.sum), rel=1e-5)


def test_a_head_without_its_labels_is_refused() -> None:
    with pytest.raises(ModelError, match="no pairs"):
        masked_language_model(new(encoder_config(pooler=True, next_sentence=True)), masked().next())  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no head"):
        masked_language_model(new(encoder_config(head=None)), masked().next())  # type: ignore[arg-type]


def electra(seed: int = 0) -> Electra:
    generator = encoder_config(family="electra")
    discriminator = encoder_config(
        family="electra",
        head=HeadConfig(tied=False, bias=True, transform="gelu", transform_norm=False, outputs=1),
    )
    return Electra.new(generator, discriminator, seed)


def test_the_discriminators_loss_is_that_of_transformers_electra(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = transformers.ElectraConfig(vocab_size=512, embedding_size=32, max_position_embeddings=64, **SIZES)
    theirs = transformers.ElectraForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = models.load(tmp_path)
    assert isinstance(ours, Encoder)
    batch = pairs().next()
    assert isinstance(batch, EncoderBatch)
    logits, labels = discriminate(ours, batch, batch.tokens)  # as if the masking were the generator
    alone = unpacked(batch)
    original = torch.where(alone["targets"] == IGNORED, alone["tokens"], alone["targets"])
    with torch.no_grad():
        wanted = theirs(
            alone["tokens"], alone["mask"], alone["segments"], labels=(alone["tokens"] != original).long()
        ).loss
    assert float(F.binary_cross_entropy_with_logits(logits, labels)) == pytest.approx(float(wanted), rel=1e-5)


def test_electra_shares_its_embedding_and_sends_no_gradient_through_the_samples() -> None:
    model, batch = electra(), masked(masking=Masking(masked=1.0, replaced=0.0)).next()
    assert isinstance(batch, EncoderBatch)
    names = {name for name, _ in model.named_parameters()}
    assert "discriminator.embedding.tokens.weight" in names
    assert not any(name.startswith("generator.embedding") for name in names)
    loss = replaced_tokens(model, batch)
    loss.sum.backward()
    assert model.generator.embedding.tokens.weight is model.discriminator.embedding.tokens.weight
    assert all(p.grad is not None for p in model.parameters())
    assert model.generator.head is not None
    with_discriminator = model.generator.head.bias.grad.clone()  # type: ignore[union-attr]
    model.zero_grad()
    masked_language_model(model.generator, batch).sum.backward()
    torch.testing.assert_close(model.generator.head.bias.grad, with_discriminator)
    parts = [replaced_tokens(model, part) for part in batch.split(1)]
    assert sum(float(part.sum) for part in parts) == pytest.approx(float(loss.sum), rel=1e-4)
    assert torch.equal(fill(model.generator, batch), fill(model.generator, batch))


def test_the_generator_samples_from_its_distribution() -> None:
    model = electra().generator
    assert model.head is not None
    states = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model.head.bias[:8] += 4.0  # type: ignore[index, operator]
        wanted = model.head(states, model.embedding).softmax(-1)[0]
    draws = torch.from_numpy(generator(0, "draws").random(20_000, dtype=np.float32))
    found = _sample(model, states.expand(len(draws), -1), draws).bincount(minlength=512) / len(draws)
    torch.testing.assert_close(found, wanted, atol=0.01, rtol=0)


def test_networks_that_cannot_share_are_refused() -> None:
    with pytest.raises(ModelError, match=r"embedding\.size is 16 in the one and 32"):
        Electra(
            encoder_config(embedding=EmbeddingConfig(size=16, positions=64)),
            encoder_config(head=HeadConfig(tied=False, outputs=1), embedding=EmbeddingConfig(positions=64)),
        )
    with pytest.raises(ModelError, match="one logit a token"):
        Electra(encoder_config(), encoder_config())


def test_a_tokenizer_without_the_ids_is_refused() -> None:
    tokens = [make_tokenizer().token_bytes(i) for i in range(256)]
    with pytest.raises(TokenizerError, match=r"no control token <\|spare_0\|>"):
        SpecialTokens.of(Tokenizer(tokens, names.NAMED))


def learns(
    model: torch.nn.Module, batches: DrawnBatches, objective: object, steps: int, lr: float = 0.01
) -> list[dict[str, float]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    found = []
    for _ in range(steps):
        batch = batches.next()
        loss = objective(model, batch)  # type: ignore[operator]
        (loss.sum / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append({name: value / loss.count for name, value in loss.metrics.items()})
        found[-1] |= {"loss": float(loss.sum.detach()) / loss.count}
    return found


def test_bert_and_electra_learn() -> None:
    batches = pairs(rows=8)
    targets = batches.next().targets
    entropy = unigram_nats(targets[targets != IGNORED].numpy())
    found = learns(new(encoder_config(pooler=True, next_sentence=True)), batches, masked_language_model, 50)
    assert np.mean([step["masked"] for step in found[-5:]]) < 0.8 * entropy, json.dumps(found[-1])
    found = learns(electra(), masked(8, masking=Masking(masked=1.0, replaced=0.0)), replaced_tokens, 50)
    assert np.mean([step["masked"] for step in found[-5:]]) < 0.7 * entropy
    assert np.mean([step["discriminator_accuracy"] for step in found[-5:]]) > 0.9
