"""What each number format costs: bits per byte, mean KL to fp32 in nats a token, and the share of tokens at which
another is the likeliest; and the bytes of weights that a token passes, and of keys and values that it leaves.

SmolLM2-135M-Instruct, on texts of the packaged test sets: its file has blocks of Q4_1, which `--format auto` computes
with, and `int8` and `int4` too, with activations of 8 bits instead of 16. fp32 is these unpacked, and what is called
quantised again was made from that, as from a folder with such weights (Q4_1 finds the same numbers again). Then the
model that a run in ./runs made last, on what the run held out. Formats of the first rung are those of torch's own
products, with rows and scales in bf16. With Q4_0 and Q4_1 embedding and head have Q8_0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _rows import row

from athanor.base.errors import ModelError
from athanor.base.machine import usable_cores
from athanor.engine.language_model import LanguageModel, load
from athanor.engine.locate import find_model, latest_model
from athanor.engine.native_rung import NativeRung
from athanor.engine.rung import Rung, Segment
from athanor.engine.rungs import open_rung
from athanor.engine.torch_rung import TorchRung
from athanor.evaluation.test_sets import packaged_test_texts
from athanor.models.build import count_parameters
from athanor.models.decoder import Decoder
from athanor.models.gguf.blocks import TAKEN, Blocks
from athanor.models.gguf.packing import pack

ISSUE = "D"
PIVOTED = True  # performance_page.py makes one line of the metrics with the same beginning, up to the colon
TEXTS, LEAST, MOST = 14, 500, 160  # texts, characters of the shortest, tokens that are read of each


def rows() -> Iterator[dict[str, Any]]:
    torch.set_num_threads(usable_cores())
    yield from _of("SmolLM2-135M-Instruct", "smollm2-135m-instruct", _packaged_texts())
    try:
        place = latest_model()
    except ModelError:
        return  # no run here
    held_out = place.parents[1] / "corpus" / "documents" / "heldout.jsonl"
    yield from _of("the model of a run", place, _held_out_texts(held_out))


@dataclass(frozen=True)
class _Said:
    """logs: (tokens, vocabulary) log-probabilities before each token of all texts. targets: these tokens."""

    logs: torch.Tensor
    targets: torch.Tensor

    @property
    def nats(self) -> float:
        return -float(self.logs.gather(1, self.targets[:, None]).double().sum())


def _of(name: str, place: str | Path, texts: list[str]) -> Iterator[dict[str, Any]]:
    lm, file = load(place, dtype=torch.float32), find_model(place)
    name = f"{name}, {count_parameters(lm.model.config) / 1e6:.1f} M"
    prompts = [_ids(lm, text) for text in texts]
    size = sum(len(lm.tokenizer.decode(ids[1:]).encode()) for ids in prompts)
    exact: _Said | None = None
    for form, make in _formats(lm.model, file).items():
        rung = make()
        said = _read(rung, prompts)
        exact = exact or said
        divergence = (exact.logs.exp() * (exact.logs - said.logs)).sum(1).double().mean()
        changed = (exact.logs.argmax(1) != said.logs.argmax(1)).double().mean()
        measured = {
            "bits per byte": (said.nats / np.log(2) / size, ""),
            "KL": (max(0.0, float(divergence)), "nats"),
            "other top token": (float(changed), ""),
            **({"weights a token": (rung.weights.bytes_per_token / 1e6, "MB")} if isinstance(rung, NativeRung) else {}),
            "cache a token": (rung.bytes_per_block / rung.block_size / 1e3, "kB"),
        }
        for what, (value, unit) in measured.items():
            yield row(f"{name}, {form}: {what}", float(value), unit)


def _formats(model: Decoder, file: Path) -> Mapping[str, Callable[[], Rung]]:
    """What makes a rung, by what it is called, fp32 first."""
    found: dict[str, Callable[[], Rung]] = {}
    again = ""
    if file.suffix == ".gguf":
        again = ", quantised again"
        found |= {f"--format {form}": partial(open_rung, model, form, file) for form in ("auto", "int8", "int4")}
    found |= {form: partial(NativeRung, model, form) for form in ("fp32", "bf16")}
    found |= {f"{form}{again}": partial(NativeRung, model, form) for form in ("int8", "int4")}
    found["bf16, int8 cache"] = partial(NativeRung, model, "bf16", cache="int8")
    found |= {f"first rung, {form}{again}": partial(TorchRung, model, form) for form in ("int8", "int4")}
    for kind in TAKEN:
        blocks = _quantised(model, kind)
        found[f"{kind}{again}"] = partial(NativeRung, model, "bf16", wide=True, blocks=blocks)
    return {"fp32": found.pop("fp32"), **found}


def _quantised(model: Decoder, kind: str) -> dict[str, Blocks]:
    made = {}
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and weight.shape[1] % 32 == 0:
            own = kind if name.startswith("blocks.") else "Q8_0"
            made[name] = Blocks(own, torch.from_numpy(pack(weight, own)).view(len(weight), -1), own)
    return made


def _ids(lm: LanguageModel, text: str) -> np.ndarray:
    start = lm.tokenizer.start_ids or [lm.tokenizer.end_of_text_id]
    return np.array([start[-1], *lm.tokenizer.encode(text)][:MOST], dtype=np.int32)


def _read(rung: Rung, prompts: list[np.ndarray]) -> _Said:
    rung.allocate(-(-MOST // rung.block_size))
    logs = []
    for ids in prompts:
        blocks = np.arange(-(-(len(ids) - 1) // rung.block_size), dtype=np.int32)
        logits = rung.forward([Segment(ids[:-1], 0, blocks, len(ids) - 1)])
        logs.append(torch.from_numpy(logits).log_softmax(1))
    return _Said(torch.cat(logs), torch.from_numpy(np.concatenate([ids[1:] for ids in prompts])).long())


def _packaged_texts() -> list[str]:
    return _spread([text for _, text in packaged_test_texts() if len(text) >= LEAST])


def _held_out_texts(path: Path) -> list[str]:
    with open(path, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    return _spread([text for text in texts if len(text) >= LEAST])


def _spread(texts: list[str]) -> list[str]:
    return texts[:: max(1, len(texts) // TEXTS)][:TEXTS]
