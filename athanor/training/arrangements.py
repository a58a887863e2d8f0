"""How a model lies in the processes that train it: whole in one, a copy in each (DDP), or a part in each (FSDP2).

The loop asks an arrangement for losses, gradients, steps and checkpoints, and does not know which it has; a model file
knows nothing of this at all. Where there are several processes, each trainable parameter has one owner: that process
alone keeps the parameter's optimizer state and computes its step from the whole gradient, as ZeRO does (Rajbhandari et
al. 2020), but matrix by matrix, because Muon's Newton-Schulz iterations need whole ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from athanor.base.errors import AthanorError
from athanor.models.attention import CrossAttention
from athanor.models.block import Block
from athanor.models.stack import Stack
from athanor.training.averaging import AverageKind, WeightAverage
from athanor.training.batches import Batch
from athanor.training.checkpoints import (
    Checkpoint,
    CheckpointWriter,
    Retention,
    checkpoint_of,
    find_checkpoint,
)
from athanor.training.objectives import Loss
from athanor.training.optimizers import Optimizer, OptimizerConfig, clip_gradients, make_optimizer
from athanor.training.parallel import Group
from athanor.training.roles import places

Objective = Callable[[Any, Any], Loss]


class Whole:
    """One process with the whole model. holds_weights: whether they are there between micro-batches too."""

    optimizer: Optimizer
    holds_weights = True

    def __init__(
        self, model: Any, objective: Objective, config: OptimizerConfig, average: AverageKind, group: Group
    ) -> None:
        self.model, self.objective, self.group = model.to(group.device), objective, group
        self.optimizer = make_optimizer(model, config)
        self.average = None if average == "none" else WeightAverage(model, average)

    def share(self, batch: Batch, micro_rows: int) -> list[Batch]:
        """The micro-batches that this process learns from."""
        return batch.split(micro_rows)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Around a micro-batch's loss and backward pass; gradients are exchanged after the last one only."""
        return nullcontext()

    def loss(self, part: Batch) -> Loss:
        return self.objective(self.model, part)

    def clip(self, largest: float) -> float:
        """Bounds the joint norm of all gradients; returns what it was."""
        return float(clip_gradients(self.model.parameters(), largest))

    def step(self, number: int, rate: float) -> None:
        self.optimizer.step(number, rate)

    def evaluate(self, measure: Callable[[Any], Mapping[str, float]]) -> Mapping[str, float]:
        return measure(self.model)

    def writer(self, folder: Path, retention: Retention, missed: Callable[[], None]) -> CheckpointWriter:
        """Of checkpoints of `state`."""
        return CheckpointWriter(folder, retention, missed)

    def state(self) -> dict[str, Tensor]:
        """The tensors that training depends on, not copied: as the writer wants them. All processes must ask for it."""
        return self._state()

    def find(self, folder: Path) -> tuple[Checkpoint | None, int]:
        """The newest checkpoint that is whole, and how many newer ones are not."""
        return find_checkpoint(folder)

    def load(self, checkpoint: Checkpoint) -> None:
        """Raises KeyError, ValueError or RuntimeError for the state of another model."""
        tensors = checkpoint.tensors()
        weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        self.model.load_state_dict(weights)
        self.optimizer.load_state({k.removeprefix("optimizer."): v for k, v in tensors.items()})
        if self.average is not None:
            self.average.load_state({k.removeprefix("average."): v for k, v in tensors.items()})

    def whole_model(self) -> Any:
        """The model with its trained weights, on the CPU; on the first process at least."""
        return self.model.to("cpu")

    def _state(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {f"model.{k}": v.detach() for k, v in self.model.named_parameters()}
        tensors |= {f"optimizer.{k}": v for k, v in self.optimizer.state.items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.state.items()}
        return tensors


class _Several(Whole):
    """What the arrangements over several processes share. around: `_Around` the model, as DDP or FSDP wrapped it."""

    around: Any

    def __init__(self, model: Any, objective: Objective, group: Group) -> None:
        self.model, self.objective, self.group = model, objective, group
        self.owners = assign_owners(model, group.size)

    def share(self, batch: Batch, micro_rows: int) -> list[Batch]:
        return self.group.share(batch, micro_rows)

    def find(self, folder: Path) -> tuple[Checkpoint | None, int]:
        found, unusable = find_checkpoint(folder) if self.group.is_first else (None, 0)  # one process checks the hashes
        step = self.group.agree(-1 if found is None else int(found.numbers["step"]))
        return None if step < 0 else checkpoint_of(folder, step), unusable

    def loss(self, part: Batch) -> Loss:
        def parts(model: Any) -> tuple[Tensor, int, Mapping[str, float]]:  # in which the wrapper finds the tensor
            loss = self.objective(model, part)
            return loss.sum, loss.count, loss.metrics

        return Loss(*self.around(parts))

    def _check_gradients(self) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                raise AthanorError(
                    f"{name} has no gradient, and several processes can only train what all of them move.",
                    "Train with one process; in Python, freeze it with requires_grad_(False).",
                )


class Replicated(_Several):
    """The whole model in every process; gradients are summed while the backward pass still runs (DDP)."""

    def __init__(
        self, model: Any, objective: Objective, config: OptimizerConfig, average: AverageKind, group: Group
    ) -> None:
        super().__init__(model.to(group.device), objective, group)
        self.parameters = dict(model.named_parameters())
        owned = {name: self.parameters[name] for name, owner in self.owners.items() if owner == group.rank}
        self.optimizer = make_optimizer(_with_only(model, owned), config)
        self.average = None if average == "none" else WeightAverage(model, average)  # the same in every process
        self.around = nn.parallel.DistributedDataParallel(_Around(model), gradient_as_bucket_view=True)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.around.no_sync()

    def clip(self, largest: float) -> float:
        return self.group.agree(super().clip(largest))

    def step(self, number: int, rate: float) -> None:
        self._check_gradients()
        self.optimizer.step(number, rate)
        for owner in range(self.group.size):
            theirs = [self.parameters[name] for name, one in self.owners.items() if one == owner]
            _broadcast(theirs, owner)

    def writer(self, folder: Path, retention: Retention, missed: Callable[[], None]) -> CheckpointWriter:
        return _FirstWrites(folder, retention, missed, self.group)

    def state(self) -> dict[str, Tensor]:
        """The whole state, on the first process."""
        state = self._state()
        names: list[Any] = [None] * self.group.size
        dist.all_gather_object(names, {k: tuple(v.shape) for k, v in self.optimizer.state.items()})
        for owner, shapes in enumerate(names[1:], start=1):
            for name, shape in shapes.items():
                if self.group.rank == owner:
                    dist.send(self.optimizer.state[name].contiguous(), 0)
                elif self.group.is_first:
                    state[f"optimizer.{name}"] = torch.empty(shape, device=self.group.device)
                    dist.recv(state[f"optimizer.{name}"], owner)
        return state


class Sharded(_Several):
    """A part of every parameter, gradient and optimizer state in each process, gathered block by block (FSDP2)."""

    holds_weights = False

    def __init__(
        self, model: Any, objective: Objective, config: OptimizerConfig, average: AverageKind, group: Group
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__(model, objective, group)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        given = dict(model.named_parameters())
        self.owned = {
            name: nn.Parameter(given[name].detach().to(group.device, copy=True))
            for name, owner in self.owners.items()
            if owner == group.rank
        }
        self.optimizer = make_optimizer(_with_only(model, self.owned), config)
        self._without_weights = _with_only(model, {})  # with all that is no parameter, such as a memory's table
        mesh = init_device_mesh(group.device.type, (group.size,))
        shared = any(isinstance(module, Stack) and module.config.sharing for module in model.modules())
        # Shared blocks would be gathered again and again.
        for module in () if shared else reversed(list(model.modules())):
            if isinstance(module, CrossAttention):  # sources are read by these alone, before their block is asked
                fully_shard(module.key, mesh=mesh)
                fully_shard(module.value, mesh=mesh)
            if isinstance(module, Block):
                fully_shard(module, mesh=mesh)  # which also moves it to the device: none has to hold them all
        self.around = fully_shard(_Around(model), mesh=mesh)
        self.average = None if average == "none" else WeightAverage(model, average)  # of this process's parts

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        self.around.set_requires_gradient_sync(last)
        return nullcontext()

    def clip(self, largest: float) -> float:
        gradients = [p.grad.to_local() for p in self.model.parameters() if p.grad is not None]
        squares = [float(part.square().sum(dtype=torch.float64)) for part in gradients]
        norm = torch.tensor(math.sqrt(self.group.sums([sum(squares)])[0]), dtype=torch.float32)
        factor = (largest / (norm + 1e-6)).clamp(max=1.0).item()
        for part in gradients:
            part.mul_(factor)
        return float(norm)

    def step(self, number: int, rate: float) -> None:
        self._check_gradients()
        gradients = {name: p.grad for name, p in self.model.named_parameters() if name in self.owners}
        for name, whole in self._gather({name: g.to_local() for name, g in gradients.items()}).items():
            self.owned[name].grad = whole
        self.optimizer.step(number, rate)
        for parameter in self.owned.values():
            parameter.grad = None
        self._scatter()

    def evaluate(self, measure: Callable[[Any], Mapping[str, float]]) -> Mapping[str, float]:
        with torch.no_grad():
            values: Mapping[str, float] = self.around(measure)
        self.around.reshard()  # else the next forward pass would take the weights gathered for this one
        return values

    def writer(self, folder: Path, retention: Retention, missed: Callable[[], None]) -> CheckpointWriter:
        from athanor.training.sharded_checkpoints import ShardedWriter

        return ShardedWriter(folder, retention, missed, self.group)

    def load(self, checkpoint: Checkpoint) -> None:
        from athanor.training.sharded_checkpoints import load_sharded

        load_sharded(checkpoint.path, self._state())
        local = {name: p.detach().to_local() for name, p in self.model.named_parameters() if name in self.owners}
        with torch.no_grad():
            for name, whole in self._gather(local).items():
                self.owned[name].copy_(whole)

    def whole_model(self) -> Any:
        """The gathered model; one without memory on the other processes."""
        whole, state = self._without_weights, {}
        for name, parameter in self.model.named_parameters():
            gathered = parameter.detach().full_tensor()
            if self.group.is_first:
                state[name] = gathered.cpu()
        if self.group.is_first:
            whole.load_state_dict(state, assign=True)
            for name, parameter in whole.named_parameters():
                parameter.requires_grad_(name in self.owners)
        return whole

    def _rows(self, name: str, rank: int) -> int:
        """Of the parameter's first dimension, in a process: as torch.chunk divides them."""
        rows = self.shapes[name][0]
        most = -(-rows // self.group.size)
        return max(0, min(most, rows - rank * most))

    def _gather(self, local: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole tensors of what this process owns, from every process's parts of all."""
        size = self.group.size
        sent = [[local[name] for name, owner in self.owners.items() if owner == rank] for rank in range(size)]
        shapes = [[(self._rows(name, rank), *self.shapes[name][1:]) for name in self.owned] for rank in range(size)]
        parts = _exchange(sent, shapes)
        return {name: torch.cat(rows) for name, *rows in zip(self.owned, *parts, strict=True)}

    @torch.no_grad()
    def _scatter(self) -> None:
        """Gives every process its parts of what each owns."""
        size = self.group.size
        chunks = {name: torch.split(p, [self._rows(name, r) for r in range(size)]) for name, p in self.owned.items()}
        sent = [[parts[rank] for parts in chunks.values()] for rank in range(size)]
        parameters = dict(self.model.named_parameters())
        names = [[name for name, owner in self.owners.items() if owner == rank] for rank in range(size)]
        local = [[parameters[name].to_local() for name in theirs] for theirs in names]
        received = _exchange(sent, [[tuple(part.shape) for part in parts] for parts in local])
        for parts, values in zip(local, received, strict=True):
            for part, value in zip(parts, values, strict=True):
                part.copy_(value)


class _FirstWrites(CheckpointWriter):
    """The first process writes, the others only come to know whether the last one could be written."""

    def __init__(self, folder: Path, retention: Retention, missed: Callable[[], None], group: Group) -> None:
        super().__init__(folder, retention, missed)
        self.group = group

    def announce(self, tensors: Mapping[str, Tensor]) -> None:
        if self.group.is_first:
            super().announce(tensors)

    def save(
        self, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], flush: Callable[[], None]
    ) -> None:
        if self.group.is_first:
            super().save(step, tensors, numbers, flush)

    def save_now(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        numbers: Mapping[str, Any],
        flush: Callable[[], None],
        retention: Retention | None = None,
    ) -> None:
        with self.group.all_or_none():
            if self.group.is_first:
                super().save_now(step, tensors, numbers, flush, retention)


def arrange(
    model: Any, objective: Objective, config: OptimizerConfig, average: AverageKind, group: Group, sharded: bool
) -> Whole:
    """The arrangement for this group; `sharded` where a whole model would not fit into one process."""
    if group.size == 1:
        return Whole(model, objective, config, average, group)
    return (Sharded if sharded else Replicated)(model, objective, config, average, group)


def assign_owners(model: nn.Module, size: int) -> dict[str, int]:
    """Trainable parameters by name → the process that steps them, with about equal work for each: a matrix is made
    orthogonal, which takes its shorter side times as much as what is only read and written.
    """
    costs = {
        place.name: place.parameter.numel() * (min(place.matrices[1:]) if place.role == "matrix" else 1)
        for place in places(model)
        if place.parameter.requires_grad
    }
    loads, owners = [0] * size, dict[str, int]()
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owner = loads.index(min(loads))
        owners[name], loads[owner] = owner, loads[owner] + costs[name]
    return {name: owners[name] for name in costs}


class _Around(nn.Module):
    """A module whose forward pass is whatever is done with the model: what DDP and FSDP can wrap, whose own one is only
    one of the things that objectives do with it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, do: Callable[[Any], Any]) -> Any:
        return do(self.model)


def _with_only(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> nn.Module:
    """The same modules with these parameters; all others are frozen and without memory."""
    replaced: dict[int, Any] = {
        id(old): parameters.get(name, nn.Parameter(torch.empty_like(old, device="meta"), requires_grad=False))
        for name, old in model.named_parameters()
    }
    return copy.deepcopy(model, replaced)


@torch.no_grad()
def _broadcast(tensors: Sequence[Tensor], owner: int) -> None:
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.broadcast(flat, owner)
    for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))


def _exchange(sent: list[list[Tensor]], shapes: list[list[tuple[int, ...]]]) -> list[list[Tensor]]:
    """sent: tensors for each process. shapes: of those that come from each. Returns these."""
    given = [tensor.detach().reshape(-1) for tensors in sent for tensor in tensors]
    sizes = [[math.prod(shape) for shape in group] for group in shapes]
    like = torch.cat(given)
    received = like.new_empty(sum(map(sum, sizes)))
    dist.all_to_all_single(
        received, like, [sum(group) for group in sizes], [sum(t.numel() for t in tensors) for tensors in sent]
    )
    whole = iter(received.split([size for group in sizes for size in group]))
    return [[next(whole).view(shape) for shape in group] for group in shapes]
