"""Every family against its reference in transformers: logits, padding on both sides, the cache, and the way back."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import athanor.models as models
from athanor.base.errors import ModelError
from athanor.models.cache import Cache
from athanor.models.config import (
    AttentionConfig,
    ConvolutionConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
)
from athanor.models.disentangled import DistanceTable
from athanor.models.families import read_config
from athanor.models.position_config import Disentangled
from athanor.models.sentences import embed

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PLAIN = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}
OPT: dict[str, Any] = {name: value for name, value in PLAIN.items() if name != "intermediate_size"} | {"ffn_dim": 80}
BLOOM: dict[str, Any] = {"vocab_size": 96, "hidden_size": 48, "n_layer": 3, "n_head": 6}
FALCON: dict[str, Any] = {name: value for name, value in PLAIN.items() if name != "intermediate_size"}
GPT2: dict[str, Any] = {"vocab_size": 96, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "rope_type": "longrope", "short_factor": [1.0 + i / 9 for i in range(6)],
        "long_factor": [1.0 + i for i in range(6)], "original_max_position_embeddings": 16,
    },
}  # fmt: skip
MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 40}
DEEPSEEK: dict[str, Any] = {
    **SMALL, **MOE, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "kv_lora_rank": 16, "q_lora_rank": 24,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10, "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}  # fmt: skip

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2, untied, wide": ("GPT2LMHeadModel", {**GPT2, "n_inner": 100, "tie_word_embeddings": False}),
    "gpt_neox": ("GPTNeoXForCausalLM", {**PLAIN, "hidden_size": 64}),
    "gpt_neox, in sequence": ("GPTNeoXForCausalLM", {
        **PLAIN, "rotary_pct": 1.0, "use_parallel_residual": False, "attention_bias": False}),
    "opt": ("OPTForCausalLM", {**OPT, "word_embed_proj_dim": 48}),
    "opt, 350M": ("OPTForCausalLM", {**OPT, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "bloom": ("BloomForCausalLM", BLOOM),
    "falcon, one key–value head": ("FalconForCausalLM", FALCON),
    "falcon, groups": ("FalconForCausalLM", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, ALiBi": ("FalconForCausalLM", {
        **FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True, "num_kv_heads": 4}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", GPT2),
    "gpt_bigcode, many": ("GPTBigCodeForCausalLM", {**GPT2, "multi_query": False}),
    "llama": ("LlamaForCausalLM", SMALL),
    "llama, odd head": ("LlamaForCausalLM", {**SMALL, "head_dim": 20, "attention_bias": True, "mlp_bias": True}),
    "llama, one key–value head, tied": ("LlamaForCausalLM", {
        **SMALL, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    **{f"llama, {kind}": ("LlamaForCausalLM", {**SMALL, "rope_parameters": {"rope_theta": 1e4, **scaling}})
       for kind, scaling in SCALINGS.items()},
    "mistral": ("MistralForCausalLM", {**SMALL, "sliding_window": 7}),
    "mistral, no window": ("MistralForCausalLM", {**SMALL, "sliding_window": None}),
    "mixtral": ("MixtralForCausalLM", {**SMALL, "num_local_experts": 5}),
    "qwen2": ("Qwen2ForCausalLM", SMALL),
    "qwen2, windows": ("Qwen2ForCausalLM", {
        **SMALL, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", {**SMALL, "head_dim": 16}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {
        **SMALL, **MOE, "num_experts": 6, "head_dim": 16, "mlp_only_layers": [1], "norm_topk_prob": True}),
    "gemma": ("GemmaForCausalLM", {**SMALL, "head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", {**SMALL, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 20}),
    "gemma3": ("Gemma3ForCausalLM", {
        **SMALL, "num_hidden_layers": 7, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 20}),
    "phi3": ("Phi3ForCausalLM", SMALL),
    "phi3, long": ("Phi3ForCausalLM", {
        **SMALL, "original_max_position_embeddings": 16,
        "rope_parameters": {"rope_theta": 1e4, **SCALINGS["longrope"]}}),
    "olmo2": ("Olmo2ForCausalLM", SMALL),
    "glm4": ("Glm4ForCausalLM", {**SMALL, "head_dim": 16}),
    "smollm3": ("SmolLM3ForCausalLM", {**SMALL, "num_hidden_layers": 5}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", DEEPSEEK),
    "deepseek_v3, YaRN": ("DeepseekV3ForCausalLM", {
        **DEEPSEEK, "q_lora_rank": None,
        "rope_parameters": {"rope_theta": 1e4, **SCALINGS["yarn"], "mscale": 1.0, "mscale_all_dim": 0.7}}),
}  # fmt: skip


def reference(architecture: str, settings: dict[str, Any], seed: int = 0) -> Any:
    """A small model with every parameter perturbed, so that none is neutral."""
    torch.manual_seed(seed)
    kind = getattr(transformers, architecture)
    model = kind(kind.config_class(**settings)).eval()
    saved = model.state_dict()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        frozen = isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad  # Marian's sinusoids
        if tensor.is_floating_point() and name in saved and "scale" not in name and not frozen:
            tensor.data += 0.1 * torch.randn_like(tensor)
    return model


@pytest.fixture(scope="module", params=DECODERS)
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """Theirs, ours, and the folder between them."""
    architecture, settings = DECODERS[request.param]
    folder = tmp_path_factory.mktemp("model")
    theirs = reference(architecture, settings)
    theirs.save_pretrained(folder)
    return theirs, models.load(folder), folder


def tokens(rows: int = 2, time: int = 24) -> Tensor:
    return torch.randint(3, 96, (rows, time), generator=torch.Generator().manual_seed(1))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@torch.inference_mode()
def test_logits(pair: Any) -> None:
    theirs, ours, _ = pair
    assert_close(ours(tokens()), theirs(tokens()).logits)


@torch.inference_mode()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(pair: Any, side: str) -> None:
    theirs, ours, _ = pair
    ids, mask = tokens(), torch.ones(2, 24, dtype=torch.long)
    mask[0, slice(0, 5) if side == "left" else slice(19, None)] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    accepted = {"position_ids": positions} if "position_ids" in inspect.signature(theirs.forward).parameters else {}
    wanted = theirs(ids, attention_mask=mask, **accepted).logits
    kept = mask.bool()
    assert_close(ours(ids, attention_mask=mask)[kept], wanted[kept])


@torch.inference_mode()
def test_the_cache_step_by_step(pair: Any) -> None:
    _, ours, _ = pair
    ids = tokens()
    whole, cache = ours(ids), Cache(ours.config.n_layers)
    parts = [ours(ids[:, :9], cache=cache)] + [ours(ids[:, i : i + 1], cache=cache) for i in range(9, 24)]
    if isinstance(getattr(ours.config.layers[0].attention.position, "scaling", None), object):
        kind = getattr(getattr(ours.config.layers[0].attention.position, "scaling", None), "kind", None)
        if kind in ("dynamic", "longrope"):
            pytest.skip("its angles depend on the length so far")
    assert_close(torch.cat(parts, 1), whole)


@torch.inference_mode()
def test_there_and_back(pair: Any, tmp_path: Path) -> None:
    theirs, ours, _ = pair
    models.save(ours, tmp_path)
    again = type(theirs).from_pretrained(tmp_path)
    assert_close(again(tokens()).logits, theirs(tokens()).logits)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(theirs).__name__]


ROBERTA: dict[str, Any] = {**PLAIN, "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
ALBERT: dict[str, Any] = {**PLAIN, "num_hidden_layers": 6, "embedding_size": 20}
MODERNBERT: dict[str, Any] = {**PLAIN, "num_hidden_layers": 4, "local_attention": 8}
DISTILBERT: dict[str, Any] = {
    "vocab_size": 96, "dim": 48, "hidden_dim": 80, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
DEBERTA: dict[str, Any] = {
    **PLAIN, "relative_attention": True, "position_buckets": 8, "max_relative_positions": -1,
    "max_position_embeddings": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p",
    "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
CONVOLUTION: dict[str, Any] = {"conv_kernel_size": 3, "conv_act": "gelu"}
NO_DISTANCES: dict[str, Any] = {"relative_attention": False, "pos_att_type": None, "norm_rel_ebd": "none"}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert, masked words": ("BertForMaskedLM", PLAIN),
    "bert, both heads": ("BertForPreTraining", {**PLAIN, "hidden_act": "relu"}),
    "bert, bare": ("BertModel", PLAIN),
    "bert, untied": ("BertForMaskedLM", {**PLAIN, "tie_word_embeddings": False}),
    "roberta, masked words": ("RobertaForMaskedLM", {**ROBERTA, "hidden_act": "relu"}),
    "roberta, bare": ("RobertaModel", ROBERTA),
    "roberta, untied, segments, padding far up": ("RobertaForMaskedLM", {
        **ROBERTA, "tie_word_embeddings": False, "type_vocab_size": 2, "pad_token_id": 9}),
    "roberta, padding 0, as many places as tokens": ("RobertaModel", {
        **ROBERTA, "pad_token_id": 0, "max_position_embeddings": 25}),
    "xlm_roberta": ("XLMRobertaForMaskedLM", ROBERTA),
    "albert, masked words": ("AlbertForMaskedLM", ALBERT),
    "albert, both heads, groups": ("AlbertForPreTraining", {**ALBERT, "num_hidden_groups": 3}),
    "albert, bare, uneven groups": ("AlbertModel", {**ALBERT, "num_hidden_layers": 18, "num_hidden_groups": 14}),
    "albert, two layers a group": ("AlbertForMaskedLM", {
        **ALBERT, "num_hidden_layers": 3, "num_hidden_groups": 2, "inner_group_num": 2}),
    "albert, untied, as wide as the layers": ("AlbertForMaskedLM", {
        **ALBERT, "tie_word_embeddings": False, "embedding_size": 48, "hidden_act": "relu"}),
    "modernbert, masked words": ("ModernBertForMaskedLM", MODERNBERT),
    "modernbert, bare": ("ModernBertModel", MODERNBERT),
    "modernbert, all biases, odd window": ("ModernBertForMaskedLM", {
        **MODERNBERT, "attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True,
        "local_attention": 5, "classifier_activation": "silu", "hidden_activation": "relu"}),
    "modernbert, no decoder bias, untied, own kinds": ("ModernBertForMaskedLM", {
        **MODERNBERT, "decoder_bias": False, "tie_word_embeddings": False, "local_attention": 1,
        "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "modernbert, window wider than the text, narrower to a side": ("ModernBertModel", {
        **MODERNBERT, "local_attention": 30, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}}),
    "modernbert, all layers full": ("ModernBertModel", {**MODERNBERT, "layer_types": ["full_attention"] * 4}),
    "distilbert": ("DistilBertForMaskedLM", DISTILBERT),
    "distilbert, bare, sines": ("DistilBertModel", {**DISTILBERT, "sinusoidal_pos_embds": True}),
    "distilbert, untied": ("DistilBertForMaskedLM", {
        **DISTILBERT, "tie_word_embeddings": False, "activation": "relu"}),
    "electra, generator": ("ElectraForMaskedLM", {**PLAIN, "embedding_size": 20, "hidden_act": "relu"}),
    "electra, generator, untied, not widened": ("ElectraForMaskedLM", {
        **PLAIN, "embedding_size": 48, "tie_word_embeddings": False}),
    "electra, discriminator": ("ElectraForPreTraining", {**PLAIN, "embedding_size": 20, "hidden_act": "silu"}),
    "electra, bare": ("ElectraModel", {**PLAIN, "embedding_size": 48}),
    "deberta_v2, as v3": ("DebertaV2ForMaskedLM", DEBERTA),
    "deberta_v2, as v3, other head": ("DebertaV2ForMaskedLM", {
        **DEBERTA, "legacy": False, "tie_word_embeddings": False}),
    "deberta_v2, as v3, bare": ("DebertaV2Model", DEBERTA),
    "deberta_v2, as v2, convolution": ("DebertaV2ForMaskedLM", {**DEBERTA, **CONVOLUTION, "hidden_act": "relu"}),
    "deberta_v2, wide convolution in groups": ("DebertaV2Model", {
        **DEBERTA, "conv_kernel_size": 7, "conv_groups": 4, "share_att_key": False, "max_relative_positions": 20}),
    "deberta_v2, a distance each, projections of their own": ("DebertaV2ForMaskedLM", {
        **DEBERTA, "position_buckets": -1, "share_att_key": False, "norm_rel_ebd": "none",
        "max_relative_positions": 6}),
    "deberta_v2, c2p, positions, segments": ("DebertaV2ForMaskedLM", {
        **DEBERTA, "pos_att_type": ["c2p"], "share_att_key": False, "position_biased_input": True,
        "type_vocab_size": 2, "max_position_embeddings": 30, "position_buckets": 5}),
    "deberta_v2, p2c, narrow embedding, untied": ("DebertaV2ForMaskedLM", {
        **DEBERTA, "pos_att_type": ["p2c"], "embedding_size": 20, "tie_word_embeddings": False}),
    "deberta_v2, no distances": ("DebertaV2ForMaskedLM", {
        **DEBERTA, **NO_DISTANCES, "position_biased_input": True, "max_position_embeddings": 24}),
}  # fmt: skip


@pytest.fixture(scope="module", params=ENCODERS)
def encoders(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    architecture, settings = ENCODERS[request.param]
    folder = tmp_path_factory.mktemp("model")
    theirs = reference(architecture, settings)
    theirs.save_pretrained(folder)
    return theirs, models.load(folder)


@torch.inference_mode()
@pytest.mark.parametrize("side", [None, "left", "right", "inside"])
def test_encoders(encoders: Any, side: str | None, tmp_path: Path) -> None:
    """States, heads and the pooled first token, with padding; and back. inside: padding tokens that are attended to."""
    theirs, ours = encoders
    ids, mask, types = tokens(), torch.ones(2, 24, dtype=torch.long), torch.arange(24).expand(2, 24) // 12
    padding, accepted = theirs.config.pad_token_id, inspect.signature(theirs.forward).parameters
    if side == "inside":
        ids[0, 5:7] = padding
    elif side:
        mask[0, slice(0, 5) if side == "left" else slice(19, None)] = 0
        ids[0, mask[0] == 0] = padding
    types = types.clamp(max=max(getattr(theirs.config, "type_vocab_size", 1) - 1, 0))
    segments = {"token_type_ids": types} if "token_type_ids" in accepted else {}
    kept = mask.bool()
    for model in (theirs, None):
        if model is None:
            models.save(ours, tmp_path)
            model = type(theirs).from_pretrained(tmp_path)
            assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(theirs).__name__]
        wanted = model(ids, attention_mask=mask, output_hidden_states=True, **segments)
        states = ours.encode(ids, mask, types)
        assert_close(states[kept], wanted.hidden_states[-1][kept])
        if (last := wanted.get("last_hidden_state")) is not None:
            assert_close(states[kept], last[kept])
        logits = wanted.get("logits", wanted.get("prediction_logits"))
        if logits is not None:
            assert_close(ours(ids, mask, types=types)[kept].squeeze(-1), logits[kept])
        if ours.pooler is not None and side != "left":
            if (pooled := wanted.get("pooler_output")) is not None:
                assert_close(ours.pool(states), pooled)
            following = wanted.get("seq_relationship_logits", wanted.get("sop_logits"))
            assert (following is None) == (ours.next_sentence is None)
            if following is not None:
                assert_close(ours.next_sentence(ours.pool(states)), following)


@torch.inference_mode()
@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "RobertaForMaskedLM", "AlbertForMaskedLM"])
def test_weights_beside_a_masked_word_head(architecture: str, tmp_path: Path) -> None:
    """bert-base-uncased, roberta-base and albert-base-v2 keep a pooler that is not used, BERT old names of norms."""
    theirs = reference(
        architecture, {"BertForMaskedLM": PLAIN, "RobertaForMaskedLM": ROBERTA}.get(architecture, ALBERT)
    )
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if architecture == "BertForMaskedLM":
        old = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
        weights = {next((n.replace(a, b) for a, b in old.items() if a in n), n): t for n, t in weights.items()}
        assert "bert.embeddings.LayerNorm.gamma" in weights
        weights["cls.seq_relationship.weight"] = torch.ones(2, 48)
    pooler = f"{theirs.base_model_prefix}.pooler" + (".dense" if architecture != "AlbertForMaskedLM" else "")
    weights |= {f"{pooler}.weight": torch.ones(48, 48), f"{pooler}.bias": torch.ones(48)}
    weights[f"{theirs.base_model_prefix}.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_close(models.load(tmp_path)(tokens()), theirs(tokens()).logits)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"inner_group_num": 2, "num_hidden_groups": 6}, "inner_group_num"),
        ({"inner_group_num": 0}, "groups of 0"),
        ({"inner_group_num": 2000}, "groups of 2000"),
        ({"num_hidden_groups": 7}, "7 groups"),
        ({"gap_size": 1}, "gap_size"),
    ],
)
def test_albert_refuses_what_it_would_compute_otherwise(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        read_config({"architectures": ["AlbertModel"], **ALBERT, **changes}, "config.json")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"pos_att_type": "c2p|p2p"}, "pos_att_type"),
        ({"pos_att_type": []}, "pos_att_type"),
        ({"pos_att_type": 3}, "pos_att_type"),
        ({"relative_attention": False}, "relative_attention"),
        ({"norm_rel_ebd": "rms"}, "norm_rel_ebd"),
        ({"position_buckets": 40}, "position_buckets"),
        ({"position_buckets": 1}, "position_buckets"),
        ({"attention_head_size": 16}, "attention_head_size"),
        ({"conv_kernel_size": 4}, "conv_kernel_size"),
        ({"conv_kernel_size": 3, "conv_groups": 5}, "conv_groups"),
        ({"embedding_size": 20, "position_biased_input": True}, "embedding_size"),
        ({"num_hidden_layers": 0}, "n_layers"),
    ],
)
def test_deberta_refuses_what_it_would_compute_otherwise(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        read_config({"architectures": ["DebertaV2Model"], **DEBERTA, **changes}, "config.json")


@torch.inference_mode()
def test_deberta_as_the_hub_has_it(tmp_path: Path) -> None:
    """microsoft/deberta-v3-base: no architecture, heads of pre-training, a table of positions that nothing uses."""
    theirs = reference("DebertaV2ForMaskedLM", {**DEBERTA, "legacy": False})
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"], config["legacy"], config["pooler_hidden_size"]
    config |= {"pos_att_type": "p2c|c2p", "attention_head_size": 12, "position_buckets": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_predictions.lm_head.dense.weight" in weights
    weights["mask_predictions.classifier.weight"] = torch.ones(1, 48)
    weights["deberta.embeddings.position_embeddings.weight"] = torch.ones(16, 48)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = models.load(tmp_path)
    assert ours.head is None
    assert_close(ours.encode(tokens()), theirs(tokens(), output_hidden_states=True).hidden_states[-1])
    weights |= {"cls.predictions.bias": torch.ones(96)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="more than once"):
        models.load(tmp_path)


def test_parts_that_do_not_go_together() -> None:
    layer = LayerConfig(
        AttentionConfig(4, 4, 12, Disentangled(16)), MlpConfig(80), placement="post", convolution=ConvolutionConfig(3)
    )
    other = replace(layer, attention=AttentionConfig(4, 4, 12, Disentangled(17)))
    for layers, more, word in (
        ((layer,), {}, "encoder"),
        ((layer, other), {"causal": False}, "one table"),
        ((layer, layer), {"causal": False, "sharing": (0, 2)}, "share the weights"),
        ((layer, layer), {"causal": False, "sharing": (0,)}, "share the weights"),
    ):
        with pytest.raises(ModelError, match=word):
            ModelConfig(96, 48, 64, layers, **more)
    with pytest.raises(ModelError, match="key head"):
        AttentionConfig(4, 2, 12, Disentangled(16))
    with pytest.raises(ModelError, match="post-norm"):
        replace(layer, placement="pre")


@pytest.mark.parametrize(("buckets", "farthest"), [(256, 512), (8, 16), (5, 30), (2, 24), (33, 512), (7, 6)])
def test_buckets_of_distances(buckets: int, farthest: int) -> None:
    """To both sides of what is told apart, and as they round."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distance = torch.arange(-700, 701)
    table = DistanceTable(4, Disentangled(farthest, buckets), NormConfig())
    wanted = make_log_bucket_position(distance, buckets, farthest).long().clamp(-buckets, buckets - 1)
    found = table(distance).rows
    assert torch.equal(found - found.min(), wanted - wanted.min())


@torch.inference_mode()
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [("BertModel", PLAIN), ("RobertaModel", ROBERTA), ("XLMRobertaModel", ROBERTA), ("AlbertModel", ALBERT)],
)
def test_a_bare_model_without_a_pooler(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """As models of sentences are saved."""
    kind = getattr(transformers, architecture)
    torch.manual_seed(0)
    theirs = kind(kind.config_class(**settings), add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path)
    ours = models.load(tmp_path)
    assert ours.pooler is None
    assert_close(ours.encode(tokens()), theirs(tokens()).last_hidden_state)
    models.save(ours, tmp_path / "again")
    again = kind.from_pretrained(tmp_path / "again", add_pooling_layer=False)
    assert_close(again(tokens()).last_hidden_state, theirs(tokens()).last_hidden_state)
    assert models.load(tmp_path / "again").pooler is None


HEADED = {name: row for name, row in ENCODERS.items() if row[0].endswith("ForMaskedLM")}


@torch.inference_mode()
@pytest.mark.parametrize("name", {row[0]: name for name, row in HEADED.items()}.values())
def test_a_bare_model_beside_its_head(name: str, tmp_path: Path) -> None:
    """Saved with a head for masked words, and named a bare model by hand."""
    architecture, settings = HEADED[name]
    theirs = reference(architecture, settings)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    bare = architecture.replace("ForMaskedLM", "Model")
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [bare]}))
    ours = models.load(tmp_path)
    assert ours.head is ours.pooler is None
    assert_close(ours.encode(tokens()), theirs(tokens(), output_hidden_states=True).hidden_states[-1])


@torch.inference_mode()
def test_modernbert_as_the_hub_has_it(tmp_path: Path) -> None:
    """The keys of answerdotai/ModernBERT-base: thetas and the pattern of layers under their old names."""
    theirs = reference("ModernBertForMaskedLM", {**MODERNBERT, "global_attn_every_n_layers": 2})
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["layer_types"], config["rope_parameters"]
    old = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "global_attn_every_n_layers": 2}
    more = {"position_embedding_type": "absolute", "layer_norm_eps": 1e-5, "repad_logits_with_grad": False}
    (tmp_path / "config.json").write_text(json.dumps(config | old | more))
    ours = models.load(tmp_path)
    assert [layer.attention.window for layer in ours.config.layers] == [None, 8, None, 8]
    assert_close(ours(tokens()), theirs(tokens()).logits)


@torch.inference_mode()
@pytest.mark.parametrize("architecture", ["BertModel", "RobertaModel"])
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_sentences(architecture: str, side: str | None, tmp_path: Path) -> None:
    """Means over what is no padding, of length one, from a folder laid out as sentence-transformers does."""
    theirs = reference(architecture, PLAIN if architecture == "BertModel" else ROBERTA)
    theirs.save_pretrained(tmp_path)
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [{"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    ours = models.load(tmp_path)
    ids, mask = tokens(3), torch.ones(3, 24, dtype=torch.long)
    if side:
        mask[0, slice(0, 5) if side == "left" else slice(19, None)] = 0
        mask[1, slice(0, 23) if side == "left" else slice(1, None)] = 0
        ids[mask == 0] = theirs.config.pad_token_id
    found = embed(ours, ids, mask if side else None)
    for row, vector in enumerate(found):  # each sentence alone, without padding
        mean = theirs(ids[row : row + 1, mask[row].bool()]).last_hidden_state[0].double().mean(0)
        if side != "left" or architecture == "RobertaModel":  # BERT's places begin at the padding
            assert_close(vector, (mean / mean.square().sum().sqrt()).float())
    states = theirs(ids, attention_mask=mask).last_hidden_state
    means = torch.stack([row[kept.bool()].mean(0) for row, kept in zip(states, mask, strict=True)])
    assert_close(found, means / means.norm(dim=1, keepdim=True))
    nothing = embed(ours, ids, torch.zeros_like(mask))
    assert torch.equal(nothing, torch.zeros(3, 48))


T5: dict[str, Any] = {
    "vocab_size": 96, "d_model": 48, "d_kv": 10, "d_ff": 80, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": 0,
}  # fmt: skip
T5_SHORT = {"num_layers": 1, "num_decoder_layers": 2, "num_heads": 3}
FAIRSEQ: dict[str, Any] = {
    "vocab_size": 96, "d_model": 48, "max_position_embeddings": 40, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 4, "decoder_attention_heads": 6, "encoder_ffn_dim": 80, "decoder_ffn_dim": 56,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
FAIRSEQ_ODD = {"encoder_layers": 3, "decoder_layers": 1, "decoder_attention_heads": 2, "scale_embedding": True}
MARIAN: dict[str, Any] = {**FAIRSEQ, "pad_token_id": 95, "decoder_start_token_id": 95, "scale_embedding": True}
SWITCH: dict[str, Any] = {
    **T5, "num_layers": 4, "num_decoder_layers": 4, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2,
    "num_experts": 5, "expert_capacity": 64,
}  # fmt: skip
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", T5),
    "t5 1.1": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("MT5ForConditionalGeneration", T5),
    "mt5, ReLU": ("MT5ForConditionalGeneration", {**T5, **T5_SHORT, "feed_forward_proj": "relu"}),
    "bart": ("BartForConditionalGeneration", FAIRSEQ),
    "bart, scaled, untied": ("BartForConditionalGeneration", {
        **FAIRSEQ, **FAIRSEQ_ODD, "activation_function": "relu", "tie_word_embeddings": False}),
    "marian": ("MarianMTModel", {**MARIAN, "activation_function": "swish"}),
    "marian, two vocabularies": ("MarianMTModel", {
        **MARIAN, "activation_function": "relu", "share_encoder_decoder_embeddings": False, "decoder_vocab_size": 101}),
    "marian, unscaled, untied": ("MarianMTModel", {
        **MARIAN, **FAIRSEQ_ODD, "scale_embedding": False, "tie_word_embeddings": False}),
    "m2m_100": ("M2M100ForConditionalGeneration", FAIRSEQ),
    "m2m_100, padding of 0, untied": ("M2M100ForConditionalGeneration", {
        **FAIRSEQ, **FAIRSEQ_ODD, "pad_token_id": 0, "activation_function": "gelu", "tie_word_embeddings": False}),
    "m2m_100, unscaled": ("M2M100ForConditionalGeneration", {
        **FAIRSEQ, "scale_embedding": False, "max_position_embeddings": 8}),
    "switch": ("SwitchTransformersForConditionalGeneration", SWITCH),
    "switch, full experts": ("SwitchTransformersForConditionalGeneration", {**SWITCH, "expert_capacity": 3}),
    "switch, all sparse, untied": ("SwitchTransformersForConditionalGeneration", {
        **SWITCH, "num_layers": 2, "num_decoder_layers": 3, "num_sparse_decoder_layers": 1, "dense_act_fn": "gelu",
        "tie_word_embeddings": False}),
    "switch, one and none sparse": ("SwitchTransformersForConditionalGeneration", {
        **SWITCH, "num_layers": 3, "num_sparse_encoder_layers": 0, "decoder_sparse_step": 0}),
}  # fmt: skip


@pytest.fixture(scope="module", params=PAIRS)
def pairs(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    architecture, settings = PAIRS[request.param]
    folder = tmp_path_factory.mktemp("model")
    theirs = reference(architecture, settings)
    theirs.save_pretrained(folder)
    return theirs, models.load(folder)


@torch.inference_mode()
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_encoder_decoders(pairs: Any, side: str | None, tmp_path: Path) -> None:
    """States of the source, logits of the target, the cache step by step, and back."""
    theirs, ours = pairs
    source, target, mask = tokens(), tokens(time=15), torch.ones(2, 24, dtype=torch.long)
    capacity = getattr(theirs.config, "expert_capacity", 64)
    if side == "left" and capacity < 24:
        pytest.skip("padding on the left fills experts, and what padding holds is nobody's promise")
    if side:
        mask[0, slice(0, 5) if side == "left" else slice(19, None)] = 0
        source = source.masked_fill(mask == 0, theirs.config.pad_token_id)
    wanted = theirs(source, attention_mask=mask, decoder_input_ids=target)
    assert_close(ours.encode(source, mask)[mask.bool()], wanted.encoder_last_hidden_state[mask.bool()])
    logits = ours(source, target, mask)
    assert_close(logits, wanted.logits)
    read, cache = ours.read(ours.encode(source, mask)), Cache(ours.config.decoder.n_layers)
    steps = torch.cat([ours.decode(target[:, i : i + 1], read, mask, cache=cache) for i in range(15)], 1)
    if capacity < 15:  # an expert that is full at once is not so token by token
        logits = _steps(theirs, wanted.encoder_last_hidden_state, mask, target)
        assert not torch.allclose(logits, wanted.logits, atol=1e-3)
    assert_close(steps, logits)
    models.save(ours, tmp_path)
    again = type(theirs).from_pretrained(tmp_path)
    assert_close(again(source, attention_mask=mask, decoder_input_ids=target).logits, wanted.logits)
    assert_close(models.load(tmp_path)(source, target, mask), wanted.logits)


def _steps(theirs: Any, states: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """Their logits, token by token with their cache."""
    from transformers.modeling_outputs import MoEModelOutput

    encoded = MoEModelOutput(last_hidden_state=states)
    past, logits = None, []
    for i in range(target.shape[1]):
        out = theirs(
            encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=target[:, i : i + 1],
            past_key_values=past, use_cache=True,
        )  # fmt: skip
        past = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, 1)


@torch.inference_mode()
@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("architecture", ["T5ForConditionalGeneration", "MT5ForConditionalGeneration"])
def test_heads_that_are_tied_only_on_paper(architecture: str, said: bool, tmp_path: Path) -> None:
    """T5 1.1 and mT5 have a head of their own; their makers say so, transformers 5 writes that it is tied."""
    theirs = reference(architecture, {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False})
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(96, 48))
    theirs.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": said}))
    source, target = tokens(), tokens(time=15)
    wanted = theirs(source, decoder_input_ids=target).logits
    ours = models.load(tmp_path)
    assert_close(ours(source, target), wanted)
    models.save(ours, tmp_path / "again")
    again = type(theirs).from_pretrained(tmp_path / "again")
    assert_close(again(source, decoder_input_ids=target).logits, wanted)


@torch.inference_mode()
def test_bart_without_a_head(tmp_path: Path) -> None:
    """As facebook/bart-base is published; transformers reads it with a head that is tied and has no bias."""
    reference("BartModel", FAIRSEQ).save_pretrained(tmp_path)
    source, target = tokens(), tokens(time=15)
    ours = models.load(tmp_path)
    wanted = transformers.BartForConditionalGeneration.from_pretrained(tmp_path)(source, decoder_input_ids=target)
    assert_close(ours(source, target), wanted.logits)
    models.save(ours, tmp_path / "again")
    assert_close(models.load(tmp_path / "again")(source, target), wanted.logits)
    again = transformers.BartModel.from_pretrained(tmp_path / "again")
    assert_close(again(source, decoder_input_ids=target).encoder_last_hidden_state, wanted.encoder_last_hidden_state)


@torch.inference_mode()
def test_m2m_100_counts_a_padded_target(tmp_path: Path) -> None:
    theirs = reference("M2M100ForConditionalGeneration", FAIRSEQ)
    theirs.save_pretrained(tmp_path)
    source, target, mask = tokens(), tokens(time=15), torch.ones(2, 15, dtype=torch.long)
    mask[0, :4] = 0
    target = target.masked_fill(mask == 0, 1)
    wanted = theirs(source, decoder_input_ids=target, decoder_attention_mask=mask).logits
    ours, kept = models.load(tmp_path), mask.bool()
    assert_close(ours(source, target, target_mask=mask)[kept], wanted[kept])
    read, cache = ours.read(ours.encode(source)), Cache(3)
    steps = [ours.decode(target[:, i : i + 1], read, target_mask=mask[:, : i + 1], cache=cache) for i in range(15)]
    assert_close(torch.cat(steps, 1)[kept], wanted[kept])


def test_what_these_families_cannot_be(tmp_path: Path) -> None:
    reference("M2M100ForConditionalGeneration", FAIRSEQ).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    for changed, said in (({"decoder_start_token_id": 1}, "no position"), ({"d_model": 45}, "odd")):
        (tmp_path / "config.json").write_text(json.dumps({**settings, **changed}))
        with pytest.raises(ModelError) as raised:
            models.load(tmp_path)
        assert said in str(raised.value) + str(raised.value.hint)
    from athanor.models.families.switch_transformers import _step

    for places in ([2], [0, 2]):
        with pytest.raises(ModelError, match="cannot be written"):
            _step(places, 3)
