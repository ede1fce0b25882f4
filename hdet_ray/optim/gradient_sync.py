"""Gradient sync by teams: who shares gradients changes at a boundary, and nothing is rebuilt.

DDP keeps its buckets, its overlap with the backward pass and its all-reduce in C++: only the process group
that its reducer averages over is another one. With the whole world as team, DDP is as it was.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.gradient_flags import GradientFlags

_IS_TAKEN = "_hdet_switches_teams"
"""Marks a DDP module whose teams are switched already: it has room for one."""


class TeamSync:
    """Averages a DDP module's gradients over this rank's team.

    Until ``use`` is called, the team is DDP's own process group and everything is as without this class.

    Args:
        model: The DDP-wrapped module (or what ``torch.compile`` made of it), without a communication hook.

    Raises:
        ConfigError: ``model`` is not DDP, has a communication hook or belongs to a scheduler.
    """

    def __init__(self, model: nn.Module) -> None:
        ddp = _require_ddp(model)
        _require_free(ddp)
        # Hooks hold this object: held in return, the model would never be freed.
        self._model = weakref.ref(model)
        self._world: dist.ProcessGroup = ddp.process_group
        self._group: dist.ProcessGroup = self._world
        self._alone: dist.ProcessGroup | None = None
        self._syncs_buffers = bool(getattr(ddp, buffer_switch(ddp)))
        self._flags = GradientFlags()
        self._bucket_watch: RemovableHandle | None = None
        vars(ddp)[_IS_TAKEN] = True
        _last_ready(ddp).register_post_accumulate_grad_hook(self._flags.note_gradient_of)

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
        model = self._model()
        if model is None:
            return
        ddp = _require_ddp(model)
        if is_whole_world:
            self._group = self._world
        else:
            self._group = group if group is not None and size > 1 else self._group_of_one()
            self._lay_out_buckets_together(model, ddp)
        ddp.reducer._update_process_group(self._group)
        setattr(ddp, buffer_switch(ddp), self._syncs_buffers and is_whole_world)

    def first_nonfinite(self) -> int | None:
        """How many backward passes of this rank were finite before its first that was not.

        Reading it begins the count anew; one host-device sync. A shared gradient spoils everyone's weights,
        and with them all later gradients: the rank with the smallest number brought it.

        Returns:
            The number since the last call, None if all were finite.
        """
        return self._flags.first_nonfinite()

    def _group_of_one(self) -> dist.ProcessGroup:
        # Not by leaving the sync out, as `no_sync` does: loops switch that on and off themselves.
        if self._alone is None:
            self._alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
        return self._alone

    def _lay_out_buckets_together(self, model: nn.Module, ddp: DistributedDataParallel) -> None:
        """DDP lays its buckets out anew before the second forward pass, and rank 0 tells in which order: all
        ranks, not those of a team, or a later team of other ranks would add up different buckets."""
        if self._bucket_watch is not None or ddp._has_rebuilt_buckets:
            return
        rebuilt = weakref.ref(ddp)

        # A function, not a method: a deep copy of the model must not copy this object.
        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def before_forward(_module: nn.Module, _inputs: Any) -> None:
            ddp = rebuilt()
            if ddp is None or not torch.is_grad_enabled():
                return
            if not ddp._has_rebuilt_buckets:
                ddp.reducer._update_process_group(self._world)
                ddp._has_rebuilt_buckets = bool(ddp.reducer._rebuild_buckets())
                ddp.reducer._update_process_group(self._group)
            if ddp._has_rebuilt_buckets:
                watch.remove()

        watch = self._bucket_watch = model.register_forward_pre_hook(before_forward)


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


def _require_free(model: DistributedDataParallel) -> None:
    if _IS_TAKEN in vars(model):
        raise ConfigError(
            "model already belongs to another scheduler of this library; a model has room for one: wrap the "
            "module in a new DistributedDataParallel"
        )
    hooks = model._comm_hooks
    if not hooks and not _has_hook_of_torchs_own(model):
        return
    name = repr(getattr(hooks[0][0], "__qualname__", hooks[0][0])) if hooks else "of torch's own"
    raise ConfigError(
        f"model already has the communication hook {name}, which shares gradients with all ranks; leave out "
        "its register_comm_hook, or wrap the module in a new DistributedDataParallel"
    )


def _has_hook_of_torchs_own(model: DistributedDataParallel) -> bool:
    """Hooks built into torch leave no trace in Python, but in what DDP logs."""
    logged = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    return bool(logged.get("comm_hook"))


def _last_ready(model: DistributedDataParallel) -> nn.Parameter:
    """The parameter whose gradient is computed last: what is not finite further on has come through it."""
    ignored = set(model.parameters_to_ignore)
    return next(p for name, p in model.module.named_parameters() if p.requires_grad and name not in ignored)
