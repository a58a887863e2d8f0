"""`athanor.load_embedder`: an encoder and its tokenizer as one object that turns texts into vectors to compare.

A folder of sentence-transformers says in `modules.json` how it pools; without one, the mean over the tokens is taken.
The vectors have length one, so that the dot product of two is their cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from athanor.base.errors import DataError, ModelError
from athanor.base.files import read_json
from athanor.base.progress import progress
from athanor.engine.locate import find_model
from athanor.models.encoder import Encoder
from athanor.models.folder import load_model
from athanor.models.sentences import Pooling, embed
from athanor.tokenizer.folder import from_folder
from athanor.tokenizer.foreign import ForeignTokenizer

_TOGETHER = 32  # texts at a time, of like length
_SHOWN_FROM = 256  # texts for which a bar is worth it


class TextReader:
    """An encoder that reads texts, those of like length at a time. max_length: tokens of a text that are read, control
    tokens included; what comes after is cut off.
    """

    def __init__(self, model: Encoder, tokenizer: ForeignTokenizer, max_length: int) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ModelError(
                f"The tokenizer has {tokenizer.vocab_size} ids, the model only {model.config.vocab_size}.",
                "They belong to different models.",
            )
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length
        self._padding = model.config.embedding.padding_id or 0  # masked; where positions depend on it, the model's own

    def read(
        self, texts: Sequence[str], width: int, rows: Callable[[Tensor, Tensor], Tensor], description: str
    ) -> np.ndarray:
        """(texts, width) float32. rows: (ids, mask) → that of some texts. Control tokens in a text are ordinary text.

        Raises DataError for what is no text, TokenizerError for a text with a lone surrogate.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise DataError("Only a list of texts can be read.", 'For one text: ["text"], and the first result.')
        ids = [self._ids(text) for text in texts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
        vectors = np.empty((len(ids), width), dtype=np.float32)
        with progress(description, len(ids), "text") if len(ids) >= _SHOWN_FROM else nullcontext() as bar:
            for start in range(0, len(order), _TOGETHER):
                some = order[start : start + _TOGETHER]
                vectors[some] = self._rows([ids[i] for i in some], rows)
                if bar:
                    bar.update(len(some))
        return vectors

    def _ids(self, text: str) -> list[int]:
        start, end = self.tokenizer.start_ids, self.tokenizer.end_ids
        return [*start, *self.tokenizer.encode(text)[: self.max_length - len(start) - len(end)], *end]

    @torch.inference_mode()
    def _rows(self, ids: list[list[int]], rows: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
        tokens = torch.full((len(ids), max(1, *map(len, ids))), self._padding, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, each in enumerate(ids):
            tokens[row, : len(each)] = torch.tensor(each)
            mask[row, : len(each)] = 1
        device = next(self.model.parameters()).device
        found: np.ndarray = rows(tokens.to(device), mask.to(device)).float().cpu().numpy()
        return found


class Embedder(TextReader):
    """Texts as vectors of length one."""

    def __init__(self, model: Encoder, tokenizer: ForeignTokenizer, max_length: int, pooling: Pooling = "mean") -> None:
        super().__init__(model, tokenizer, max_length)
        self.pooling = pooling

    @property
    def dimension(self) -> int:
        return self.model.config.d_model

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, dimension) float32, each row of length one. Raises what `read` raises."""
        return self.read(texts, self.dimension, partial(embed, self.model, pooling=self.pooling), "Embedding")


def load_embedder(name: str | Path, *, dtype: torch.dtype | None = None) -> Embedder:
    """Loads an encoder to embed texts with: what `athanor.load` takes, where it leads to a folder of an encoder.

    Raises ModelError or TokenizerError when a file is missing, corrupt, or of a kind that is not read.
    """
    folder = find_model(name)
    if folder.suffix == ".gguf":
        raise ModelError(f"{folder} continues texts and does not embed them.", "Take an encoder, say all-minilm-l6-v2.")
    pooling, tokenizer = _pooling(folder), from_folder(folder)
    model = load_model(folder, dtype)
    if not isinstance(model, Encoder):
        raise ModelError(f"{folder} holds no encoder to embed texts with: {type(model).__name__}.", "Take an encoder.")
    return Embedder(model, tokenizer, longest_read(folder, model), pooling)


def _settings(file: Path) -> dict[str, Any]:
    found = read_json(file) if file.is_file() else {}
    if not isinstance(found, dict):
        raise ModelError(f"{file} is not a JSON object.")
    return found


def longest_read(folder: Path, model: Encoder) -> int:
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
