"""The decoders that llama.cpp knows, as data: what its metadata say in terms of a `config.json`, and the other way; how
its tensors are named.

A file is read by way of the Hugging Face family that it was converted from, and can be saved as that family's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from athanor.base.errors import ModelError
from athanor.models.config import (
    AttentionConfig,
    LatentAttentionConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
)
from athanor.models.families import Family, read_config
from athanor.models.gguf.header import Header
from athanor.models.gguf.rope import read_rope, rope_metadata
from athanor.models.gguf.tensors import Layout, rules
from athanor.models.position_config import RopeConfig

Settings = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """name: llama.cpp's. families: ours that are written as it. huggingface: the class that a file is read as.

    settings: what a `config.json` of the model would say. metadata: more than every architecture has, without the
    name in front. windows: whether llama.cpp follows sliding windows in it. layout: of the tensors.
    """

    name: str
    families: tuple[str, ...]
    huggingface: str
    settings: Callable[[Header], Settings]
    layout: Layout = field(default_factory=Layout)
    metadata: Callable[[ModelConfig], Settings] = lambda config: {}
    windows: bool = False

    def family(self, names: Iterable[str] | None = None) -> Family:
        """The tensors as a family of weights. names: of those in a file that is read."""
        layout = self.layout if names is None else self.layout.present(set(names))
        return Family(self.name, (self.name,), _unused, _unused, lambda c: rules(c, layout), "", (r"rope_\w+\.weight",))


def _unused(_: Any) -> Any:
    raise NotImplementedError("A GGUF file's configuration is read and written by its architecture.")


def _sizes(header: Header) -> Settings:
    """What most architectures say in Llama's words."""
    heads, width = header.whole("attention.head_count"), header.whole("embedding_length")
    return {
        "vocab_size": header.vocabulary,
        "hidden_size": width,
        "intermediate_size": header.whole("feed_forward_length"),
        "num_hidden_layers": header.depth("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.whole("attention.head_count_kv", heads),
        "head_dim": header.whole("attention.key_length", width // max(1, heads)),
        "max_position_embeddings": header.whole("context_length"),
        "tie_word_embeddings": not header.has("output.weight"),
    }


def _llama(header: Header) -> Settings:
    sizes = _sizes(header)
    found = sizes | {
        "rms_norm_eps": header.decimal("attention.layer_norm_rms_epsilon"),
        "attention_bias": header.has("blk.0.attn_q.bias"),
        "mlp_bias": header.has("blk.0.ffn_up.bias"),
        **read_rope(header, sizes["head_dim"]),
    }
    if header.take("expert_count"):
        del found["mlp_bias"]
        return found | {"architectures": ["MixtralForCausalLM"], **_experts(header, "num_local_experts")}
    return found


def _experts(header: Header, count: str) -> Settings:
    return {count: header.whole("expert_count"), "num_experts_per_tok": header.whole("expert_used_count")}


def _without(*names: str) -> Callable[[Header], Settings]:
    """Llama's settings but for those that the family does not have."""

    def settings(header: Header) -> Settings:
        return {name: value for name, value in _llama(header).items() if name not in names}

    return settings


_plain = _without("attention_bias", "mlp_bias")
_biased = _without("mlp_bias")


def _qwen3_moe(header: Header) -> Settings:
    return _biased_without_experts(header) | {
        **_experts(header, "num_experts"),
        "moe_intermediate_size": header.whole("expert_feed_forward_length", header.whole("feed_forward_length")),
        "norm_topk_prob": True,
    }


def _biased_without_experts(header: Header) -> Settings:
    sizes = _sizes(header)
    return sizes | {
        "rms_norm_eps": header.decimal("attention.layer_norm_rms_epsilon"),
        "attention_bias": header.has("blk.0.attn_q.bias"),
        **read_rope(header, sizes["head_dim"]),
    }


def _gemma(header: Header) -> Settings:
    return _plain(header) | {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}


def _gemma_scale(header: Header, settings: Settings, largest: int) -> Settings:
    """llama.cpp scales the scores of the largest model, known by its number of layers, by another rule."""
    usual = settings["num_hidden_layers"] != largest
    quotient = settings["hidden_size"] // max(1, settings["num_attention_heads"])
    return {"query_pre_attn_scalar": settings["head_dim"] if usual else quotient}


def _gemma2(header: Header) -> Settings:
    settings = _gemma(header)
    return settings | _gemma_scale(header, settings, 46) | {
        "attn_logit_softcapping": header.decimal("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": header.decimal("final_logit_softcapping", 30.0),
        "sliding_window": header.whole("attention.sliding_window", 4096),
    }  # fmt: skip


def _gemma3(header: Header) -> Settings:
    settings = _gemma(header)
    far, near = settings.pop("rope_parameters"), header.decimal("rope.freq_base_swa", 10_000.0)
    pattern, layers = header.take("attention.sliding_window_pattern", 6), settings["num_hidden_layers"]
    if isinstance(pattern, int) and pattern > 0:
        pattern = [(number + 1) % pattern != 0 for number in range(layers)]
    if not isinstance(pattern, list):
        raise ModelError(f"{header.place}: attention.sliding_window_pattern = {pattern!r} cannot be read.")
    window = header.whole("attention.sliding_window", 0)
    kinds = ["sliding_attention" if window and local else "full_attention" for local in pattern[:layers]]
    return settings | _gemma_scale(header, settings, 62) | {
        "final_logit_softcapping": header.decimal("final_logit_softcapping", 0.0) or None,
        "sliding_window": window or 4096,
        "layer_types": kinds,
        "rope_parameters": {
            "full_attention": far, "sliding_attention": {"rope_type": "default", "rope_theta": near}
        },
    }  # fmt: skip


def _olmo2(header: Header) -> Settings:
    return _plain(header) | {"tie_word_embeddings": False}


def _phi3(header: Header) -> Settings:
    settings = _plain(header)
    del settings["head_dim"]
    original = header.take("rope.scaling.original_context_length")
    return settings | {
        "sliding_window": header.whole("attention.sliding_window", 0) or None,
        "original_max_position_embeddings": original or settings["max_position_embeddings"],
    }


def _gpt2(header: Header) -> Settings:
    return {
        "vocab_size": header.vocabulary,
        "n_embd": header.whole("embedding_length"),
        "n_head": header.whole("attention.head_count"),
        "n_layer": header.depth("block_count"),
        "n_positions": header.whole("context_length"),
        "n_inner": header.whole("feed_forward_length"),
        "layer_norm_epsilon": header.decimal("attention.layer_norm_epsilon"),
        "tie_word_embeddings": not header.has("output.weight"),
    }


def _gpt_bigcode(header: Header) -> Settings:
    heads = header.whole("attention.head_count")
    return _gpt2(header) | {"multi_query": header.whole("attention.head_count_kv", heads) == 1}


def _gpt_neox(header: Header) -> Settings:
    sizes = _sizes(header)
    rope = read_rope(header, sizes.pop("head_dim"))["rope_parameters"]
    del sizes["num_key_value_heads"]
    return sizes | {
        "hidden_act": "gelu",
        "tie_word_embeddings": False,
        "layer_norm_eps": header.decimal("attention.layer_norm_epsilon"),
        "use_parallel_residual": header.flag("use_parallel_residual", True),
        "rotary_pct": rope.get("partial_rotary_factor", 1.0),
        "rope_parameters": {"partial_rotary_factor": 1.0, **rope},
        "attention_bias": True,
    }


def _bloom(header: Header) -> Settings:
    return {
        "vocab_size": header.vocabulary,
        "hidden_size": header.whole("embedding_length"),
        "n_head": header.whole("attention.head_count"),
        "n_layer": header.depth("block_count"),
        "seq_length": header.whole("context_length"),
        "layer_norm_epsilon": header.decimal("attention.layer_norm_epsilon"),
        "tie_word_embeddings": not header.has("output.weight"),
    }


def _falcon(header: Header) -> Settings:
    sizes = _sizes(header)
    two, heads = header.has("blk.0.attn_norm_2.weight"), sizes.pop("num_key_value_heads")
    return {
        **{name: value for name, value in sizes.items() if name not in ("intermediate_size", "head_dim")},
        "ffn_hidden_size": sizes["intermediate_size"],
        "num_kv_heads": heads,
        "new_decoder_architecture": two or heads > 1,
        "num_ln_in_parallel_attn": 2 if two else 1,
        "layer_norm_epsilon": header.decimal("attention.layer_norm_epsilon"),
        **read_rope(header, sizes["head_dim"]),
    }


def _deepseek(header: Header) -> Settings:
    sizes = _sizes(header)
    rank, turned = header.whole("attention.kv_lora_rank"), header.whole("rope.dimension_count")
    split = header.take("attention.key_length_mla") is not None  # files from before 2025 keep the two matrices in one
    keys = header.whole("attention.key_length_mla" if split else "attention.key_length")
    del sizes["head_dim"], sizes["num_key_value_heads"]
    if header.whole("expert_gating_func", 1) != 2:
        raise ModelError(f"{header.place} holds a DeepSeek before V3, which is not read.")
    rope = read_rope(header, turned)["rope_parameters"]
    growth = header.decimal("rope.scaling.yarn_log_multiplier", 0.0) / 0.1
    if growth:
        rope |= {"mscale": round(growth, 6), "mscale_all_dim": round(growth, 6)}
    return sizes | {
        "rms_norm_eps": header.decimal("attention.layer_norm_rms_epsilon"),
        "moe_intermediate_size": header.whole("expert_feed_forward_length"),
        "n_routed_experts": header.whole("expert_count"),
        "num_experts_per_tok": header.whole("expert_used_count"),
        "n_shared_experts": header.whole("expert_shared_count"),
        "n_group": header.whole("expert_group_count", 1),
        "topk_group": header.whole("expert_group_used_count", 1),
        "routed_scaling_factor": header.decimal("expert_weights_scale", 1.0),
        "norm_topk_prob": header.flag("expert_weights_norm", False),
        "first_k_dense_replace": header.whole("leading_dense_block_count", 0),
        "kv_lora_rank": rank,
        "q_lora_rank": header.take("attention.q_lora_rank"),
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": keys - turned,
        "v_head_dim": header.whole("attention.value_length_mla" if split else "attention.value_length"),
        "rope_parameters": rope,
    }


def _deepseek_metadata(config: ModelConfig) -> Settings:
    attention = config.layers[0].attention
    moe = next((layer.mlp for layer in config.layers if isinstance(layer.mlp, MoeConfig)), None)
    assert isinstance(attention, LatentAttentionConfig)
    if moe is None:
        raise ModelError("llama.cpp has no DeepSeek without experts.")
    written: Settings = {
        "attention.head_count_kv": 1,  # it multiplies through: one head of the narrow vector
        "attention.key_length": attention.kv_rank + attention.rotary_dim,
        "attention.value_length": attention.kv_rank,
        "attention.key_length_mla": attention.key_dim,
        "attention.value_length_mla": attention.value_dim,
        "attention.kv_lora_rank": attention.kv_rank,
        "rope.dimension_count": attention.rotary_dim,
        "leading_dense_block_count": sum(isinstance(layer.mlp, MlpConfig) for layer in config.layers),
        "expert_shared_count": moe.shared.d_ff // moe.expert.d_ff if moe.shared else 0,
        "expert_group_count": moe.groups,
        "expert_group_used_count": moe.top_groups,
        "expert_weights_scale": float(moe.scale),
        "expert_weights_norm": moe.normalise,
        "expert_gating_func": 2,
    }
    if attention.q_rank is not None:
        written["attention.q_lora_rank"] = attention.q_rank
    if attention.scale is not None and attention.position.scaling is not None:
        from athanor.models.families import families

        settings = families()["deepseek_v3"].write(config)["rope_parameters"]
        written["rope.scaling.yarn_log_multiplier"] = 0.1 * settings["mscale_all_dim"]
    return written


def _gemma3_metadata(config: ModelConfig) -> Settings:
    near = next((layer.attention.position for layer in config.layers if layer.attention.window), None)
    return {
        "attention.sliding_window_pattern": [bool(layer.attention.window) for layer in config.layers],
        **({"rope.freq_base_swa": float(near.theta)} if isinstance(near, RopeConfig) else {}),
    }


_QKV, _GATE = Layout(fused_qkv=True), Layout(fused_qkv=True, fused_gate=True)
_SHIFTED = Layout(shifted_norms=True)

ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture(
            "llama", ("llama", "mistral", "mixtral"), "LlamaForCausalLM", _llama, Layout(permuted=True)
        ),
        Architecture("qwen2", ("qwen2",), "Qwen2ForCausalLM", _plain),
        Architecture("qwen3", ("qwen3",), "Qwen3ForCausalLM", _biased),
        Architecture("qwen3moe", ("qwen3_moe",), "Qwen3MoeForCausalLM", _qwen3_moe),
        Architecture("gemma", ("gemma",), "GemmaForCausalLM", _gemma, _SHIFTED),
        Architecture("gemma2", ("gemma2",), "Gemma2ForCausalLM", _gemma2, _SHIFTED, windows=True),
        Architecture(
            "gemma3", ("gemma3_text",), "Gemma3ForCausalLM", _gemma3, _SHIFTED, _gemma3_metadata, windows=True
        ),
        Architecture("phi3", ("phi3",), "Phi3ForCausalLM", _phi3, _GATE, windows=True),
        Architecture("olmo2", ("olmo2",), "Olmo2ForCausalLM", _olmo2),
        Architecture("glm4", ("glm4",), "Glm4ForCausalLM", _biased, Layout(fused_gate=True)),
        Architecture("smollm3", ("smollm3",), "SmolLM3ForCausalLM", _biased, Layout(permuted=True)),
        Architecture("gpt2", ("gpt2",), "GPT2LMHeadModel", _gpt2, _QKV),
        Architecture("starcoder", ("gpt_bigcode",), "GPTBigCodeForCausalLM", _gpt_bigcode, _QKV),
        Architecture(
            "gptneox", ("gpt_neox",), "GPTNeoXForCausalLM", _gpt_neox, _QKV,
            lambda config: {"use_parallel_residual": config.layers[0].placement == "parallel"},
        ),
        Architecture("bloom", ("bloom",), "BloomForCausalLM", _bloom, _QKV),
        Architecture("falcon", ("falcon",), "FalconForCausalLM", _falcon, Layout(fused_qkv=True, second_norm=True)),
        Architecture("deepseek2", ("deepseek_v3",), "DeepseekV3ForCausalLM", _deepseek, Layout(), _deepseek_metadata),
    )
}  # fmt: skip


def architecture_of(header: Header) -> Architecture:
    """Raises ModelError for one that is not read."""
    found = ARCHITECTURES.get(header.architecture)
    if found is None:
        raise ModelError(
            f"{header.place} holds a model of the architecture {header.architecture!r}.",
            f"Read are: {', '.join(ARCHITECTURES)}.",
        )
    return found


def config_of(header: Header) -> ModelConfig:
    """The configuration of the model in a file. Raises ModelError for what cannot be read."""
    architecture = architecture_of(header)
    settings = {"architectures": [architecture.huggingface], **architecture.settings(header)}
    _, config = read_config(settings, header.place)
    assert isinstance(config, ModelConfig)
    return config


def metadata_of(config: ModelConfig) -> tuple[Architecture, ModelConfig, Settings]:
    """How llama.cpp calls the model, the configuration that it will compute, and its metadata.

    The two configurations differ where a sliding window is not followed: the context then ends with the window, within
    which both are the same. Raises ModelError for a model that llama.cpp does not compute.
    """
    found = next((one for one in ARCHITECTURES.values() if config.family in one.families), None)
    if found is None:
        known = sorted(name for one in ARCHITECTURES.values() for name in one.families)
        raise ModelError(
            f"llama.cpp does not know the family {config.family!r}, or not as a decoder.", f"Known: {', '.join(known)}."
        )
    if not found.windows:
        config = _within_windows(config)
    written = _common(config) | found.metadata(config)
    return found, config, {f"{found.name}.{key}": value for key, value in written.items()}


def _within_windows(config: ModelConfig) -> ModelConfig:
    windows = [layer.attention.window for layer in config.layers if layer.attention.window]
    layers = tuple(replace(layer, attention=replace(layer.attention, window=None)) for layer in config.layers)
    return replace(config, layers=layers, max_seq_len=min([config.max_seq_len, *windows]))


def _common(config: ModelConfig) -> Settings:
    layer = config.layers[0]
    attention, moe = layer.attention, next((one.mlp for one in config.layers if isinstance(one.mlp, MoeConfig)), None)
    norm = "attention.layer_norm_rms_epsilon" if layer.norm.kind == "rms" else "attention.layer_norm_epsilon"
    written: Settings = {
        "context_length": config.max_seq_len,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": _inner(layer),
        "attention.head_count": attention.n_heads,
        "attention.head_count_kv": attention.n_kv_heads,
        "attention.key_length": attention.key_dim,
        "attention.value_length": attention.value_dim,
        "vocab_size": config.vocab_size,
        norm: float(layer.norm.epsilon),
    }
    if moe is not None:
        written["expert_count"], written["expert_used_count"] = moe.n_experts, moe.top_k
        written["expert_feed_forward_length"] = moe.expert.d_ff
    if isinstance(attention, AttentionConfig) and attention.soft_cap is not None:
        written["attn_logit_softcapping"] = float(attention.soft_cap)
    if config.head is not None and config.head.soft_cap is not None:
        written["final_logit_softcapping"] = float(config.head.soft_cap)
    if window := next((one.attention.window for one in config.layers if one.attention.window), None):
        written["attention.sliding_window"] = window
    return written | rope_metadata(config)


def _inner(layer: LayerConfig) -> int:
    return layer.mlp.expert.d_ff if isinstance(layer.mlp, MoeConfig) else layer.mlp.d_ff
