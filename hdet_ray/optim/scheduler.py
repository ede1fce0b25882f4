"""The schedulers: what a user swaps for `OneCycleLR`.

for batch in loader:
    loss = criterion(model(batch.x), batch.y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step(loss)
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hdet_ray.config import Controller, Thresholds
from hdet_ray.core.codec import HParamKey
from hdet_ray.core.one_cycle import OneCycle, per_group, resolve_total_steps
from hdet_ray.core.plan import RATE, Plan, value_at
from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.control import Control
from hdet_ray.optim.hyperparameters import HyperparameterLike, set_rate
from hdet_ray.optim.setup import RunArguments, assemble
from hdet_ray.optim.stepping import ReplicaScheduler
from hdet_ray.optim.table import RateTable, has_momentum


class HDETOneCycleLR(ReplicaScheduler):
    """One-cycle whose ``max_lr`` the replicas find in the first steps of the run.

    A drop-in replacement for `torch.optim.lr_scheduler.OneCycleLR`: every argument of torch's has the same
    name and meaning. The rate is ``one_cycle(t) * exp(c)``; with ``controller="auto"`` the replicas search
    for c in the first few per cent of ``total_steps``, then train data-parallel with it. Making one is
    collective: every rank does it, with the same arguments.

    Args:
        optimizer: The optimizer whose rates (and momentum) are scheduled.
        max_lr: Peak rate, or one per parameter group; where the search starts.
        total_steps: Steps S of the schedule, the search's included; or ``epochs`` and ``steps_per_epoch``.
        epochs: As in torch.
        steps_per_epoch: As in torch.
        pct_start: As in torch.
        anneal_strategy: As in torch.
        cycle_momentum: As in torch.
        base_momentum: As in torch.
        max_momentum: As in torch.
        div_factor: As in torch.
        final_div_factor: As in torch.
        three_phase: As in torch.
        last_epoch: As in torch; a schedule that begins in mid-run does not search.
        controller: ``"auto"``, ``"paper"``, ``"fixed"``, or an `Auto`, `Paper` or `Fixed` with its settings.
        model: The model; wrapped in DistributedDataParallel where several ranks train it.
        probe: ``probe(k)`` gives the loss of the current weights on probe batch number k: the same
            samples for the same k on every rank. Called in eval mode, without gradients, under a forked
            random state.
        probe_samples: How many samples one call of the probe holds.
        hyperparameters: Further scalars to explore during training.
        seed: Seed of assignments, probes' random state and warm noise.
        process_group: The ranks of this run; default: all.
        mesh: ``DeviceMesh(("replica", "group"))``, where a replica has several ranks.
        control: Where reports go; default: decided in this process.
        bounds: Bounds of the peak rate, ``{"lr": (low, high)}``; default 1e-4 to 1e4 times ``max_lr``.
        average_optimizer_state: Whether an average takes the optimizer's moments along.
        warm_noise: Standard deviation of the noise that tells replicas apart at the start, relative to the
            weights' (HDET, eq. 10); for runs that begin from a trained checkpoint.
        max_rollbacks: Rollbacks in a row before the run fails.
        thresholds: When a replica counts as unhealthy.
        grad_scaler: The loop's GradScaler: its state is put back with the weights, and a step that it
            skips is no step of the schedule (but where a fused optimizer skips inside its kernel on an
            accelerator, which can't be seen without waiting for the device).

    Raises:
        ConfigError: on every rank, before any training step; names the value, its bound and the remedy.

    Source: the schedule is torch's; fan-out, converge and the paper's controller are HDET
    (arXiv 2604.24708); the default search is described in docs/algorithm.md.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
        *,
        controller: str | Controller = "auto",
        model: nn.Module | None = None,
        probe: Callable[[int], Any] | None = None,
        probe_samples: int = 64,
        hyperparameters: Sequence[HyperparameterLike] = (),
        seed: int = 0,
        process_group: dist.ProcessGroup | None = None,
        mesh: DeviceMesh | None = None,
        control: Control | None = None,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        average_optimizer_state: bool = True,
        warm_noise: float = 0.0,
        max_rollbacks: int = 3,
        thresholds: Thresholds | None = None,
        grad_scaler: Any = None,
    ) -> None:

        def base() -> tuple[OneCycle, int]:
            _check_optimizer(optimizer)
            steps = resolve_total_steps(total_steps, epochs, steps_per_epoch)
            groups = len(optimizer.param_groups)
            cycle = OneCycle(
                total_steps=steps,
                max_lr=per_group("max_lr", max_lr, groups),
                pct_start=pct_start,
                anneal_strategy=anneal_strategy,  # type: ignore[arg-type]
                cycle_momentum=cycle_momentum,
                base_momentum=per_group("base_momentum", base_momentum, groups) if cycle_momentum else (),
                max_momentum=per_group("max_momentum", max_momentum, groups) if cycle_momentum else (),
                div_factor=div_factor,
                final_div_factor=final_div_factor,
                three_phase=three_phase,
            )
            if cycle_momentum and not has_momentum(optimizer):
                raise ConfigError(
                    f"{type(optimizer).__name__} has neither momentum nor betas to cycle; pass "
                    "cycle_momentum=False"
                )
            return cycle, steps

        arguments = RunArguments(
            optimizer=optimizer,
            base=base,
            controller=controller,
            model=model,
            probe=probe,
            probe_samples=probe_samples,
            hyperparameters=hyperparameters,
            seed=seed,
            process_group=process_group,
            mesh=mesh,
            control=control,
            bounds=bounds,
            average_optimizer_state=average_optimizer_state,
            warm_noise=warm_noise,
            max_rollbacks=max_rollbacks,
            thresholds=thresholds,
            grad_scaler=grad_scaler,
            first_step=last_epoch + 1,
        )
        parts = assemble(arguments)
        cycle = parts.config.cycle
        if cycle is not None and last_epoch == -1:
            # The entries that torch's scheduler leaves in the groups: other code reads them.
            for g, group in enumerate(optimizer.param_groups):
                group.update(initial_lr=cycle.initial_lr(g), max_lr=cycle.max_lr[g], min_lr=cycle.min_lr(g))
                if cycle.cycle_momentum:
                    group.update(max_momentum=cycle.max_momentum[g], base_momentum=cycle.base_momentum[g])
        self.total_steps = parts.config.total_steps
        super().__init__(optimizer, last_epoch)
        self._begin(optimizer, parts)
        self._table = RateTable(optimizer, self.collective.replica)
        self._enter_round()

    def _enter_values(self, plan: Plan) -> None:
        self._table.enter(plan)

    def _set_values(self, moved: int) -> None:
        self._last_lr = self._table.set(moved)  # type: ignore[assignment]  # get_last_lr makes it a list


class HDETScheduler(ReplicaScheduler):
    """The same around any other `LRScheduler` as base: the replicas find the factor on its rates.

    The base does not step during the search, and its shape is not stretched over the steps that are left.

    Args:
        base: The scheduler that says what the rates would be. Made on the same optimizer; from now on only
            this scheduler is stepped.
        total_steps: Steps S of the run, the search's included.
        **settings: `HDETOneCycleLR`'s keyword arguments from ``controller`` on, of the same meaning.

    Raises:
        ConfigError: on every rank, before any training step.
    """

    def __init__(self, base: LRScheduler, total_steps: int, **settings: Any) -> None:
        if not isinstance(base, LRScheduler) or isinstance(base, ReduceLROnPlateau | ReplicaScheduler):
            raise ConfigError(
                f"base={type(base).__name__} can't be followed step by step; pass a torch LRScheduler that "
                "steps once per optimizer step without a metric"
            )
        optimizer = base.optimizer
        self._base = base
        arguments = RunArguments(
            optimizer=optimizer,
            base=lambda: (None, resolve_total_steps(total_steps, None, None)),
            **settings,
        )
        parts = assemble(arguments)
        self.total_steps = parts.config.total_steps
        self._own_rates = [float(rate) for rate in base.get_last_lr()]
        super().__init__(
            optimizer, getattr(base, "last_epoch", 0)
        )  # a ChainedScheduler counts nothing itself
        self._begin(optimizer, parts)
        self._base_steps = 0
        self._enter_round()

    def _enter_values(self, plan: Plan) -> None:
        """Remember the base as it is now: many can't go back, but each can repeat a round's steps."""
        self._base_at_round = copy.deepcopy(
            {
                "base": self._base.state_dict(),
                "base_steps": self._base_steps,
                "own_rates": list(self._own_rates),
            }
        )

    def _further_state(self) -> dict[str, Any]:
        """The base as it was when the round began."""
        return self._base_at_round

    def _load_further_state(self, state_dict: Mapping[str, Any]) -> None:
        saved = copy.deepcopy({name: state_dict[name] for name in self._base_at_round})
        self._base.load_state_dict(saved["base"])
        self._base_steps = saved["base_steps"]
        self._own_rates = saved["own_rates"]

    def _set_values(self, moved: int) -> None:
        plan, step = self.plan, self.plan.step + moved
        if not plan.is_search:
            self._step_base_to(step - plan.search_steps)
        replica = self.collective.replica
        rates = [
            value_at(plan, RATE, g, replica, step, external=own) for g, own in enumerate(self._own_rates)
        ]
        _set_rates(self.optimizer, rates)
        self._last_lr = list(rates)

    def _step_base_to(self, steps: int) -> None:
        """Bring the base to this many steps of its own, on its own rates: some derive each from the one "
        "before."""
        while self._base_steps < steps:
            _set_rates(self.optimizer, self._own_rates)
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # torch can't know that the optimizer has stepped under the search
                self._base.step()
            self._own_rates = [float(rate) for rate in self._base.get_last_lr()]
            self._base_steps += 1

    def _external_rates(self) -> dict[HParamKey, float]:
        return {(RATE, g): rate for g, rate in enumerate(self._own_rates)}


def _check_optimizer(optimizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer={type(optimizer).__name__} is none; pass a torch.optim.Optimizer")


def _set_rates(optimizer: Optimizer, rates: Sequence[float]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        set_rate(group, rate)
