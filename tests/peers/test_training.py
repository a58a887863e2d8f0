"""What `benchmarks/_peers.py` measures: each program trains the network that it was given, on that text; what a peer
saves is read here, and has learnt something.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from athanor.corpus.document import Document
from athanor.corpus.shards import Shards, write_shards
from athanor.models.build import count_parameters
from athanor.models.config import standard_config
from athanor.models.folder import load_decoder

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from _peers import ATHANOR, LITGPT, TRANSFORMERS, Program, Setting, Task, alternate, training  # noqa: E402

pytestmark = pytest.mark.peers
VOCABULARY, LENGTH = 64, 16


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A small network, and text that counts upwards."""
    folder = tmp_path_factory.mktemp("text") / "train"
    documents = [Document("." * 100, str(i), "counting", "", "und") for i in range(50)]
    write_shards(
        documents, lambda texts: [[1 + i % (VOCABULARY - 1) for i in range(100)] for _ in texts], 0, folder, VOCABULARY
    )
    return Task(standard_config(VOCABULARY, LENGTH, d_model=64, n_layers=2), folder / "tokens.npy", 16, LENGTH)


def needs(program: Program) -> pytest.MarkDecorator:
    installed = ROOT / ".peers" / str(program.environment) / ".installed"
    return pytest.mark.skipif(not installed.exists(), reason=f"make peers installs {program.name}")


PEERS = [
    pytest.param(TRANSFORMERS, TRANSFORMERS.default, marks=needs(TRANSFORMERS)),
    pytest.param(
        LITGPT, LITGPT.default.but("plain", {"environment": {"TORCHDYNAMO_DISABLE": "1"}}), marks=needs(LITGPT)
    ),
]


@pytest.mark.parametrize(("peer", "setting"), PEERS)
def test_a_peer_trains_our_network_in_its_time(peer: Program, setting: Setting, task: Task, tmp_path: Path) -> None:
    seconds, out = 5.0, tmp_path / "model"
    with training(peer, setting, task, seconds=seconds, out=str(out), options=peer.adamw(3e-3)) as run:
        said = run.answer()
        run.finish()
    assert said["seconds"] < 1.5 * seconds
    assert said["tokens"] == said["steps"] * task.rows * task.length
    model = load_decoder(out)
    assert model.config.layers == task.model.layers
    assert count_parameters(model.config) == count_parameters(task.model)
    rows = torch.from_numpy(np.array(Shards.open(task.tokens.parent).tokens[:1600], dtype=np.int64)).view(-1, LENGTH)
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(model(rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    assert float(loss) < 0.7 * math.log(VOCABULARY)


@pytest.mark.parametrize(("peer", "setting"), PEERS)
def test_windows_take_turns(peer: Program, setting: Setting, task: Task) -> None:
    with training(ATHANOR, ATHANOR.default, task) as ours, training(peer, setting, task) as theirs:
        assert ours.answer()["settled"] > 0 < theirs.answer()["settled"]
        assert all(100 < speed < 1e7 for speed in alternate([ours, theirs], 0.5, 2))
