"""The command in a process of its own, and a tiny model for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from athanor.base.downloads import cache_folder
from athanor.base.randomness import generator
from athanor.engine.native.library import NativeError, library

Athanor = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def kernels() -> Path:
    """The folder of the compiled kernels, so that not every cache needs its own; empty where there is no compiler."""
    with suppress(NativeError):
        library()
    folder = cache_folder() / "native"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def athanor(tmp_path: Path, kernels: Path) -> Athanor:
    """Runs `athanor ARGUMENTS` in an empty folder, with an empty cache."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "native").symlink_to(kernels, target_is_directory=True)

    def run(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"ATHANOR_CACHE": str(tmp_path / "cache"), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "athanor.cli.main", *map(str, arguments)]
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            cwd=tmp_path,
            env=environment,
            timeout=120,
        )

    return run


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, so that answers are noise: control tokens, half characters and all."""
    import torch

    from athanor.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
    from athanor.models.decoder import Decoder
    from athanor.models.folder import save_model
    from athanor.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["the old furnace burns slowly", "炉火慢慢燃烧，孩子们在读书。"] * 3, 384)
    model = Decoder(
        ModelConfig(
            tokenizer.vocab_size, 32, 4096, (LayerConfig(AttentionConfig(4, 2, 8, qk_norm="head"), MlpConfig(48)),) * 2
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = generator(3, "test model", name).standard_normal(parameter.shape, dtype=np.float32)
            parameter.copy_(torch.from_numpy(draw) * 0.3 + (parameter.dim() == 1))
        model.embedding.tokens.weight[list(tokenizer.stop_ids)] = 0.0  # rarely said
    folder = tmp_path_factory.mktemp("cli") / "model"
    tokenizer.save(folder, 4096)
    save_model(model, folder, end_of_text_id=tokenizer.end_of_text_id, stop_ids=tokenizer.stop_ids, lineage={})
    return folder
