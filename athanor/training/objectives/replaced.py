"""Replaced tokens (ELECTRA, Clark et al. 2020): a small generator fills hidden places, a discriminator says of every
token whether it stood there.

Both train at once on the sum of their losses; no gradient goes through the sampled tokens. They share the tables of
tokens, positions and segments. Sampling inverts the cumulated probabilities at numbers that come with the batch, so a
resumed run samples the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athanor.base.errors import ModelError
from athanor.models.build import initialise
from athanor.models.config import ModelConfig
from athanor.models.encoder import Encoder
from athanor.training.batches import IGNORED
from athanor.training.masking import EncoderBatch
from athanor.training.objectives.cross_entropy import head_cross_entropy
from athanor.training.objectives.loss import Loss
from athanor.training.objectives.masked import encoded

_WEIGHT = 50.0  # of the discriminator's loss, the paper's
_CHUNK = 512  # rows of logits at a time
_SHARED = ("tokens", "positions", "types", "norm")


class Electra(nn.Module):
    """The two networks; `discriminator` is the one to keep.

    Raises ModelError where they cannot share an embedding: generators are made narrower by `embedding.size`.
    """

    def __init__(self, generator: ModelConfig, discriminator: ModelConfig) -> None:
        super().__init__()
        _check(generator, discriminator)
        self.discriminator, self.generator = Encoder(discriminator), Encoder(generator)
        own, shared = self.generator.embedding, self.discriminator.embedding
        for name in _SHARED:
            delattr(own, name)
            object.__setattr__(own, name, getattr(shared, name))  # not registered: one table, saved once

    @classmethod
    def new(cls, generator: ModelConfig, discriminator: ModelConfig, seed: int = 0) -> Electra:
        """Freshly initialised, in fp32."""
        with torch.device("meta"):
            model = cls(generator, discriminator)
        model.to_empty(device="cpu")
        initialise(model, seed)
        return model


def _check(generator: ModelConfig, discriminator: ModelConfig) -> None:
    if generator.head is None or generator.head.outputs is not None:
        raise ModelError("The generator needs a head over the vocabulary.", "Give it a HeadConfig without outputs.")
    if discriminator.head is None or discriminator.head.outputs != 1:
        raise ModelError("The discriminator needs a head with one logit a token.", "Set outputs=1 in its HeadConfig.")
    for name, ours, theirs in (
        ("vocab_size", generator.vocab_size, discriminator.vocab_size),
        ("embedding.size", generator.embedding.size or generator.d_model,
         discriminator.embedding.size or discriminator.d_model),
        ("embedding.positions", generator.embedding.positions, discriminator.embedding.positions),
        ("embedding.token_types", generator.embedding.token_types, discriminator.embedding.token_types),
    ):  # fmt: skip
        if ours != theirs:
            raise ModelError(
                f"Generator and discriminator share their embedding, but {name} is {ours} in the one and {theirs} in "
                "the other.",
                "Make them equal; embedding.size lets a network be wider or narrower than its embedding.",
            )


def replaced_tokens(model: Electra, batch: EncoderBatch) -> Loss:
    """The generator's mean loss over hidden places, plus 50 times the discriminator's over all that are no padding."""
    hidden = batch.targets != IGNORED
    states = encoded(model.generator, batch)[hidden]
    targets = batch.targets[hidden]
    head, embedding = model.generator.head, model.generator.embedding
    assert head is not None
    words = head_cross_entropy(head, embedding, states, targets)
    tokens = batch.tokens.masked_scatter(hidden, _sample(model.generator, states, batch.draws[hidden]))
    logits, labels = discriminate(model.discriminator, batch, tokens)
    told = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    each = batch.counts["targets"] / batch.counts["places"]
    right = ((logits.detach() > 0) == labels.bool()).sum()
    metrics = {
        "masked": float(words.detach()),
        "replaced": float(told.detach()) * each,
        "discriminator_accuracy": float(right) * each,
    }
    return Loss(words + _WEIGHT * each * told, len(targets), metrics)


def discriminate(discriminator: Encoder, batch: EncoderBatch, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels (1: replaced) of the places that are no padding, (n,) fp32 each. tokens: what to judge."""
    assert discriminator.head is not None
    types = batch.segments if discriminator.embedding.types is not None else None
    places = batch.document_ids >= 0
    states = discriminator.encode(tokens, types=types, positions=batch.positions, document_ids=batch.document_ids)
    logits = discriminator.head(states[places], discriminator.embedding).squeeze(-1).float()
    original = torch.where(batch.targets == IGNORED, batch.tokens, batch.targets)
    return logits, (tokens != original)[places].float()


@torch.no_grad()
def fill(generator: Encoder, batch: EncoderBatch) -> Tensor:
    """The batch's tokens with the hidden places filled by the generator."""
    hidden = batch.targets != IGNORED
    states = encoded(generator, batch)[hidden]
    return batch.tokens.masked_scatter(hidden, _sample(generator, states, batch.draws[hidden]))


@torch.no_grad()
def _sample(generator: Encoder, states: Tensor, draws: Tensor) -> Tensor:
    """A token of each state's distribution, (n,) int64: the one at which the cumulated probability passes the draw."""
    assert generator.head is not None
    parts = []
    for rows, draw in zip(states.split(_CHUNK), draws.split(_CHUNK), strict=True):
        logits = generator.head(rows, generator.embedding).float()
        cumulated = logits.softmax(-1).cumsum(-1)
        parts.append(torch.searchsorted(cumulated, draw[:, None] * cumulated[:, -1:], right=True).squeeze(1))
    return torch.cat(parts).clamp(max=generator.config.vocab_size - 1)
