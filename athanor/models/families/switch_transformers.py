"""Switch Transformer (Fedus et al. 2022): T5 in which some layers' feed-forward part is a choice of one expert a token.

Quirks: an expert takes `expert_capacity` tokens of a text in one forward pass, the first ones, and padding counts; what
comes later passes by unchanged. So a text that is decoded token by token is never held up, and may get other logits
than the same text at once. The expert's output is multiplied with its probability. `num_sparse_encoder_layers` says
every how many layers experts stand, beginning with the second, and only roughly how many there are: zero gives one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from athanor.base.errors import ModelError
from athanor.models.config import EncoderDecoderConfig, MlpConfig, ModelConfig, MoeConfig
from athanor.models.families import t5
from athanor.models.families.family import Family
from athanor.models.families.keys import Keys, activation_name
from athanor.models.families.weights import Rule, parameter, stacked


def _read(keys: Keys) -> EncoderDecoderConfig:
    keys.fixed(router_bias=False, router_dtype="float32", is_gated_act=False, router_type="tokens_masked")
    keys.fixed(router_ignore_padding_tokens=False, batch_prioritized_routing=False, num_selected_experts=1)
    keys.ignore("router_jitter_noise", "router_z_loss_coef", "router_aux_loss_coef", "add_router_probs")
    config = t5.read(keys, "switch_transformers", keys.activation("dense_act_fn", "relu"))
    expert = config.encoder.layers[0].mlp
    assert isinstance(expert, MlpConfig)
    experts = MoeConfig(
        keys.whole("num_experts", 8), 1, expert, normalise=False, capacity=keys.whole("expert_capacity", 64)
    )

    def sparse(model: ModelConfig, side: str) -> ModelConfig:
        wanted = keys.depth(f"num_sparse_{side}_layers", 3)
        step = keys.whole(f"{side}_sparse_step", model.n_layers // wanted if wanted > 0 else model.n_layers)
        layers = (
            replace(layer, mlp=experts if step == 1 or (step > 1 and i % step == 1) else expert)
            for i, layer in enumerate(model.layers)
        )
        return replace(model, layers=tuple(layers))

    assert config.decoder.head is not None
    return replace(
        config,
        encoder=sparse(config.encoder, "encoder"),
        decoder=sparse(config.decoder, "decoder"),
        shared_embedding=config.decoder.head.tied,
    )


def _write(config: EncoderDecoderConfig) -> dict[str, Any]:
    layers = [*config.encoder.layers, *config.decoder.layers]
    moe = next((layer.mlp for layer in layers if isinstance(layer.mlp, MoeConfig)), None)
    expert = moe.expert if moe else layers[0].mlp
    assert isinstance(expert, MlpConfig)
    dense = replace(config.encoder, layers=(replace(layers[0], mlp=expert),) * config.encoder.n_layers)
    written = t5.write(replace(config, encoder=dense))
    del written["scale_decoder_outputs"], written["feed_forward_proj"]
    written["dense_act_fn"] = activation_name(expert.activation)
    if moe:
        written |= {"num_experts": moe.n_experts, "expert_capacity": moe.capacity}
    for side, model in (("encoder", config.encoder), ("decoder", config.decoder)):
        places = [i for i, layer in enumerate(model.layers) if isinstance(layer.mlp, MoeConfig)]
        written |= {f"num_sparse_{side}_layers": len(places), f"{side}_sparse_step": _step(places, model.n_layers)}
    return written


def _step(places: list[int], n_layers: int) -> int:
    """Every how many layers experts stand. Raises ModelError where they do not stand regularly."""
    if places[:1] == [0]:
        step, wanted = 1, list(range(n_layers))
    else:
        step = 0 if not places else places[1] - places[0] if len(places) > 1 else max(n_layers, 2)
        wanted = [i for i in range(n_layers) if step and i % step == 1]
    if places != wanted:
        raise ModelError(f"Experts in the layers {places} of {n_layers} cannot be written as a Switch Transformer.")
    return step


def _rules(config: EncoderDecoderConfig) -> list[Rule]:
    layers = [*config.encoder.layers, *config.decoder.layers]
    n = next((layer.mlp.n_experts for layer in layers if isinstance(layer.mlp, MoeConfig)), 0)
    made = t5.rules(config, "mlp")
    for side, last in (("encoder", 1), ("decoder", 2)):
        ours, theirs = f"{side}.blocks.*.mlp", f"{side}.block.*.layer.{last}.mlp"
        made += parameter(f"{ours}.router.weight", f"{theirs}.router.classifier.weight")
        for part, name in (("up", "wi"), ("down", "wo")):
            made += stacked(f"{ours}.experts.{part}", [f"{theirs}.experts.expert_{i}.{name}.weight" for i in range(n)])
    return made


FAMILY = Family(
    "switch_transformers", ("SwitchTransformersForConditionalGeneration",), _read, _write, _rules, "", t5.UNUSED
)
