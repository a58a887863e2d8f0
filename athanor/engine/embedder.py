"""`athanor.load_embedder`: an encoder and its tokenizer as one object that turns texts into vectors to compare.

A folder of sentence-transformers says in `modules.json` how it pools; without one, the mean over the tokens is taken.
The vectors have length one, so that the dot product of two is their cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from athanor.base.errors import DataError, ModelError, TokenizerError
from athanor.base.files import read_json
from athanor.base.progress import progress
from athanor.engine.locate import find_model
from athanor.models.encoder import Encoder
from athanor.models.folder import load_model
from athanor.models.sentences import Pooling, embed
from athanor.tokenizer.foreign import library_errors
from athanor.tokenizer.limits import check_limits

_TOGETHER = 32  # texts at a time, of like length
_SHOWN_FROM = 256  # texts for which a bar is worth it


class Embedder:
    """max_length: tokens of a text that are read, the control tokens included; what comes after is cut off."""

    def __init__(self, model: Encoder, tokenizer: Any, max_length: int, pooling: Pooling = "mean") -> None:
        if tokenizer.get_vocab_size() > model.config.vocab_size:
            raise ModelError(
                f"The tokenizer has {tokenizer.get_vocab_size()} ids, the model only {model.config.vocab_size}.",
                "They belong to different models.",
            )
        tokenizer.no_padding()
        with library_errors():
            tokenizer.enable_truncation(max_length)
        self.model, self.max_length, self.pooling = model, max_length, pooling
        self._tokenizer = tokenizer
        self._padding = model.config.embedding.padding_id or 0  # masked; where positions depend on it, the model's own

    @property
    def dimension(self) -> int:
        return self.model.config.d_model

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, dimension) float32, each row of length one. Raises DataError for what is no text."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise DataError("Only a list of texts can be embedded.", 'For one text: embed(["text"])[0].')
        ids = self._ids(list(texts))
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
        vectors = np.empty((len(ids), self.dimension), dtype=np.float32)
        with progress("Embedding", len(ids), "text") if len(ids) >= _SHOWN_FROM else nullcontext() as bar:
            for start in range(0, len(order), _TOGETHER):
                some = order[start : start + _TOGETHER]
                vectors[some] = self._vectors([ids[i] for i in some])
                if bar:
                    bar.update(len(some))
        return vectors

    def _ids(self, texts: list[str]) -> list[list[int]]:
        with library_errors():
            try:
                ids = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
            except (UnicodeEncodeError, TypeError):
                raise TokenizerError("A text holds a lone surrogate, which is not a Unicode character.") from None
        if (largest := max((max(row, default=0) for row in ids), default=0)) >= self.model.config.vocab_size:
            raise TokenizerError(f"The tokenizer gives the id {largest}, which the model does not have.")
        return ids

    @torch.inference_mode()
    def _vectors(self, ids: list[list[int]]) -> np.ndarray:
        tokens = torch.full((len(ids), max(1, *map(len, ids))), self._padding, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, each in enumerate(ids):
            tokens[row, : len(each)] = torch.tensor(each)
            mask[row, : len(each)] = 1
        vectors: np.ndarray = embed(self.model, tokens, mask, self.pooling).float().numpy()
        return vectors


def load_embedder(name: str | Path, *, dtype: torch.dtype | None = None) -> Embedder:
    """Loads an encoder to embed texts with: what `athanor.load` takes, where it leads to a folder of an encoder.

    Raises ModelError or TokenizerError when a file is missing, corrupt, or of a kind that is not read.
    """
    folder = find_model(name)
    if folder.suffix == ".gguf":
        raise ModelError(f"{folder} continues texts and does not embed them.", "Take an encoder's folder.")
    pooling = _pooling(folder)
    tokenizer = _tokenizer(folder)
    model = load_model(folder, dtype)
    if not isinstance(model, Encoder):
        raise ModelError(f"{folder} holds no encoder to embed texts with: {type(model).__name__}.", "Take an encoder.")
    return Embedder(model, tokenizer, _max_length(folder, model), pooling)


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise TokenizerError(
            f"{folder} has no tokenizer.json.", "transformers writes it: AutoTokenizer.save_pretrained."
        )
    try:
        with library_errors():
            check_limits(read_json(file))
            return Tokenizer.from_file(str(file))
    except TokenizerError as error:
        raise TokenizerError(f"{file}: {error.message}", error.hint) from None


def _settings(file: Path) -> dict[str, Any]:
    found = read_json(file) if file.is_file() else {}
    if not isinstance(found, dict):
        raise ModelError(f"{file} is not a JSON object.")
    return found


def _max_length(folder: Path, model: Encoder) -> int:
    """The least of what the model has places for, and what its files say."""
    said = (
        _settings(folder / "sentence_bert_config.json").get("max_seq_length"),
        _settings(folder / "tokenizer_config.json").get("model_max_length"),
    )
    return min([model.config.max_seq_len, *(each for each in said if isinstance(each, int) and each > 2)])


def _pooling(folder: Path) -> Pooling:
    """What the folder's modules ask for. Raises ModelError for what `embed` does not do."""
    file = folder / "modules.json"
    modules = read_json(file) if file.is_file() else []
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"{file} is not a list of modules.")
    kinds = {str(module.get("type")).rsplit(".", 1)[-1]: module for module in modules}
    if strange := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise ModelError(f"{file} asks for {min(strange)}.", "Read are Transformer, Pooling and Normalize.")
    if "Pooling" not in kinds:
        return "mean"
    place = folder / Path(str(kinds["Pooling"].get("path", ""))).name / "config.json"
    modes = {name for name, value in _settings(place).items() if name.startswith("pooling_mode_") and value is True}
    if modes <= {"pooling_mode_mean_tokens"}:
        return "mean"
    if modes == {"pooling_mode_cls_token"}:
        return "first"
    raise ModelError(f"{place} asks for {', '.join(sorted(modes))}.", "Read are mean_tokens or cls_token.")
