"""One layer: attention and feed-forward part, each added to what passes by, with norms where the placement says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from athanor.models.attention import Attention, CrossAttention, LayerCache, SequencesCache
from athanor.models.config import AttentionConfig, LayerConfig, MlpConfig, NormConfig
from athanor.models.convolution import Convolution
from athanor.models.disentangled import Distances
from athanor.models.latent_attention import LatentAttention
from athanor.models.mlp import Mlp
from athanor.models.moe import Moe
from athanor.models.norm import norm
from athanor.models.where import Where


class Norms(nn.Module):
    """The norms around one part of a layer: of its input, of its output, and of their sum."""

    def __init__(self, d_model: int, config: NormConfig, placement: str) -> None:
        super().__init__()
        self.input = norm(d_model, config if placement in ("pre", "sandwich", "parallel") else None)
        self.output = norm(d_model, config if placement in ("sandwich", "after") else None)
        self.sum = norm(d_model, config if placement == "post" else None)


class Block(nn.Module):
    def __init__(self, d_model: int, config: LayerConfig) -> None:
        super().__init__()
        attention, mlp, placement = config.attention, config.mlp, config.placement
        self.parallel, self.scale = placement.startswith("parallel"), config.residual_scale
        around = ("pre" if self.parallel else placement) if config.attention_norm else "none"
        self.attention_norms = Norms(d_model, config.norm, around)
        self.attention = (
            Attention(d_model, attention, config.norm)
            if isinstance(attention, AttentionConfig)
            else LatentAttention(d_model, attention)
        )
        cross, convolution = config.cross_attention, config.convolution
        self.cross_norms = Norms(d_model, config.norm, placement) if cross else None
        self.cross_attention = CrossAttention(d_model, cross) if cross else None
        self.mlp_norms = Norms(d_model, config.norm, placement)
        self.mlp = Mlp(d_model, mlp) if isinstance(mlp, MlpConfig) else Moe(d_model, mlp)
        self.convolution = Convolution(d_model, convolution, config.norm) if convolution else None

    def forward(
        self,
        x: Tensor,
        where: Where,
        cache: LayerCache | SequencesCache | None = None,
        relative: Tensor | Distances | None = None,
        source: tuple[tuple[Tensor, Tensor], Tensor | None] | None = None,
    ) -> Tensor:
        """source: keys and values of an encoder's states for this layer, and their mask."""
        given, norms = x, self.attention_norms
        x, normed = self.read(x, norms)
        mixed = norms.output(self.attention(normed, where, cache, relative))
        if self.parallel:
            shared = isinstance(self.mlp_norms.input, nn.Identity)
            mixed = mixed + self.mlp(normed if shared else self.mlp_norms.input(x))
            return self.add(x, mixed)
        x = norms.sum(self.add(x, mixed))
        if source is not None and self.cross_attention is not None and self.cross_norms is not None:
            mixed = self.cross_attention(self.cross_norms.input(x), *source)
            x = self.cross_norms.sum(self.add(x, mixed))
        norms = self.mlp_norms
        x, normed = self.read(x, norms)
        x = norms.sum(self.add(x, norms.output(self.mlp(normed))))
        return x if self.convolution is None else self.convolution(given, x, where.valid)

    def read(self, x: Tensor, norms: Norms) -> tuple[Tensor, Tensor]:
        """What passes by, and as a part of the layer reads it."""
        return x, norms.input(x)

    def add(self, x: Tensor, part: Tensor) -> Tensor:
        return torch.add(x, part, alpha=self.scale)
