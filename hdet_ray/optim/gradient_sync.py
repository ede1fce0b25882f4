"""Gradient sync by teams: who shares gradients changes at a boundary, and nothing is rebuilt.

DDP keeps its buckets and its overlap with the backward pass; one communication hook decides over which
process group each bucket is averaged. With the whole world as team, every bit is what plain DDP computes.
"""

# No postponed annotations in this file: DDP compares the hook's annotations with the types themselves.

import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.gradient_flags import GradientFlags


class TeamSync:
    """Averages a DDP module's gradients over this rank's team.

    Until ``use`` is called, the team is DDP's own process group and everything is as without this class.

    Args:
        model: The DDP-wrapped module (or what ``torch.compile`` made of it), without a communication hook.

    Raises:
        ConfigError: ``model`` is not DDP, or already has a communication hook.
    """

    def __init__(self, model: nn.Module) -> None:
        ddp = _require_ddp(model)
        # DDP's reducer keeps this object where Python's collector does not look: held in return, the model
        # would never be freed.
        self._model = weakref.ref(ddp)
        self._group: dist.ProcessGroup | None = ddp.process_group
        self._size: int = ddp.process_group.size()
        self._syncs_buffers = bool(getattr(ddp, buffer_switch(ddp)))
        self._flags = GradientFlags()
        self._on_their_way: list[tuple[dist.Work, torch.futures.Future[Tensor], Tensor]] = []
        _register(ddp, self)

    def use(self, group: dist.ProcessGroup | None, size: int, *, is_whole_world: bool) -> None:
        """Average gradients over ``group`` from the next backward pass on.

        Sends nothing and leaves gradients that are there alone; every rank calls it at the same boundary.

        Args:
            group: The team's process group; None for a rank that is alone.
            size: Ranks in the team; with 1 nothing is sent.
            is_whole_world: Whether the team is DDP's whole process group. Only then are buffers broadcast
                from rank 0 at each forward pass, if the model was wrapped so: between teams it would
                mix their BatchNorm statistics.
        """
        self._group = group if size > 1 else None
        self._size = size
        model = self._model()
        if model is not None:
            setattr(model, buffer_switch(model), self._syncs_buffers and is_whole_world)

    def first_nonfinite(self) -> int | None:
        """How many buckets of this rank's own gradients were finite before its first that was not.

        Reading it begins the count anew; one host-device sync a device. A shared gradient spoils everyone's
        weights, and with them all later gradients: the rank with the smallest number brought it.

        Returns:
            The number since the last call, None if all were finite.
        """
        return self._flags.first_nonfinite()

    def start(
        self,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[Tensor]:
        """Begin averaging a bucket of this rank's gradients; the future holds the mean."""
        gradients: Tensor = bucket.buffer()
        if self._group is None:
            self._flags.note(gradients)
            return _completed(gradients)
        # Multiplied before the sum, as DDP itself does: dividing rounds differently where the size is odd.
        self._flags.note_and_scale(gradients, 1.0 / self._size)
        work = self._group.allreduce([gradients])
        if not gradients.is_cpu:
            mean: torch.futures.Future[Tensor] = work.get_future().then(_first_tensor)
            return mean
        # On a host a callback would want Python in the backend's own thread, for each bucket. DDP waits for
        # all of them right after the last one: waiting in the last one's hook takes no longer.
        if bucket.index() == 0:
            self._on_their_way.clear()  # those of a backward pass that raised
        mean = torch.futures.Future()
        self._on_their_way.append((work, mean, gradients))
        if bucket.is_last():
            self._land()
        return mean

    def _land(self) -> None:
        for work, mean, gradients in self._on_their_way:
            work.wait()
            mean.set_result(gradients)
        self._on_their_way.clear()


def team_hook(
    state: TeamSync,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """DDP's side of ``TeamSync``: called once for each bucket of each synchronizing backward pass."""
    return state.start(bucket)


def buffer_switch(model: DistributedDataParallel) -> str:
    """The attribute that turns DDP's broadcast of buffers on and off; torch 2.13 renamed it."""
    return "forward_sync_buffers" if hasattr(model, "forward_sync_buffers") else "broadcast_buffers"


def ddp_of(model: nn.Module | None) -> DistributedDataParallel | None:
    """The DDP module that this is, or that ``torch.compile`` made it of."""
    module = getattr(model, "_orig_mod", model)  # torch.compile(ddp) keeps the original there.
    return module if isinstance(module, DistributedDataParallel) else None


def _require_ddp(model: nn.Module) -> DistributedDataParallel:
    found = ddp_of(model)
    if found is not None:
        return found
    module = getattr(model, "_orig_mod", model)
    if isinstance(getattr(module, "module", None), DistributedDataParallel):
        remedy = "pass the DistributedDataParallel module that it wraps"
    elif any(base.__name__ in ("FSDPModule", "FullyShardedDataParallel") for base in type(module).__mro__):
        remedy = "sharded models are not supported yet: wrap it in DistributedDataParallel instead"
    else:
        remedy = "wrap it: model = torch.nn.parallel.DistributedDataParallel(model), and pass that as model="
    raise ConfigError(
        f"model is a {type(module).__name__}, but teams of replicas need torch's DistributedDataParallel; "
        f"{remedy}"
    )


def _register(model: DistributedDataParallel, sync: TeamSync) -> None:
    remedy = (
        "a model has room for one: leave out its register_comm_hook (and any other scheduler of this "
        "library), or wrap the module in a new DistributedDataParallel"
    )
    if hooks := model._comm_hooks:
        name = getattr(hooks[0][0], "__qualname__", repr(hooks[0][0]))
        raise ConfigError(f"model already has the communication hook {name!r}; {remedy}")
    try:
        model.register_comm_hook(state=sync, hook=team_hook)
    except RuntimeError as error:  # Hooks built into torch leave no trace in Python.
        if "once" not in str(error):
            raise
        raise ConfigError(f"model already has a communication hook of torch's own; {remedy}") from error


def _completed(value: Tensor) -> torch.futures.Future[Tensor]:
    future: torch.futures.Future[Tensor] = torch.futures.Future(
        devices=[] if value.device.type == "cpu" else [value.device]
    )
    future.set_result(value)
    return future


def _first_tensor(future: torch.futures.Future[Any]) -> Tensor:
    tensor: Tensor = future.value()[0]
    return tensor
