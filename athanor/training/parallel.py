"""The processes that train together, and the few things they say to one another.

A group of one costs nothing and does nothing. More are started by `torchrun`, or by anything that sets its environment
variables; they talk through gloo on a CPU and NCCL on GPUs. Only the first process writes files and speaks to the
person at the keyboard.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch

from athanor.base.errors import AthanorError
from athanor.base.progress import set_quiet
from athanor.training.batches import Batch

Number = TypeVar("Number", int, float)
DeviceWish = Literal["auto", "cpu", "cuda"]
TIMEOUT = timedelta(minutes=15)  # for one collective operation: longer than any step or evaluation between two takes
_LISTENS = timedelta(seconds=60)  # at a time; how long the first process works alone does not matter
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_LOST = (
    "gloo/transport",
    "Connection closed by peer",
    "Connection reset",
    "Broken pipe",
    "NCCL",
    "TCPStore",
    "recvValue",
)


@dataclass(frozen=True)
class Group:
    """rank: this process's place, from 0 on. size: how many processes there are; local_size: on this machine. device:
    where this one computes. store: what all can read and write.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    store: Any = field(default=None, compare=False, repr=False)
    _messages: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes; every process gets the same bits."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(numbers)
        return numbers.tolist()

    def agree(self, value: Number) -> Number:
        """What the first process says; for what the clock or a disk decides, which may look different to each."""
        if self.size == 1:
            return value
        number = torch.tensor([value], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(number, 0)
        return type(value)(number.item())

    def largest(self, value: int) -> int:
        """That of all processes; for what may happen to any of them."""
        if self.size == 1:
            return value
        number = torch.tensor([value], dtype=torch.int64, device=self.device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return int(number)

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Around what a disk may refuse to any process: an error of one is an error of all, so that none goes on and
        waits for those that do not. Nothing within may wait for other processes.
        """
        if self.size == 1:
            yield
            return
        failure: AthanorError | OSError | None = None
        try:
            yield
        except (AthanorError, OSError) as error:
            failure = error
        failed = self.sums([float(failure is not None)])[0]
        if failure is not None:
            raise failure
        if failed:
            raise AthanorError("Another process of this job could not write.", "Its own message says why.")

    def tell(self, message: Mapping[str, Any] | None) -> None:
        """From the first process to all others, which `hear` it."""
        if self.size > 1:
            self.store.set(f"message {next(self._messages)}", json.dumps(message))

    def told(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the first process says, in all of them. Raises AthanorError where it has ended instead."""
        if self.is_first:
            self.tell(message)
            return message
        if (said := self.hear()) is None:
            raise AthanorError("The first process of this job has ended.", "Its own message says why.")
        return said

    def hear(self) -> dict[str, Any] | None:
        """The first process's next message, however long it takes. No device is kept busy meanwhile."""
        key = f"message {next(self._messages)}"
        while True:
            with suppress(torch.distributed.DistStoreError):  # nothing yet
                self.store.wait([key], _LISTENS)
                found: dict[str, Any] | None = json.loads(self.store.get(key))
                return found

    def share(self, batch: Batch, micro_rows: int) -> list[Batch]:
        """This process's micro-batches of a batch that all have alike: equally many on each, so that collective
        operations meet; where the rows do not go round, the last ones have no targets.
        """
        rows = -(-len(batch.tokens) // self.size)
        shares = batch.split(rows)
        parts = shares[self.rank].split(micro_rows) if self.rank < len(shares) else []
        missing = -(-rows // micro_rows) - len(parts)
        return parts + [batch.split(1)[0].without_targets()] * missing

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turns what torch raises when another process is gone into a sentence."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not any(sign in str(error) for sign in _LOST):
                raise
            raise AthanorError(
                f"Process {self.rank} of {self.size} stops, because another process of this job has stopped or cannot "
                "be reached.",
                "Its own message says why; the same command continues from the newest checkpoint.",
            ) from error


ALONE = Group()


@contextmanager
def connected(device: DeviceWish = "auto") -> Iterator[Group]:
    """The group this process was started in; one of its own where no launcher has set RANK and WORLD_SIZE. Each
    process computes on its own GPU where there is one, unless "cpu" is wished.

    Raises AthanorError for an incomplete or impossible environment, and where the others cannot be reached.
    """
    group, local = (ALONE, 0) if not {"RANK", "WORLD_SIZE"} & os.environ.keys() else _read_environment()
    group = replace(group, device=place(device, local))
    if group.size == 1:
        yield group
        return
    backend = "nccl" if group.device.type == "cuda" else "gloo"
    try:
        store = next(iter(torch.distributed.rendezvous("env://", group.rank, group.size, timeout=TIMEOUT)))[0]
        torch.distributed.init_process_group(
            backend,
            store=torch.distributed.PrefixStore("torch", store),
            timeout=TIMEOUT,
            rank=group.rank,
            world_size=group.size,
        )
    except (RuntimeError, ValueError) as error:
        raise AthanorError(
            f"Process {group.rank} could not reach the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({str(error).splitlines()[0]}).",
            "Check the address, the port and the firewall, and that all processes were started.",
        ) from None
    group = replace(group, store=torch.distributed.PrefixStore("athanor", store))
    set_quiet(not group.is_first)
    with group.explaining():
        yield group
    torch.distributed.destroy_process_group()  # not after an error: it would wait for processes that are gone


def place(wish: DeviceWish, local: int = 0) -> torch.device:
    """Where process number `local` of this machine computes. Raises AthanorError where there is no such device."""
    if not torch.cuda.is_available() or wish == "cpu":
        if wish == "cuda":
            raise AthanorError('device = "cuda", but torch finds no GPU.', "`athanor doctor` says what there is.")
        return ALONE.device
    if local >= torch.cuda.device_count():
        raise AthanorError(
            f"Process {local} of this machine has no GPU: there are {torch.cuda.device_count()}.",
            'Start as many processes as GPUs (--nproc-per-node), or set device = "cpu".',
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    compute_exactly()
    return device


def compute_exactly() -> None:
    """The same bits from the same input, which on a GPU costs a little and must be asked for."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads such memory


def _read_environment() -> tuple[Group, int]:
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        found = "RANK" if "RANK" in os.environ else "WORLD_SIZE"
        raise AthanorError(
            f"{', '.join(missing)} is not set in the environment, but {found} is.",
            "Start with torchrun, or set all of " + ", ".join(_VARIABLES) + ".",
        )
    try:
        rank, size, local = (int(os.environ[name]) for name in _VARIABLES[:3])
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    except ValueError:
        raise AthanorError("RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers.") from None
    if not 0 <= rank < size or local < 0 or local_size < 1:
        raise AthanorError(f"RANK = {rank} is not one of WORLD_SIZE = {size} processes.", "They count from 0.")
    return Group(rank, size, local_size), local
