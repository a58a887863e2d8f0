"""The forward pass against the reference's: transformers with SDPA, the same weights, fp32, 256 tokens, no cache.

The two take turns, and a row's ratio is the median over the turns. Models are of real families' shapes, with fewer
layers and 32,768 tokens, so that the head does not outweigh what differs.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from _rows import row
from torch import Tensor

import athanor.models as models
from athanor.base.machine import usable_cores

ISSUE = "B"
LENGTH, TURNS, LEAST_SECONDS = 256, 7, 0.2

_SHARED: dict[str, Any] = {"vocab_size": 32_768, "max_position_embeddings": 1024}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2LMHeadModel", {"vocab_size": 32_768, "n_embd": 768, "n_layer": 6, "n_head": 12}),
    "Llama": ("LlamaForCausalLM", {
        **_SHARED, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 9,
        "num_key_value_heads": 3}),
    "Qwen3": ("Qwen3ForCausalLM", {
        **_SHARED, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 6, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128}),
    "Gemma 3": ("Gemma3ForCausalLM", {
        **_SHARED, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 128}),
    "DeepSeek-V3": ("DeepseekV3ForCausalLM", {
        **_SHARED, "hidden_size": 512, "intermediate_size": 1408, "moe_intermediate_size": 352, "num_hidden_layers": 6,
        "num_attention_heads": 8, "num_key_value_heads": 8, "n_routed_experts": 16, "num_experts_per_tok": 4,
        "n_group": 4, "topk_group": 2, "kv_lora_rank": 128, "q_lora_rank": 192, "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 64, "v_head_dim": 64, "first_k_dense_replace": 1}),
    "BERT": ("BertForMaskedLM", {
        "vocab_size": 32_768, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6,
        "num_attention_heads": 12}),
    "T5": ("T5ForConditionalGeneration", {
        "vocab_size": 32_768, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 6, "num_heads": 8,
        "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}),
    "Mixtral": ("MixtralForCausalLM", {
        **_SHARED, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8,
        "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2}),
}  # fmt: skip


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    ratios = []
    for name, (architecture, settings) in SHAPES.items():
        ours, theirs = both(architecture, settings)
        for batch in (1, 8):
            tokens = torch.randint(3, 32_768, (batch, LENGTH), generator=torch.Generator().manual_seed(batch))
            our_seconds, their_seconds, ratio = taking_turns(partial(ours, tokens), partial(theirs, tokens))
            speed, peer = batch * LENGTH / our_seconds, batch * LENGTH / their_seconds
            ratios.append(ratio)
            metric = f"forward against transformers, {name}, batch {batch}"
            yield {**row(metric, speed, "tokens/s", target=0.9, peer=peer), "ratio": ratio, "met": ratio >= 0.9}
    yield row("forward against transformers, median ratio", median(ratios), "ratio", target=1.0)


@torch.inference_mode()
def taking_turns(ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> tuple[float, float, float]:
    """Median seconds of both, and the median of theirs over ours."""
    wanted, found = theirs(), ours()
    assert (wanted - found).abs().max() <= 1e-3 * wanted.abs().max()
    times = [(seconds(ours), seconds(theirs)) for _ in range(TURNS)]
    return *(median(column) for column in zip(*times, strict=True)), median(their / our for our, their in times)


def seconds(run: Callable[[], Tensor]) -> float:
    """Of one run, over as many as take long enough to be timed."""
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < LEAST_SECONDS or not count:
        run()
        count += 1
    return passed / count


def both(architecture: str, settings: dict[str, Any]) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Functions from ids to logits: ours, and theirs, with the same weights."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    peer = kind(kind.config_class(**settings)).eval()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        model: Any = models.load(folder)
    if peer.config.is_encoder_decoder:
        return (
            lambda tokens: model(tokens, tokens),
            lambda tokens: peer(input_ids=tokens, decoder_input_ids=tokens, use_cache=False).logits,
        )
    more = {} if architecture.startswith("Bert") else {"use_cache": False}
    return lambda tokens: model(tokens), lambda tokens: peer(tokens, **more).logits
