"""Reading a `config.json` so that nothing in it is silently ignored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from reprlib import repr as shown
from typing import Any

from athanor.base.errors import ModelError
from athanor.models.config import Activation
from athanor.models.position_config import RopeConfig, RopeScaling
from athanor.models.sizes import MOST_LAYERS

# Keys without an effect on what is computed here, in any family: names, tokens, what training drops, how text is
# generated, how the library that wrote them runs.
_WITHOUT_EFFECT = {
    "architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "use_cache", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id", "_name_or_path",
    "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward", "id2label", "label2id",
    "problem_type", "task_specific_params", "attn_implementation", "_attn_implementation", "gradient_checkpointing",
    "pretraining_tp", "tokenizer_class", "prefix", "decoder_start_token_id", "finetuning_task", "auto_map",
    "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "dropout", "activation_dropout", "classifier_dropout", "layerdrop", "dropout_rate",
    "num_labels", "_num_labels", "output_past", "tf_legacy_loss", "torchscript", "transformers.js_config",
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "force_bos_token_to_be_generated",
    "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "remove_invalid_values",
    "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
}  # fmt: skip

# What may stand beside rotary positions; which of it counts depends on their kind.
_ROPE = {
    "rope_type", "type", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
    "beta_slow", "beta_fast", "attention_factor", "mscale", "mscale_all_dim", "truncate", "short_factor", "long_factor",
}  # fmt: skip

LAYER_KINDS = ("full_attention", "sliding_attention")

ACTIVATION_NAMES: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu", "relu2": "relu_squared",
    "quick_gelu": "quick_gelu", "tanh": "tanh",
}  # fmt: skip


def activation_name(activation: Activation) -> str:
    """What `Keys.activation` reads as it: the first of its names."""
    return next(name for name, kind in ACTIVATION_NAMES.items() if kind == activation)


class Keys:
    """The settings of a `config.json`, taken one by one; `finish` refuses what was not taken.

    place: the file, for messages. architecture: the one that is read.
    """

    def __init__(self, settings: Mapping[str, Any], place: str, architecture: str) -> None:
        self.settings, self.place, self.architecture = dict(settings), place, architecture
        self._taken: set[str] = set()

    def take(self, name: str, default: Any = None, *, required: bool = False) -> Any:
        """The setting, or `default` where it is absent or null."""
        self._taken.add(name)
        value = self.settings.get(name)
        if value is None and required:
            raise ModelError(f"{self.place} lacks {name}.")
        return default if value is None else value

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number; required unless there is a default."""
        value = self.take(name, default, required=default is None)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ModelError(f"{self.place}: {name} = {shown(value)} is not a whole number.")
        return value

    def depth(self, name: str, default: int | None = None) -> int:
        """A number of layers: small enough to be listed."""
        value = self.whole(name, default)
        if not 0 <= value <= MOST_LAYERS:
            raise ModelError(f"{self.place}: {name} = {value} is not between 0 and {MOST_LAYERS}.")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.take(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ModelError(f"{self.place}: {name} = {shown(value)} is not a number.")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ModelError(f"{self.place}: {name} = {shown(value)} is neither true nor false.")
        return value

    def activation(self, name: str, default: str) -> Activation:
        value = self.take(name, default)
        if not isinstance(value, str) or value not in ACTIVATION_NAMES:
            raise ModelError(
                f"{self.place}: {name} = {shown(value)} is not known.", f"Known: {', '.join(sorted(ACTIVATION_NAMES))}."
            )
        return ACTIVATION_NAMES[value]

    def labels(self) -> tuple[str, ...]:
        """The names of a classifier's classes, by their number; as transformers calls them where nothing is said."""
        names = self.take("id2label", {str(i): f"LABEL_{i}" for i in range(self.whole("num_labels", 2))})
        try:
            return tuple(str(names[str(number)]) for number in range(len(names)))
        except (KeyError, TypeError):
            raise ModelError(f"{self.place}: id2label = {shown(names)} does not number the classes from 0.") from None

    def fixed(self, **accepted: Any) -> None:
        """Settings that must be absent or have the one value that is computed here."""
        for name, value in accepted.items():
            if self.take(name, value) != value:
                raise ModelError(
                    f"{self.place}: {name} = {shown(self.settings[name])} is not supported for {self.architecture}.",
                    f"Supported: {shown(value)}.",
                )

    def ignore(self, *names: str) -> None:
        """Settings that are known to have no effect here."""
        self._taken.update(names)

    def rope(
        self, default_theta: float = 10_000.0, share: float = 1.0, nested: str | None = None, length: int = 2048
    ) -> RopeConfig:
        """`rope_parameters`, or the older `rope_theta`, `rope_scaling`, `partial_rotary_factor`. nested: the kind of
        layer whose parameters are wanted, where each has its own. length: `max_position_embeddings`, if not given.
        """
        inside = self.rope_settings(nested)
        theta = inside.number("rope_theta", self.number("rope_theta", default_theta))
        share = inside.number("partial_rotary_factor", self.number("partial_rotary_factor", share))
        scaling = self._scaling(inside, length)
        inside.finish()
        return RopeConfig(theta, share, scaling=scaling)

    def rope_settings(self, nested: str | None = None) -> Keys:
        """What stands in `rope_parameters`, or in the older `rope_scaling`."""
        new, old = self.take("rope_parameters") or {}, self.take("rope_scaling") or {}
        if new and old and new != old:
            raise ModelError(f"{self.place} has rope_scaling beside rope_parameters, and they differ.", "Keep one.")
        found = new or old
        if not isinstance(found, dict):
            raise ModelError(f"{self.place}: rope_parameters = {shown(found)} cannot be read.")
        inside = Keys(found, f"{self.place}, rope_parameters", self.architecture)
        if nested is not None and any(kind in found for kind in LAYER_KINDS):
            inside.ignore(*LAYER_KINDS)
            inside.finish()
            inside = Keys(inside.take(nested, {}), f"{inside.place}.{nested}", self.architecture)
        inside.ignore(*_ROPE)
        return inside

    def _scaling(self, inside: Keys, length: int) -> RopeScaling | None:
        found = inside.settings
        kind = found.get("rope_type") or found.get("type") or "default"
        longest = self.whole("max_position_embeddings", length)
        original: Any = found.get("original_max_position_embeddings") or self.settings.get(
            "original_max_position_embeddings"
        )
        try:
            match kind:
                case "default":
                    return None
                case "linear" | "dynamic":
                    return RopeScaling(kind, found["factor"], longest)
                case "llama3":
                    low, high = found["low_freq_factor"], found["high_freq_factor"]
                    return RopeScaling("llama3", found["factor"], original or longest, low, high)
                case "yarn":
                    factor = found.get("factor") or longest / original
                    return RopeScaling(
                        "yarn", factor, original or longest, found.get("beta_slow") or 1, found.get("beta_fast") or 32,
                        _yarn_attention(found, factor), found.get("truncate", True),
                    )  # fmt: skip
                case "longrope" | "su":  # as Phi-3's first folders call it
                    factor = longest / original if original else found.get("factor", 1.0)
                    return RopeScaling(
                        "longrope", factor, original or longest, attention_factor=found.get("attention_factor"),
                        short_factors=tuple(found["short_factor"]), long_factors=tuple(found["long_factor"]),
                    )  # fmt: skip
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise ModelError(
                f"{self.place}: the rope parameters of kind {shown(kind)} are incomplete ({error})."
            ) from None
        raise ModelError(
            f"{self.place}: rope type {shown(kind)} is not known.",
            "Known: default, linear, dynamic, llama3, yarn, longrope.",
        )

    def finish(self) -> None:
        """Raises ModelError for a setting that was not read and is not off."""
        for name, value in self.settings.items():
            if name not in self._taken and name not in _WITHOUT_EFFECT and value not in (None, False, {}, [], ""):
                raise ModelError(
                    f"{self.place} has a setting that {self.architecture} is not known to have: "
                    f"{name} = {shown(value)}.",
                    "It would change the model in a way not known here.",
                )


def _yarn_attention(found: Mapping[str, Any], factor: float) -> float | None:
    """YaRN's factor of cosines and sines; None for the usual one. DeepSeek gives two numbers whose ratio it is."""

    def growth(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    given, scale, all_dims = found.get("attention_factor"), found.get("mscale"), found.get("mscale_all_dim")
    if given is not None:
        return given
    return growth(scale) / growth(all_dims) if scale and all_dims else None
