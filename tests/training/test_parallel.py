"""Several processes: they learn what one learns, continue what another number began, and stop when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from athanor.base.errors import AthanorError
from athanor.base.files import read_json, read_jsonl
from athanor.training.arrangements import assign_owners
from athanor.training.batches import IGNORED, PackedBatches
from athanor.training.parallel import Group, connected
from athanor.training.roles import places
from athanor.training.soft_targets import SoftBatch
from tests.training.test_every_objective import EVERY

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or not torch.distributed.is_available(), reason="needs fork and torch.distributed"
)
_SCRIPT, _ROOT = Path(__file__).with_name("processes.py"), Path(__file__).parents[2]


def run(*groups: tuple[int, list[dict[str, Any]]]) -> tuple[list[dict[str, Any]], str]:
    """What became of the groups' processes, and what they said."""
    spec = [{"size": size, "jobs": [job | {"folder": str(job["folder"])} for job in jobs]} for size, jobs in groups]
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), json.dumps(spec)],
        capture_output=True, text=True, check=True, timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (_ROOT, *sys.path[1:])))},
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def assert_all_went_well(outcomes: list[dict[str, Any]], said: str) -> None:
    assert all(status == 0 for outcome in outcomes for status in outcome["statuses"]), said


def assert_same(one: Path, other: Path, rel: float = 2e-5, but: float = 0.0) -> None:
    """The same losses, gradients, evaluations and weights, up to the order of sums; the same batches. but: the share of
    a weight's entries that may differ, for where a gradient cancels, Adam's step is that of its rounding.
    """
    lines = [read_jsonl(folder / "metrics.jsonl") for folder in (one, other)]
    assert [line["step"] for line in lines[0]] == list(range(1, len(lines[0]) + 1))
    for line, same in zip(*lines, strict=True):
        assert same == pytest.approx(line, rel=rel)
    weights, same_weights = (load_file(folder / "weights.safetensors") for folder in (one, other))
    for name, weight in weights.items():
        if name.endswith("attention.key.bias"):  # which changes no attention: its gradient is nothing but rounding
            continue
        differ = ~torch.isclose(same_weights[name], weight, rtol=50 * rel, atol=rel)
        assert differ.float().mean() <= but, f"{name}: {differ.sum()} of {differ.numel()}"
    if not (one / "model").exists():
        return
    exported = load_file(other / "model" / "model.safetensors")
    assert exported.keys() == load_file(one / "model" / "model.safetensors").keys()
    assert (one / "model" / "config.json").read_bytes() == (other / "model" / "config.json").read_bytes()
    assert exported["model.embed_tokens.weight"].equal(same_weights["embedding.tokens.weight"])


_SHORT = {"steps": 4, "micro_rows": 1}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], str]:
    """What is tried always, in one go, since importing torch takes longest; folder, outcomes, and what was said."""
    folder = tmp_path_factory.mktemp("parallel")
    groups = (
        (1, [{"folder": folder / "one"}]),
        (2, [{"folder": folder / "copies"}, {"folder": folder / "parts", "sharded": True}]),
        (2, [{"folder": folder / "dying", "dies": 1}]),
        (2, [{"folder": folder / "failing", "fails": 1}]),
        (2, [{"folder": folder / "unused", "unused": True}]),
        (1, [{"folder": folder / "one discriminator", **_SHORT, "learns": "discriminator"}]),
        (2, [{"folder": folder / "two discriminators", **_SHORT, "learns": "discriminator", "sharded": True}]),
    )
    return folder, *run(*groups)


@pytest.mark.parametrize("arrangement", ["copies", "parts"])
def test_two_processes_learn_what_one_learns(arrangement: str, done: tuple[Path, list[dict[str, Any]], str]) -> None:
    folder, outcomes, said = done
    assert_all_went_well(outcomes[:2], said)
    assert_same(folder / "one", folder / arrangement)


def test_two_processes_learn_another_objective(done: tuple[Path, list[dict[str, Any]], str]) -> None:
    folder, outcomes, said = done
    assert_all_went_well(outcomes[5:], said)
    assert_same(folder / "one discriminator", folder / "two discriminators", but=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("learns", [make.__name__ for make in EVERY])
def test_two_processes_learn_every_objective(learns: str, tmp_path: Path) -> None:
    job = {**_SHORT, "learns": learns}
    outcomes, said = run(
        (1, [{"folder": tmp_path / "one", **job}]),
        (2, [{"folder": tmp_path / "copies", **job}, {"folder": tmp_path / "parts", "sharded": True, **job}]),
    )
    assert_all_went_well(outcomes, said)
    for arrangement in ("copies", "parts"):
        assert_same(tmp_path / "one", tmp_path / arrangement, but=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("learns", ["bert", "discriminator"])
def test_rows_that_do_not_go_round_teach_encoders_the_same(learns: str, tmp_path: Path) -> None:
    job = {**_SHORT, "learns": learns}
    outcomes, said = run(
        (1, [{"folder": tmp_path / "one", **job}]), (3, [{"folder": tmp_path / "three", "sharded": True, **job}])
    )
    assert_all_went_well(outcomes, said)
    assert_same(tmp_path / "one", tmp_path / "three", but=0.03)


def test_when_one_process_ends_the_others_stop_and_say_so(done: tuple[Path, list[dict[str, Any]], str]) -> None:
    _, (_, _, dying, failing, *_), said = done
    assert (dying["statuses"], failing["statuses"]) == ([2, -9], [2, 2]), said
    assert max(dying["seconds"], failing["seconds"]) < 20
    assert said.count("process 0: Process 0 of 2 stops, because another process of this job has stopped") == 2
    assert said.count("process 1: This process has had enough.") == 1


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_a_signal_to_one_ends_all_after_the_same_step_and_they_continue(sharded: bool, tmp_path: Path) -> None:
    """With an average of the weights, and the best checkpoint kept, as in one process."""
    one, cut = ({"folder": tmp_path / name, "average": "ema", "best": "heldout"} for name in ("one", "cut"))
    (_, stopped, *continued), said = run(
        (1, [one]),
        (2, [{**cut, "sharded": sharded, "signalled": int(not sharded)}]),
        (2, [{**cut, "sharded": not sharded, "stop_after": 8}]),
        (2, [{**cut, "sharded": sharded}]),
    )
    assert stopped["statuses"] == [128 + signal.SIGTERM] * 2, said
    assert_all_went_well(continued, said)
    assert_same(tmp_path / "one", tmp_path / "cut")
    kept = [sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir()) for name in ("one", "cut")]
    assert kept[0] == kept[1]
    assert read_json(tmp_path / "cut" / "incidents.json")["timing"]["resumed"] == 2


def test_what_not_all_processes_could_move_is_refused(done: tuple[Path, list[dict[str, Any]], str]) -> None:
    _, outcomes, said = done
    assert outcomes[4]["statuses"] == [2, 2], said
    assert "blocks.0.unused.weight has no gradient" in said


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_four_processes_and_rows_that_do_not_go_round(sharded: bool, tmp_path: Path) -> None:
    uneven = {"rows": 5, "micro_rows": 1, "steps": 6}
    outcomes, said = run(
        (1, [{"folder": tmp_path / "one"}, {"folder": tmp_path / "uneven one", **uneven}]),
        (4, [
            {"folder": tmp_path / "four", "sharded": sharded},
            {"folder": tmp_path / "uneven", "sharded": sharded, **uneven},
        ]),
    )  # fmt: skip
    assert_all_went_well(outcomes, said)
    assert_same(tmp_path / "one", tmp_path / "four")
    assert_same(tmp_path / "uneven one", tmp_path / "uneven")


@pytest.mark.slow
def test_counts_as_targets_and_memory_in_three_processes(tmp_path: Path) -> None:
    job = {"memory": True, "steps": 6}
    outcomes, said = run(
        (1, [{"folder": tmp_path / "one", **job}]),
        (3, [{"folder": tmp_path / "copies", **job}, {"folder": tmp_path / "parts", "sharded": True, **job}]),
    )
    assert_all_went_well(outcomes, said)
    for arrangement in ("copies", "parts"):
        assert_same(tmp_path / "one", tmp_path / arrangement)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_the_bits_in_two_processes(precision: str, tmp_path: Path) -> None:
    job = {"precision": precision}
    outcomes, said = run(
        (1, [{"folder": tmp_path / "one", **job}]),
        (2, [{"folder": tmp_path / "copies", **job}, {"folder": tmp_path / "parts", "sharded": True, **job}]),
    )
    assert_all_went_well(outcomes, said)
    for arrangement in ("copies", "parts"):
        assert_same(tmp_path / "one", tmp_path / arrangement, rel=3e-3)


@pytest.mark.slow
def test_recomputed_blocks_in_two_processes(tmp_path: Path) -> None:
    jobs = [{"folder": tmp_path / "copies"}, {"folder": tmp_path / "parts", "sharded": True}]
    outcomes, said = run((1, [{"folder": tmp_path / "one"}]), (2, [job | {"recompute": "blocks"} for job in jobs]))
    assert_all_went_well(outcomes, said)
    for arrangement in ("copies", "parts"):
        assert_same(tmp_path / "one", tmp_path / arrangement)


@pytest.mark.slow
def test_another_number_of_processes_continues(tmp_path: Path) -> None:
    """One whole run; the others change hands after the third, sixth and eighth step, and how the model lies."""
    folder = tmp_path / "handed on"
    outcomes, said = run(
        (1, [{"folder": tmp_path / "one"}]),
        (2, [{"folder": folder, "sharded": True, "stop_after": 3}]),
        (4, [{"folder": folder, "sharded": True, "stop_after": 6}]),
        (2, [{"folder": folder, "stop_after": 8}]),
        (1, [{"folder": folder, "stop_after": 9}]),
        (3, [{"folder": folder, "sharded": True}]),
    )
    assert_all_went_well(outcomes, said)
    assert_same(tmp_path / "one", folder)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_after_a_death_the_others_did_not_lose_what_was_saved(sharded: bool, tmp_path: Path) -> None:
    outcomes, said = run(
        (1, [{"folder": tmp_path / "one"}]),
        (2, [{"folder": tmp_path / "cut", "sharded": sharded, "dies": 0}]),
        (2, [{"folder": tmp_path / "cut", "sharded": sharded}]),
    )
    assert [outcome["statuses"][-1] for outcome in outcomes] == [0, 2, 0], said
    assert_same(tmp_path / "one", tmp_path / "cut")


@pytest.mark.parametrize("soft", [False, True])
def test_every_row_is_shared_out_once(make_batches: Any, soft: bool) -> None:
    source: PackedBatches = make_batches()
    batch = source.next()
    if soft:
        words = torch.zeros(*batch.tokens.shape, 3, dtype=torch.int64)
        batch = SoftBatch(**batch.columns, words=words, shares=words.float(), taught=words.float())
    for size in (1, 2, 3, 4, 7):
        shares = [Group(rank, size).share(batch, micro_rows=2) for rank in range(size)]
        assert len({len(parts) for parts in shares}) == 1  # else collective operations would not meet
        learnt = [part for parts in shares for part in parts if (part.targets != IGNORED).any()]
        assert torch.cat([part.tokens for part in learnt]).equal(batch.tokens)
        assert sum(part.n_targets for part in learnt) == batch.n_targets
        assert type(learnt[0]) is type(batch)


def test_the_work_of_the_optimizer_is_divided_evenly(make_model: Any) -> None:
    model = make_model(0)
    owners = assign_owners(model, 2)
    assert owners.keys() == {name for name, _ in model.named_parameters()}
    work = [
        sum(
            one.parameter.numel() * (min(one.matrices[1:]) if one.role == "matrix" else 1)
            for one in places(model)
            if owners[one.name] == rank
        )
        for rank in (0, 1)
    ]
    assert max(work) < 0.6 * sum(work)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "not one of WORLD_SIZE = 2"),
        ({"RANK": "a", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "must be whole numbers"),
    ],
)
def test_an_impossible_environment_is_explained(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    if len(variables) > 1:
        variables = variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AthanorError, match=message):
        with connected():
            pass


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with connected() as group:
        assert group == Group()
        assert group.agree(3) == 3
        assert group.sums([1.5]) == [1.5]
