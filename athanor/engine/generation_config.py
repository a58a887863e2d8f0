"""The sampling settings that a model folder brings along in its `generation_config.json`.

What means the same here becomes a default; what is said there and has no counterpart is named aloud, for answers would
otherwise differ from transformers' without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from athanor.base.errors import AthanorError, ModelError
from athanor.base.files import read_json
from athanor.base.progress import say
from athanor.engine.sampling import Sampling

_DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_SETTINGS = {
    **{name: name for name in (*_DRAWING, "repetition_penalty", "no_repeat_ngram_size", "suppress_tokens")},
    "max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "stop_strings": "stop",
}  # fmt: skip
_SEARCHED = {"num_beams": "beams", "length_penalty": "length_penalty", "early_stopping": "early_stopping"}
_NEUTRAL: dict[str, Any] = {
    "forced_eos_token_id": None, "forced_decoder_ids": None, "begin_suppress_tokens": None, "sequence_bias": None,
    "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "num_beam_groups": 1, "penalty_alpha": None,
    "diversity_penalty": 0.0, "exponential_decay_length_penalty": None, "guidance_scale": None, "max_time": None,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None, "renormalize_logits": False, "constraints": None,
    "force_words_ids": None, "watermarking_config": None, "num_return_sequences": 1, "dola_layers": None,
}  # fmt: skip
"""What has no counterpart, and the value with which it does nothing."""


def defaults_of(folder: Path, samples: bool = True, begun: int | None = None) -> Sampling:
    """What `generation_config.json` says. samples: or greedy, whatever it says. begun: tokens that answers begin with,
    which an encoder–decoder's lengths count; a decoder's count its prompts, which are not known here.

    Raises ModelError for what cannot be used.
    """
    path = folder / "generation_config.json"
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object.")
    found = {name: value for name, value in found.items() if value is not None}
    given = {ours: found[theirs] for theirs, ours in _SETTINGS.items() if theirs in found}
    given |= _lengths(found, begun)
    if not samples:
        given = {name: value for name, value in given.items() if name not in _DRAWING}
        given["temperature"] = 0.0
        given |= {ours: found[theirs] for theirs, ours in _SEARCHED.items() if theirs in found}
    bad = found.get("bad_words_ids")
    words = [word for word in bad if isinstance(word, list)] if isinstance(bad, list) else []
    alone = [word[0] for word in words if len(word) == 1]
    try:
        if alone:
            given["suppress_tokens"] = (*given.get("suppress_tokens", ()), *alone)
        sampling = Sampling(**given)
    except AthanorError as error:
        raise ModelError(f"{path}: {error.message}", error.hint) from None
    except TypeError as error:  # of a list that is none
        raise ModelError(f"{path} cannot be used: {error}.") from None
    _say_ignored(path, found, begun, len(alone) < len(words))
    return sampling


def _lengths(found: Mapping[str, Any], begun: int | None) -> dict[str, int]:
    """Of an encoder–decoder's answers, where the file counts what they begin with too."""
    if begun is None:
        return {}
    named = {"max_length": "max_tokens", "min_length": "min_tokens"}
    lengths = {
        ours: max(found[theirs] - begun, int(ours == "max_tokens"))
        for theirs, ours in named.items()
        if type(found.get(theirs)) is int and ours.replace("_", "_new_") not in found
    }
    return {ours: length for ours, length in lengths.items() if length}


def _say_ignored(path: Path, found: Mapping[str, Any], begun: int | None, longer_words: bool) -> None:
    ignored = [name for name, neutral in _NEUTRAL.items() if found.get(name, neutral) != neutral]
    if begun is None:
        ignored += [name for name in ("max_length", "min_length") if found.get(name)]
    ignored += ["bad_words_ids of several tokens"] if longer_words else []
    if ignored:
        say(f"{path.name} of {path.parent.name}: {', '.join(ignored)} {'is' if len(ignored) == 1 else 'are'} ignored.")
