"""The decoders that llama.cpp knows, as data: what its metadata say in terms of a `config.json`, and the other way; how
its tensors are named.

A file is read by way of the Hugging Face family that it was converted from, and can be saved as that family's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from athanor.base.errors import ModelError
from athanor.models.config import (
    AttentionConfig,
    LatentAttentionConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
)
from athanor.models.families import read_config
from athanor.models.families.weights import Naming
from athanor.models.gguf import settings
from athanor.models.gguf.header import Header
from athanor.models.gguf.rope import rope_metadata
from athanor.models.gguf.settings import Settings
from athanor.models.gguf.tensors import Layout, rules
from athanor.models.position_config import RopeConfig


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

    def naming(self, config: ModelConfig, names: Iterable[str] | None = None) -> Naming:
        """Of the tensors. names: those in a file that is read."""
        layout = self.layout if names is None else self.layout.present(set(names))
        return Naming(self.name, rules(config, layout), unused=(r"rope_\w+\.weight",))


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


def _granite_metadata(config: ModelConfig) -> Settings:
    layer = config.layers[0]
    assert isinstance(layer.attention, AttentionConfig)
    assert config.head is not None
    return {
        "embedding_scale": float(config.embedding.scale),
        "attention.scale": float(layer.attention.scale or 1.0),
        "residual_scale": float(layer.residual_scale),
        "logit_scale": float(1 / config.head.scale),
    }


_QKV, _GATE = Layout(fused_qkv=True), Layout(fused_qkv=True, fused_gate=True)
_SHIFTED = Layout(shifted_norms=True)

ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture(
            "llama", ("llama", "mistral", "mixtral"), "LlamaForCausalLM", settings.llama, Layout(permuted=True)
        ),
        Architecture("qwen2", ("qwen2",), "Qwen2ForCausalLM", settings.plain),
        Architecture("qwen3", ("qwen3",), "Qwen3ForCausalLM", settings.biased),
        Architecture("qwen3moe", ("qwen3_moe",), "Qwen3MoeForCausalLM", settings.qwen3_moe),
        Architecture("gemma", ("gemma",), "GemmaForCausalLM", settings.gemma, _SHIFTED),
        Architecture("gemma2", ("gemma2",), "Gemma2ForCausalLM", settings.gemma2, _SHIFTED, windows=True),
        Architecture(
            "gemma3", ("gemma3_text",), "Gemma3ForCausalLM", settings.gemma3, _SHIFTED, _gemma3_metadata, windows=True
        ),
        Architecture("phi3", ("phi3",), "Phi3ForCausalLM", settings.phi3, _GATE, windows=True),
        Architecture("olmo2", ("olmo2",), "Olmo2ForCausalLM", settings.olmo2),
        Architecture("glm4", ("glm4",), "Glm4ForCausalLM", settings.biased, Layout(fused_gate=True)),
        Architecture("smollm3", ("smollm3",), "SmolLM3ForCausalLM", settings.biased, Layout(permuted=True)),
        Architecture("gpt2", ("gpt2",), "GPT2LMHeadModel", settings.gpt2, _QKV),
        Architecture("starcoder", ("gpt_bigcode",), "GPTBigCodeForCausalLM", settings.gpt_bigcode, _QKV),
        Architecture(
            "gptneox", ("gpt_neox",), "GPTNeoXForCausalLM", settings.gpt_neox, _QKV,
            lambda config: {"use_parallel_residual": config.layers[0].placement == "parallel"},
        ),
        Architecture("bloom", ("bloom",), "BloomForCausalLM", settings.bloom, _QKV),
        Architecture(
            "falcon", ("falcon",), "FalconForCausalLM", settings.falcon, Layout(fused_qkv=True, second_norm=True)
        ),
        Architecture("stablelm", ("stablelm",), "StableLmForCausalLM", settings.stablelm),
        Architecture(
            "granite", ("granite",), "GraniteForCausalLM", settings.granite, Layout(permuted=True), _granite_metadata
        ),
        Architecture("starcoder2", ("starcoder2",), "Starcoder2ForCausalLM", settings.starcoder2),
        Architecture(
            "deepseek2", ("deepseek_v3",), "DeepseekV3ForCausalLM", settings.deepseek, metadata=_deepseek_metadata
        ),
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
    if config.embedding.ngrams:
        raise ModelError(
            "The model has an n-gram memory, which only Athanor computes: it cannot become a GGUF file.",
            "A model made without model.ngrams can.",
        )
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
