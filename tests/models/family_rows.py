"""Which configurations of which families are compared with transformers: a row each, its name, the class there, and the
settings it gets. Read by `test_families` and by the script that writes the page of families.
"""

from __future__ import annotations

from typing import Any

BOUND = 1e-4  # on the largest difference, relative to the largest value, in fp32
COMPARED = {
    "logits": "what the head gives for every token",
    "states": "the last states of an encoder",
    "pooled": "an encoder's pooled first token",
    "next sentence": "the two logits from it",
    "left": "the same, with padding on the left of one text",
    "right": "the same, with padding on its right",
    "inside": "the same, with padding tokens inside a text that are attended to",
    "cache": "logits token by token with the cache, against those of the whole text at once",
    "saved": "the folder written here, loaded by transformers",
}
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
STABLELM: dict[str, Any] = {**SMALL, "hidden_size": 64, "num_key_value_heads": 4}
GRANITE: dict[str, Any] = {
    **SMALL, "embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.22,
    "logits_scaling": 8.0, "attention_dropout": 0.1,
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
    "stablelm": ("StableLmForCausalLM", STABLELM),
    "stablelm, 2 12B": ("StableLmForCausalLM", {
        **STABLELM, "num_key_value_heads": 2, "use_qkv_bias": True, "qk_layernorm": True,
        "use_parallel_residual": True, "tie_word_embeddings": True, "hidden_act": "gelu"}),
    "stablelm, 2, half turned": ("StableLmForCausalLM", {
        **STABLELM, "use_qkv_bias": True, "rope_parameters": {
            "rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}}),
    "granite": ("GraniteForCausalLM", GRANITE),
    "granite, biases, tied": ("GraniteForCausalLM", {
        **GRANITE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "logits_scaling": 0.7}),
    "starcoder2": ("Starcoder2ForCausalLM", {**SMALL, "sliding_window": 5}),
    "starcoder2, no window, no biases, untied": ("Starcoder2ForCausalLM", {
        **SMALL, "use_bias": False, "tie_word_embeddings": False, "hidden_act": "relu"}),
    "smollm3": ("SmolLM3ForCausalLM", {**SMALL, "num_hidden_layers": 5}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", DEEPSEEK),
    "deepseek_v3, YaRN": ("DeepseekV3ForCausalLM", {
        **DEEPSEEK, "q_lora_rank": None,
        "rope_parameters": {"rope_theta": 1e4, **SCALINGS["yarn"], "mscale": 1.0, "mscale_all_dim": 0.7}}),
}  # fmt: skip

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
