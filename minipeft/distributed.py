"""Training by several processes: which rows each takes, how their gradients add up, what one of them tells the others.

`torchrun` starts a command several times and gives each process a number. All hold the same weights, each goes through
other rows of the same batch, and gradients are summed before the step, so the step is the one that a single process
would take, up to rounding. PyTorch's DistributedDataParallel sums while earlier gradients are still being computed.
Source: Li et al. 2020, §3.2.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minipeft.batches import MicroBatches, Rows
from minipeft.devices import choose_device

Told = TypeVar("Told")
SEEDS_APART = 100_000_007
"""Between the random numbers of one process and the next: what dropout draws for different rows must differ."""
SECONDS_TO_LET_GO = 0.2
"""For Gloo's threads, which outlive a group that DistributedDataParallel has used: one that still held the last message
while Python shuts down would abort the process (https://github.com/pytorch/pytorch/pull/179291)."""


class TeamLost(ValueError):
    """Another process of the run ended before its time."""


@dataclass(frozen=True)
class Share(Generic[Rows]):
    """What one process computes of a batch at once."""

    rows: Rows
    """Never none: where nothing is left for this process, a row of the batch stands in and weighs nothing."""
    weight: float
    """Its part of all that the batch scores, so that the weighted losses of all processes add up to the batch's."""
    last: bool
    """Whether the process takes its step after it."""


@dataclass(frozen=True)
class Team:
    """The processes of a run as one of them sees them. What returns the same everywhere must be called everywhere."""

    rank: int = 0
    """This process's number; number 0 is the writer, the only one that writes files and prints."""
    size: int = 1
    local_rank: int = 0
    """This process's number among those on its machine."""
    local_size: int = 1
    """How many of them are on this machine."""
    device: torch.device | None = None
    """Where this process computes; None: wherever it was told to, alone."""

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    def most_rows(self, rows: int) -> int:
        """How many of so many rows one process gets at most."""
        return -(-rows // self.size)

    def rows(self, batch: Rows) -> Rows:
        """This process's rows of a batch that all see; every row is one process's.

        They are dealt out in turn: rows of like length stand together, so all have about as much to do.
        """
        return batch[self.rank :: self.size]

    def shares(self, batch: Rows, micro: MicroBatches, scored: Callable[[Rows], int]) -> Iterator[Share[Rows]]:
        """This process's part of a batch, at most `micro.most` rows at once; as many shares in every process.

        `scored` counts what rows have in the loss, and must not be 0 for the whole batch.
        """
        total, parts = scored(batch), list(micro.cut(batch, self.size))
        if self.size == 1:  # what is not scored can be left out; in a team the others would wait for it
            parts = [part for part in parts if scored(part)]
        for number, part in enumerate(parts, start=1):
            rows, last = self.rows(part), number == len(parts)
            weight = scored(rows) / total
            yield Share(rows, weight, last) if weight else Share(_scored_row(batch, scored), 0.0, last)

    def loss_of(self, loss: Callable[..., Tensor], parameters: Iterable[nn.Parameter]) -> Callable[..., Tensor]:
        """`loss`, whose gradients of these parameters are summed over all processes; nothing else is ever sent.

        With `last=False` they stay with this process until a loss with `last=True`. The processes must start with the
        same parameters: those of the writer are sent once, here. Sharded weights come and go by themselves.
        """
        trained = list(parameters)
        if self.size == 1 or any(map(is_sharded, trained)):
            return lambda *batch, last=True: loss(*batch)
        return _SummedLoss(loss, trained)

    def sum(self, number: float) -> float:
        """The sum of every process's number."""
        if self.size == 1:
            return number
        total = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total)

    def any(self, *asked: bool) -> tuple[bool, ...]:
        """Of each question whether any process says yes: clocks and signals differ, what follows must not."""
        if self.size == 1:
            return asked
        answers = torch.tensor(asked, dtype=torch.int64)
        dist.all_reduce(answers)
        return tuple(bool(answer) for answer in answers)

    def broadcast(self, value: Told) -> Told:
        """The writer's value: a number, a text, or what is made of them."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        return held[0]

    def from_writer(self, function: Callable[[], Told]) -> Told:
        """What a function returns to the writer; the others do not call it. If it fails, the writer ends the run."""
        told = function() if self.is_writer else None
        return self.broadcast(told)  # type: ignore[return-value]

    def first_here_first(self, function: Callable[[], Told]) -> Told:
        """What a function that leaves files behind returns; on each machine one process calls it before the others."""
        told = function() if self.local_rank == 0 else None
        self.barrier()
        return function() if told is None else told

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            self.sum(0.0)

    def spread(self, tensor: Tensor | None, like: Tensor) -> Tensor:
        """The writer's tensor, for every process where `like` is; if that is sharded, its shard of it.

        `tensor`: None for all but the writer.
        """
        if self.size == 1:
            assert tensor is not None
            return tensor.to(like.device)
        own = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        if tensor is not None:
            own.copy_(tensor)
        if is_sharded(like):
            from torch.distributed.tensor import DTensor, distribute_tensor

            assert isinstance(like, DTensor)
            return distribute_tensor(own, like.device_mesh, like.placements)
        dist.broadcast(own, src=0)
        return own


ALONE = Team()


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds a part of it (PyTorch calls that a DTensor, and takes a while to import it)."""
    return hasattr(tensor, "full_tensor")


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor in one piece, for every process; they must all ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@contextmanager
def joined(device: str = "auto") -> Iterator[Team]:
    """The team that `torchrun` put this process into, within the block; ALONE if there is none.

    Gradients on GPUs go by NCCL, all else by Gloo. An error inside leaves at once, without a word to the others, which
    may wait for something else: torchrun then ends them.
    Raises ValueError if there is no such device for each process, TeamLost where another process ended before its time.
    """
    rank, size, local_rank, local_size = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    )
    if size == 1:
        yield ALONE
        return
    own = _own_device(device, local_rank)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
    team = Team(rank, size, local_rank, local_size, own)
    try:
        yield team
    except RuntimeError as error:
        if "by peer" not in str(error):  # Gloo: "Connection closed by peer", "Connection reset by peer"
            raise
        raise TeamLost(f"process {rank} stops, as another one ended; see what that one said.") from None
    team.barrier()  # the writer may still be writing, and hosts what the processes talk through
    dist.destroy_process_group()
    time.sleep(SECONDS_TO_LET_GO)


def _own_device(device: str, local_rank: int) -> torch.device:
    """The device that is this process's own: one of the GPUs, or the CPU, which all share."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; several processes can use cpu, or cuda, where each takes a GPU.")
    choose_device(device)
    if device == "cuda" and local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"there are {torch.cuda.device_count()} GPUs, and process {local_rank + 1} of this machine needs one of "
            "its own: lower --nproc-per-node."
        )
    return torch.device(device, local_rank) if device == "cuda" else torch.device(device)


def _scored_row(batch: Rows, scored: Callable[[Rows], int]) -> Rows:
    """The first row of a batch that has something to score, alone."""
    return next(row for row in (batch[i : i + 1] for i in range(len(batch))) if scored(row))


class _SummedLoss:
    """A loss through DistributedDataParallel."""

    def __init__(self, loss: Callable[..., Tensor], parameters: list[nn.Parameter]) -> None:
        module = _LossModule(loss, parameters)
        self.parallel = DistributedDataParallel(module, gradient_as_bucket_view=True)
        self.parallel.register_comm_hook(None, _summed)

    def __call__(self, *batch: Any, last: bool = True) -> Tensor:
        with nullcontext() if last else self.parallel.no_sync():
            return self.parallel(*batch)


class _LossModule(nn.Module):
    """What DistributedDataParallel takes: a module of the trained parameters alone, whose forward is the loss."""

    def __init__(self, loss: Callable[..., Tensor], parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.loss, self.trained = loss, nn.ParameterList(parameters)

    def forward(self, *batch: Any) -> Tensor:
        return self.loss(*batch)


def _summed(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The sum of the gradients: by itself DistributedDataParallel would average, but losses are shares already."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])
