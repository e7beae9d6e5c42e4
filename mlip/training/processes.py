"""Several processes, one device each, that train one potential.

Each process takes its share of an epoch's batches; gradients are averaged over the processes after
every backward pass, so all make the same steps. A batch of the run is one batch of each process,
and its loss is the mean over all of its labels, however they are spread: N processes with batches
of B make the steps of one process with batches of N B. What has to be agreed on, because all must
do it at the same step (the learning rate under `max_time`, stopping, leaving on a signal), is told
by the process with the lowest rank or by the one that was asked.

The first process starts the others, or `torchrun` or `srun` start all.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from mlip.errors import ConfigError, TrainingError
from mlip.training.loss import HuberLoss

RUN_FOLDER = "MLIP_RUN_FOLDER"  # tells the processes that the first one starts where it writes
_OTHER_ENDED = re.compile(r"closed by peer|reset by peer|timed? ?out|nccl|gloo", re.IGNORECASE)


def number_of(trainer: Mapping[str, Any]) -> int:
    """Return how many processes the configuration asks for."""
    return int(trainer["devices"]) * int(trainer["num_nodes"])


def rank_of(trainer: Mapping[str, Any]) -> int:
    """Return which of them this is, from what starts processes leaves in the environment."""
    if number_of(trainer) == 1:
        return 0
    environment = os.environ
    if "RANK" in environment:  # torchrun
        return int(environment["RANK"])
    # the first process, for the others on its node; or a user, who starts one on each node
    if "LOCAL_RANK" in environment or "NODE_RANK" in environment:
        node = int(environment.get("NODE_RANK", "0"))
        return node * int(trainer["devices"]) + int(environment.get("LOCAL_RANK", "0"))
    return int(environment.get("SLURM_PROCID", "0"))


def check_started(trainer: Mapping[str, Any]) -> None:
    """Refuse to train in another number of processes than were started.

    Raises:
        ConfigError: with both numbers and what to do.
    """
    wanted = number_of(trainer)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        started, how = int(os.environ["WORLD_SIZE"]), "torchrun"
    elif wanted > 1 and "LOCAL_RANK" not in os.environ and SLURMEnvironment.detect():
        started, how = int(os.environ["SLURM_NTASKS"]), "SLURM (its tasks)"
    else:
        started, how = wanted, ""
    if started != wanted:
        raise ConfigError(
            f"trainer.devices={trainer['devices']} times trainer.num_nodes={trainer['num_nodes']} "
            f"is {wanted}, but {how} started {started}; make them equal, with srun or torchrun "
            "in front of the command where they are to be several"
        )
    if torch.cuda.is_available() and trainer["accelerator"] != "cpu":
        there = torch.cuda.device_count()
        if int(trainer["devices"]) > there:
            raise ConfigError(f"trainer.devices={trainer['devices']}, but torch finds {there} GPUs")


def shared_folder(given: Any, rank: int, trainer: Mapping[str, Any]) -> Any:
    """Return `out_dir` for a process; all must write and read in the same.

    Raises:
        ConfigError: processes that were started side by side have no name to agree on.
    """
    if number_of(trainer) == 1 or given is not None:
        return given
    told = os.environ.get(RUN_FOLDER) if rank > 0 else None
    if told is None and (rank > 0 or "RANK" in os.environ or "SLURM_PROCID" in os.environ):
        raise ConfigError("several processes must agree on the run folder: give out_dir")
    return told


def tell_folder(folder: Path) -> None:
    """Tell processes that are started from here where the run is."""
    os.environ[RUN_FOLDER] = str(folder)


@contextmanager
def processes(trainer: Mapping[str, Any]) -> Iterator[None]:
    """Train within this: what starting other processes leaves behind is taken away afterwards."""
    if number_of(trainer) == 1:
        yield
        return
    before = dict(os.environ)
    if trainer["num_threads"]:  # else Lightning divides the cores, also in the others
        os.environ.setdefault("OMP_NUM_THREADS", str(trainer["num_threads"]))
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def one_ends_all(trainer: L.Trainer) -> Iterator[None]:
    """Let an error in this process end the others, and say so if another one's ended this."""
    try:
        yield
    except BaseException as error:
        launcher = trainer.strategy.launcher
        if isinstance(trainer.strategy, AveragedGradients) and hasattr(launcher, "kill"):
            launcher.kill(signal.SIGKILL)  # type: ignore[union-attr]  they wait for this one
        if world_size() > 1 and isinstance(error, RuntimeError) and _OTHER_ENDED.search(str(error)):
            raise TrainingError(
                "another process of this run has ended; its message is above this one; "
                "continue with resume=auto"
            ) from error
        raise


def world_size() -> int:
    """Return how many processes are training together now."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return sums over all processes, float64 on the CPU; every process must call it."""
    own = [t.detach().double().cpu() for t in tensors]
    if world_size() == 1:
        return own
    flat = torch.cat([t.flatten() for t in own]).to(_device())
    dist.all_reduce(flat)
    parts = flat.cpu().split([t.numel() for t in own])
    return [part.view(t.shape) for part, t in zip(parts, own, strict=True)]


def largest(values: Sequence[float]) -> list[float]:
    """Return the largest of each value over all processes; every process must call it."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def gathered(value: str) -> list[str]:
    """Return the texts of all processes; every process must call it."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


@dataclass(frozen=True)
class SharedLoss(HuberLoss):
    """The mean over the labels of all processes, once their gradients have been averaged."""

    def combine(self, sums: dict[str, Tensor]) -> Tensor:
        """Return this process's part, times the number of processes; all must call it."""
        world = world_size()
        if world == 1:
            return super().combine(sums)
        counts = torch.stack([count for _, count in sums.values()]).detach()
        dist.all_reduce(counts)
        terms = [
            getattr(self, f"{name}_weight") * total * world / counts[k].clamp(min=1.0)
            for k, (name, (total, _)) in enumerate(sums.items())
        ]
        return torch.stack(terms).sum()

    def mean(self, values: Tensor) -> Tensor:
        """Return this process's part of the mean over all processes; all must call it."""
        if world_size() == 1:
            return super().mean(values)
        count = values.new_tensor(float(values.numel()))
        dist.all_reduce(count)
        return values.sum() * world_size() / count


class AveragedGradients(DDPStrategy):
    """One all-reduce after each backward pass, and no wrapper around the module.

    Forces are derivatives taken within the forward pass, and a batch may leave parameters without
    a gradient (an element or head that is not in it); hooks on parameters know neither. One that
    has no gradient on any process keeps none.
    """

    finite = True  # the gradient of this process, before the others' were added

    def configure_ddp(self) -> None:
        """Begin with the weights of the first process."""
        for tensor in _floating(self._module()):
            dist.broadcast(tensor, 0)

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average the gradients."""
        parameters = [p for p in self._module().parameters() if p.requires_grad]
        self.finite = True
        for dtype in sorted({p.dtype for p in parameters}, key=str):  # in one order everywhere
            own = [p for p in parameters if p.dtype == dtype]
            has = own[0].new_tensor([p.grad is not None for p in own])
            flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
            shared = torch.cat([has, *(g.flatten() for g in flat)])
            self.finite &= bool(torch.isfinite(shared.sum()))
            dist.all_reduce(shared)
            shared[len(own) :] /= world_size()
            present = shared[: len(own)].tolist()
            parts = shared[len(own) :].split([p.numel() for p in own])
            for p, part, processes in zip(own, parts, present, strict=True):
                p.grad = part.view_as(p) if processes else None

    def _module(self) -> nn.Module:
        if self.lightning_module is None:
            raise RuntimeError("no module is being trained")
        return self.lightning_module


def _floating(module: nn.Module) -> list[Tensor]:
    tensors = [*module.parameters(), *module.buffers()]
    return [t.detach() for t in tensors if t.is_floating_point()]
