"""What llama.cpp calls the weights of a decoder, and how they lie in its files: one list of names for all, and the few
ways in which an architecture differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from athanor.models.config import AttentionConfig, LatentAttentionConfig, MlpConfig, ModelConfig
from athanor.models.families.weights import Rule, Tensors, fused, parameter, same


@dataclass(frozen=True)
class Layout:
    """permuted: queries and keys are stored for turning neighbours instead of halves. fused_qkv: with the values, in
    one matrix. fused_gate: gate and up in one. shifted_norms: gains are stored as they act, one above Gemma's.
    second_norm: attention has the second norm where there are two (Falcon). split_latent: the matrices that make keys
    and values from a narrow vector are stored apart.
    """

    permuted: bool = False
    fused_qkv: bool = False
    fused_gate: bool = False
    shifted_norms: bool = False
    second_norm: bool = False
    split_latent: bool = True

    def present(self, names: set[str]) -> Layout:
        """As it is in a file with tensors of these names: converters may fuse or not."""
        return replace(
            self,
            fused_qkv="blk.0.attn_qkv.weight" in names,
            split_latent="blk.0.attn_kv_b.weight" not in names,
        )


def rules(config: ModelConfig, layout: Layout) -> list[Rule]:
    """Between our parameters and the tensors."""
    norm = _shifted if layout.shifted_norms else same
    two = layout.second_norm and config.layers[0].placement == "parallel"
    attention = config.layers[0].attention
    return [
        *same("embedding.tokens", "token_embd"),
        *same("embedding.positions", "position_embd"),
        *same("embedding.norm", "token_embd_norm"),
        *norm("norm", "output_norm"),
        *same("head", "output"),
        *norm("blocks.*.attention_norms.input", "blk.*.attn_norm_2" if two else "blk.*.attn_norm"),
        *norm("blocks.*.attention_norms.output", "blk.*.post_attention_norm"),
        *norm("blocks.*.mlp_norms.input", "blk.*.attn_norm" if two else "blk.*.ffn_norm"),
        *norm("blocks.*.mlp_norms.output", "blk.*.post_ffw_norm"),
        *(
            _attention(attention, layout, norm)
            if isinstance(attention, AttentionConfig)
            else _latent(attention, layout)
        ),
        *same("blocks.*.attention.output", "blk.*.attn_output"),
        *_mlp(config, layout),
        *_experts(),
    ]


def _attention(attention: AttentionConfig, layout: Layout, norm: Callable[[str, str], list[Rule]]) -> list[Rule]:
    parts = [f"blocks.*.attention.{name}" for name in ("query", "key", "value")]
    queries, keys = attention.n_heads * attention.head_dim, attention.n_kv_heads * attention.head_dim
    made = [*norm("blocks.*.attention.query_norm", "blk.*.attn_q_norm")]
    made += norm("blocks.*.attention.key_norm", "blk.*.attn_k_norm")
    heads = (attention.n_heads, attention.n_kv_heads, 0) if layout.permuted else (0, 0, 0)
    if layout.fused_qkv:
        return [*made, *(_permuted(rule, heads) for rule in fused(parts, "blk.*.attn_qkv", (queries, keys, keys)))]
    for part, short, n in zip(parts, "qkv", heads, strict=True):
        made += [_permuted(rule, (n,)) for rule in same(part, f"blk.*.attn_{short}")]
    return made


def _permuted(rule: Rule, heads: tuple[int, ...]) -> Rule:
    """`rule` for weights whose heads turn neighbours in the file. heads: of each of ours, 0 where nothing is turned."""
    if not any(heads):
        return rule

    def read(tensors: Tensors) -> Tensors:
        return [_to_halves(t, n) if n else t for t, n in zip(rule.read(tensors), heads, strict=True)]

    def write(tensors: Tensors) -> Tensors:
        return rule.write([_to_neighbours(t, n) if n else t for t, n in zip(tensors, heads, strict=True)])

    return replace(rule, read=read, write=write)


def _to_halves(weight: Tensor, n_heads: int) -> Tensor:
    return weight.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _to_neighbours(weight: Tensor, n_heads: int) -> Tensor:
    return weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _shifted(ours: str, theirs: str) -> list[Rule]:
    def read(tensors: Tensors) -> Tensors:
        return [tensors[0] - 1]

    def write(tensors: Tensors) -> Tensors:
        return [tensors[0].float() + 1]

    return [replace(rule, read=read, write=write) for rule in same(ours, theirs)[:1]]


def _latent(attention: LatentAttentionConfig, layout: Layout) -> list[Rule]:
    """Multi-head latent attention; llama.cpp multiplies keys through, and so keeps their matrix transposed."""
    sizes = [attention.plain_dim, attention.value_dim]

    def read(tensors: Tensors) -> Tensors:
        return [torch.cat([tensors[0].mT, tensors[1]], dim=1).flatten(0, 1)]

    def write(tensors: Tensors) -> Tensors:
        keys, values = tensors[0].unflatten(0, (attention.n_heads, -1)).split(sizes, dim=1)
        return [keys.mT.contiguous(), values.contiguous()]

    whole, place = "blocks.*.attention.key_value.weight", "blk.*.attn"
    split = Rule((whole,), (f"{place}_k_b.weight", f"{place}_v_b.weight"), read, write)
    return [
        *same("blocks.*.attention.query_down", f"{place}_q_a"),
        *same("blocks.*.attention.query_norm", f"{place}_q_a_norm"),
        *same("blocks.*.attention.query", f"{place}_q_b" if attention.q_rank else f"{place}_q"),
        *same("blocks.*.attention.key_value_down", f"{place}_kv_a_mqa"),
        *same("blocks.*.attention.key_value_norm", f"{place}_kv_a_norm"),
        *([split] if layout.split_latent else parameter(whole, f"{place}_kv_b.weight")),
    ]


def _mlp(config: ModelConfig, layout: Layout) -> list[Rule]:
    gate, up = "blocks.*.mlp.gate", "blocks.*.mlp.up"
    down, inner = same("blocks.*.mlp.down", "blk.*.ffn_down"), config.layers[0].mlp
    if layout.fused_gate and isinstance(inner, MlpConfig):
        return [*fused([gate, up], "blk.*.ffn_up", (inner.d_ff, inner.d_ff)), *down]
    return [*same(gate, "blk.*.ffn_gate"), *same(up, "blk.*.ffn_up"), *down]


def _experts() -> list[Rule]:
    made = parameter("blocks.*.mlp.router.weight", "blk.*.ffn_gate_inp.weight")
    made += parameter("blocks.*.mlp.router.correction", "blk.*.exp_probs_b.bias")
    for part in ("gate", "up", "down"):
        made += parameter(f"blocks.*.mlp.experts.{part}", f"blk.*.ffn_{part}_exps.weight")
        made += same(f"blocks.*.mlp.shared.{part}", f"blk.*.ffn_{part}_shexp")
    return made
