"""Setup: from a scheduler's arguments to its parts, checked on every rank at once.

Making a scheduler is collective. What any rank finds wrong is raised on all, so that none waits for one
that has given up; what must be equal between ranks is compared before anything trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from hdet_ray.config import Auto, Controller, Fixed, Paper, Thresholds, resolve_controller
from hdet_ray.core.codec import HParamKey, to_json
from hdet_ray.core.one_cycle import OneCycle
from hdet_ray.core.replay import first_difference
from hdet_ray.core.state import Explored, ScheduleConfig
from hdet_ray.exceptions import ConfigError, HDETError
from hdet_ray.optim.collective import Collective
from hdet_ray.optim.control import Control, LocalControl
from hdet_ray.optim.gradient_sync import TeamSync, ddp_of
from hdet_ray.optim.group_entries import separate_entries
from hdet_ray.optim.hyperparameters import BoundHyperparameter, HyperparameterLike, resolve
from hdet_ray.optim.mesh import current_session
from hdet_ray.optim.noise import add_warm_noise
from hdet_ray.optim.probes import Probe
from hdet_ray.optim.rounds import Rounds
from hdet_ray.optim.weights import Weights

T = TypeVar("T")

_TORCH_DIV_FACTORS = 25.0 * 1e4
"""From a peak to one-cycle's floor by torch's defaults, for a base that has no floor of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunArguments:
    """A scheduler's arguments; `HDETOneCycleLR` documents them."""

    optimizer: Optimizer
    base: Callable[[], tuple[OneCycle | None, int]]
    """One-cycle and the number of steps; raises ConfigError."""
    controller: str | Controller = "auto"
    model: nn.Module | None = None
    probe: Callable[[int], Any] | None = None
    probe_samples: int = 64
    hyperparameters: Sequence[HyperparameterLike] = ()
    seed: int = 0
    process_group: dist.ProcessGroup | None = None
    mesh: DeviceMesh | None = None
    control: Control | None = None
    bounds: Mapping[str, tuple[float, float]] | None = None
    average_optimizer_state: bool = True
    warm_noise: float = 0.0
    max_rollbacks: int = 3
    thresholds: Thresholds | None = None
    grad_scaler: Any = None
    first_step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a scheduler is made of."""

    arguments: RunArguments
    config: ScheduleConfig
    rounds: Rounds
    model: nn.Module | None
    grad_scaler: Any
    needs_loss: bool
    """The controller compares training losses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What was checked on this rank alone."""

    config: ScheduleConfig
    hyperparameters: Sequence[BoundHyperparameter] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tied:
    """What holds on to the user's model and probe."""

    sync: TeamSync | None
    probe: Probe | None


def assemble(arguments: RunArguments) -> Parts:
    """Check, compare between ranks, and build.

    Raises:
        ConfigError: on every rank; names the value, its bound and the remedy.
    """
    a = arguments
    mesh = a.mesh or (current_session().mesh if a.process_group is None else None)
    collective = Collective.connect(a.process_group, mesh)
    prepared = on_every_rank(collective, lambda: _prepare(a, collective))
    config = prepared.config
    _check_equal(collective, a, config)
    tied = on_every_rank(collective, lambda: _tie(a, config, collective))
    separate_entries(a.optimizer)
    ddp = ddp_of(a.model)
    module = a.model if ddp is None else ddp.module
    weights = Weights(
        a.optimizer,
        module,
        collective,
        averages_optimizer_state=a.average_optimizer_state,
        grad_scaler=a.grad_scaler,
    )
    if a.warm_noise:
        add_warm_noise(weights.parameters, a.warm_noise, seed=a.seed, replica=collective.replica)
    rounds = Rounds(
        config,
        collective,
        a.control or LocalControl(),
        weights=weights,
        sync=tied.sync,
        probe=tied.probe,
        hyperparameters=prepared.hyperparameters,
        first_step=a.first_step,
    )
    return Parts(
        arguments=a,
        config=config,
        rounds=rounds,
        model=a.model,
        grad_scaler=a.grad_scaler,
        needs_loss=needs_loss(config, collective.num_replicas, is_searching=rounds.state.is_searching),
    )


def on_every_rank(collective: Collective, build: Callable[[], T]) -> T:
    """What this rank builds; where any rank fails, an error on all of them. Collective.

    Raises:
        HDETError: this rank's own error, or one that names the rank that had it.
    """
    try:
        built = build()
    except HDETError as error:
        collective.agree(error)
        raise
    except Exception as error:  # whatever a strange argument raises: the others must not wait for this rank
        failure = ConfigError(f"the scheduler's arguments don't fit: {type(error).__name__}: {error}")
        failure.__cause__ = error
        collective.agree(failure)
        raise failure from error
    collective.agree(None)
    return built


def _tie(a: RunArguments, config: ScheduleConfig, collective: Collective) -> _Tied:
    return _Tied(
        sync=_team_sync(a.model, config) if collective.world_size > 1 else None,
        probe=None if a.probe is None or a.model is None else Probe(a.probe, a.model, seed=a.seed),
    )


def _team_sync(model: nn.Module | None, config: ScheduleConfig) -> TeamSync | None:
    """Sync by teams; without it where the user's own communication hook shares gradients with all anyway."""
    if model is None or ddp_of(model) is None:
        return None
    try:
        return TeamSync(model)
    except ConfigError:
        if needs_teams(config.controller):
            raise
        return None


def needs_teams(controller: Controller) -> bool:
    """Its replicas share gradients in teams, or not at all."""
    return isinstance(controller, Auto) or controller.gradient_sync == "local"


def _prepare(a: RunArguments, collective: Collective) -> _Prepared:
    cycle, total_steps = a.base()
    controller = resolve_controller(a.controller)
    check_model(a, controller, collective)
    check_noise(a.warm_noise, controller)
    bound = resolve(
        a.hyperparameters,
        a.optimizer,
        a.model,
        cycle_momentum=cycle is not None and cycle.cycle_momentum,
        has_probe=a.probe is not None,
    )
    reference = (
        cycle.max_lr if cycle is not None else tuple(_reference_rate(g) for g in a.optimizer.param_groups)
    )
    groups = range(len(reference))
    config = ScheduleConfig(
        controller=controller,
        total_steps=total_steps,
        max_lr=reference,
        floor_lr=tuple(cycle.min_lr(g) if cycle else reference[g] / _TORCH_DIV_FACTORS for g in groups),
        cycle=cycle,
        bounds=_rate_bounds(a.bounds or {}, groups),
        explored=tuple(_explored(hp) for hp in bound),
        has_probe=a.probe is not None and a.model is not None,
        probe_samples=a.probe_samples,
        max_rollbacks=a.max_rollbacks,
        thresholds=a.thresholds or Thresholds(),
        seed=a.seed,
    )
    if not 0 <= a.first_step <= total_steps:
        raise ConfigError(f"last_epoch={a.first_step - 1} lies outside -1 .. {total_steps - 1}")
    return _Prepared(config=config, hyperparameters=bound)


def check_noise(warm_noise: float, controller: Controller) -> None:
    """Refuse warm noise that can't work with this controller.

    Raises:
        ConfigError: negative or not finite, or replicas that it makes differ are never averaged.
    """
    if not math.isfinite(warm_noise) or warm_noise < 0:
        raise ConfigError(
            f"warm_noise={warm_noise} must be a finite number of at least 0; 0.01 is the paper's"
        )
    if warm_noise and isinstance(controller, Auto):
        raise ConfigError(
            "warm_noise makes replicas differ, but the search compares candidates from equal weights; use "
            "controller='paper' or 'fixed', or warm_noise=0"
        )
    if warm_noise and controller.alpha == 0 and getattr(controller, "gradient_sync", "") == "shared":
        raise ConfigError(
            "warm_noise needs replicas that converge; use alpha above 0, or gradient_sync='local'"
        )


def check_model(a: RunArguments, controller: Controller, collective: Collective) -> None:
    """Refuse a model that can't work with this controller, or its absence.

    Raises:
        ConfigError: names what is missing.
    """
    model, is_ddp = a.model, ddp_of(a.model) is not None
    if _is_sharded(a):
        raise ConfigError(
            f"model={type(model).__name__} is sharded; replicas of sharded ranks are not supported: wrap the "
            "model in DistributedDataParallel"
        )
    if a.probe is not None and model is None:
        raise ConfigError("probe= needs model=: it is called with the model in eval mode; pass the model")
    _check_wrapped_ranks(ddp_of(model), collective)
    if collective.num_replicas == 1 and collective.ranks_per_replica == 1:
        return
    if isinstance(controller, Auto) and not is_ddp:
        raise ConfigError(
            f"controller='auto' needs model=, the module wrapped in DistributedDataParallel (got "
            f"{type(model).__name__}): the search gives each team of replicas its own gradients"
        )
    if collective.ranks_per_replica > 1 and not is_ddp:
        raise ConfigError(
            f"replicas of {collective.ranks_per_replica} ranks need model=, the module wrapped in "
            "DistributedDataParallel"
        )
    if isinstance(controller, Paper | Fixed) and controller.gradient_sync == "local" and model is None:
        raise ConfigError(
            "gradient_sync='local' needs model=: its buffers are averaged, and its gradients not shared"
        )
    is_shared = not isinstance(controller, Auto) and controller.gradient_sync == "shared"
    if not is_shared:
        _check_statistics(model, collective)
    if is_shared and model is not None and not is_ddp:
        raise ConfigError(
            "gradient_sync='shared' with a model that is not wrapped in DistributedDataParallel would share "
            "nothing; wrap it, or use gradient_sync='local'"
        )


def _check_statistics(model: nn.Module | None, collective: Collective) -> None:
    """No layer carries numbers from one team to another in the forward pass."""
    for name, layer in () if model is None else model.named_modules():
        if isinstance(layer, nn.SyncBatchNorm):
            shared = dist.get_world_size(layer.process_group)
            if shared > collective.ranks_per_replica:
                raise ConfigError(
                    f"{name} is a SyncBatchNorm over {shared} ranks: replicas that train apart would mix "
                    "their "
                    "statistics, and one's NaN would reach all; use BatchNorm, whose buffers are averaged, "
                    "or give "
                    f"it a process_group of the replica's {collective.ranks_per_replica} ranks"
                )


def _check_wrapped_ranks(ddp: DistributedDataParallel | None, collective: Collective) -> None:
    """The ranks that DDP made equal are those of the run."""
    if ddp is None:
        return
    wrapped = sorted(dist.get_process_group_ranks(ddp.process_group))
    run = sorted(rank for row in collective.grid for rank in row)
    if wrapped != run:
        raise ConfigError(
            f"model is wrapped on ranks {wrapped}, but the run has ranks {run}; give DistributedDataParallel "
            "and the scheduler the same process_group="
        )


def _is_sharded(a: RunArguments) -> bool:
    modules = [] if a.model is None else list(a.model.modules())
    parameters = [p for group in a.optimizer.param_groups for p in group["params"]]
    kinds = {kind.__name__ for x in (*modules, *parameters) for kind in type(x).__mro__}
    return bool(kinds & {"FSDPModule", "FullyShardedDataParallel", "DTensor"})


def _check_equal(collective: Collective, a: RunArguments, config: ScheduleConfig) -> None:
    """Compare what must be the same on every rank; the first difference is the message."""
    groups = [[_describe(p) for p in group["params"]] for group in a.optimizer.param_groups]
    own = {
        "parameter_groups": groups,
        "model": None
        if a.model is None
        else [_describe(t) for t in (*a.model.parameters(), *a.model.buffers())],
        "settings": to_json(config),
        "last_epoch": a.first_step - 1,
        "average_optimizer_state": a.average_optimizer_state,
        "warm_noise": a.warm_noise,
        "has_grad_scaler": a.grad_scaler is not None,
    }
    everyone = collective.gather_objects(own)
    for rank, other in enumerate(everyone):
        difference = first_difference(other, everyone[0], "")
        if difference is not None:
            where, there, first = difference
            raise ConfigError(
                f"rank {rank} has {where.lstrip('.')} = {_short(there)}, rank 0 has {_short(first)}: every "
                "rank must build the scheduler with the same arguments, parameter groups, shapes and dtypes"
            )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _reference_rate(group: dict[str, Any]) -> float:
    """What ``exp(c)`` multiplies where the base is not one-cycle: its peak, as far as the group tells."""
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


def _rate_bounds(
    bounds: Mapping[str, tuple[float, float]], groups: Sequence[int]
) -> dict[HParamKey, tuple[float, ...]]:
    unknown = set(bounds) - {"lr"}
    if unknown:
        raise ConfigError(
            f"bounds names {sorted(unknown)}; only 'lr' is bounded here, other hyperparameters carry their "
            "own bounds"
        )
    if "lr" not in bounds:
        return {}
    pair = bounds["lr"]
    if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(x, int | float) for x in pair)):
        raise ConfigError(f"bounds['lr']={pair!r} must be a pair of numbers, (low, high)")
    return {("lr", g): (float(pair[0]), float(pair[1])) for g in groups}


def _explored(hp: BoundHyperparameter) -> Explored:
    return Explored(
        name=hp.name,
        group=hp.group,
        scale=hp.scale,
        low=hp.bounds[0],
        high=hp.bounds[1],
        base=hp.base,
        alpha=hp.alpha,
        sigma=hp.sigma,
        step_size=hp.step_size,
        momentum=hp.momentum,
    )


def needs_loss(config: ScheduleConfig, num_replicas: int, *, is_searching: bool) -> bool:
    """The controller compares training losses: ``step`` must be given each batch's."""
    if num_replicas == 1:
        return False
    if isinstance(config.controller, Paper):
        return True
    return not config.has_probe and (
        is_searching or (bool(config.explored) and isinstance(config.controller, Auto))
    )
