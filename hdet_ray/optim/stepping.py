"""Stepping: count optimizer steps, record losses, enter rounds. What both public schedulers share.

Between boundaries `step` writes values that were computed when the round began, and keeps the loss on
its device: no host-device sync, no message, no growth of memory. At a boundary `Rounds` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from hdet_ray.config import Controller
from hdet_ray.core.codec import HParamKey
from hdet_ray.core.plan import Plan
from hdet_ray.core.state import ScheduleState, state_to_json
from hdet_ray.exceptions import ConfigError, ScheduleExhaustedError
from hdet_ray.optim.bound import BoundHyperparameter
from hdet_ray.optim.bucket_order import bucket_order, replay_bucket_order
from hdet_ray.optim.collective import Collective
from hdet_ray.optim.control import Control
from hdet_ray.optim.recontrol import recontrolled
from hdet_ray.optim.rounds import BoundaryEvent, Rounds
from hdet_ray.optim.samples import CountsSamples
from hdet_ray.optim.saved_state import STATE_DICT_VERSION, agreed_state
from hdet_ray.optim.setup import Parts, needs_loss
from hdet_ray.optim.updates import UpdateCounter
from hdet_ray.optim.window import LossWindow


class ReplicaScheduler(LRScheduler):
    """What both public schedulers share: counting steps, recording losses, entering rounds."""

    optimizer: Optimizer
    total_steps: int

    def _begin(self, optimizer: Optimizer, parts: Parts) -> None:
        self._parts = parts
        self._rounds: Rounds = parts.rounds
        self._window = LossWindow()
        self._updates = UpdateCounter(optimizer, parts.grad_scaler, before_first=self._rounds.before_update)
        self._needs_loss = parts.needs_loss
        self._is_boundary = False
        self._calls_in_round = 0
        self._moved_in_round = 0
        self._skipped: list[int] = []
        self._step_count = 1
        self._forward_watch: RemovableHandle | None = None
        self._watch_first_forward()

    # ------------------------------------------------------------------ the loop's calls

    @property
    def is_boundary(self) -> bool:
        """The newest call of `step` ended a round: the weights are those of the run."""
        return self._is_boundary

    @property
    def plan(self) -> Plan:
        """What every replica does in the round that is going on."""
        return self._rounds.plan

    @property
    def state(self) -> ScheduleState:
        """Everything learned until the newest boundary."""
        return self._rounds.state

    @property
    def model(self) -> nn.Module | None:
        """The model as it was passed in."""
        return self._parts.model

    @property
    def grad_scaler(self) -> Any:
        """The loop's GradScaler, where one was passed in."""
        return self._parts.grad_scaler

    @property
    def averages_optimizer_state(self) -> bool:
        """Replicas have the same optimizer state at a boundary."""
        return self._rounds.weights.averages_optimizer_state

    @property
    def collective(self) -> Collective:
        """The ranks of this run."""
        return self._rounds.collective

    @property
    def hyperparameters(self) -> Sequence[BoundHyperparameter]:
        """What replicas vary beside the rate."""
        return self._rounds.hyperparameters

    @property
    def control(self) -> Control:
        """Where reports go and plans come from; assignable before the first step of an attempt."""
        return self._rounds.control

    @control.setter
    def control(self, control: Control) -> None:
        self._rounds.control = control

    @property
    def iterations(self) -> int:
        """Calls of `step` so far: the position in the user's loop."""
        return self.state.calls + self._calls_in_round

    def use_controller(self, controller: Controller) -> None:
        """Take another controller than the one that this was made with; collective, before the first step.

        Raises:
            ConfigError: on every rank, where the run has begun or can't work with it.
        """
        if self.iterations or self.state.round:
            raise ConfigError(
                f"use_controller() came after {self.iterations} steps; a run keeps the controller that it "
                "began with"
            )
        self._parts = recontrolled(self._parts, controller)
        self._needs_loss = self._parts.needs_loss
        self._enter_round()

    def on_boundary(self, callback: Callable[[BoundaryEvent], None]) -> None:
        """Call this on every rank as the last thing of each boundary."""
        self._rounds.callbacks.append(callback)

    def on_report(self, source: Callable[[], Mapping[str, float]]) -> None:
        """Ask this for further facts at each boundary: measurements for people, by name and in base units.

        Called on every rank; rank 0's answer stands in the report.
        """
        self._rounds.fact_sources.append(source)

    def count_samples(self, source: CountsSamples) -> None:
        """Tell in each report how many samples the ranks took from theirs; on every rank.

        Args:
            source: This rank's sampler, or anything else that counts what it hands out.
        """
        self._rounds.samples.count(source)

    def on_directive(self, source: Callable[[], str | None]) -> None:
        """Ask this on rank 0 at each boundary what all ranks shall do there beside the plan."""
        self._rounds.directive_sources.append(source)

    def converge(self) -> None:
        """Make one model of the replicas now, in mid-round; collective. Unhealthy replicas are left out.

        Raises:
            ConfigError: during a search, whose candidates are put back and never averaged.
        """
        if self.plan.is_search:
            raise ConfigError(
                f"round {self.plan.round} is a search round: its candidates are put back at the boundary, "
                "not averaged; call converge() after the search, or use averaged()"
            )
        self._rounds.weights.average(self._finite_replicas())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Evaluate or save the run's model in mid-round, without disturbing it; collective.

        Inside, parameters and buffers are the replicas' mean; in a search round, those that the round
        began with. After it everything is as before, bit for bit.
        """
        weights = self._rounds.weights
        replicas = None if self.plan.is_search else self._finite_replicas()
        with weights.lent():
            if replicas is not None:
                weights.average_weights_only(replicas)
            elif weights.has_snapshot:
                weights.show_snapshot()
            yield

    # ------------------------------------------------------------------ LRScheduler's interface

    def _initial_step(self) -> None:
        """LRScheduler steps once when it is made; here the first values are set by the plan."""

    def get_lr(self) -> list[float | Tensor]:
        """The rates now in force, one per parameter group."""
        return list(self._last_lr)

    def get_last_lr(self) -> list[float | Tensor]:
        """The rates that `step` set last, one per parameter group."""
        return list(self._last_lr)  # a copy: what the caller does with it must not reach the table

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs; at a boundary plain JSON types.

        In a search round it holds the weights and optimizer state that the round began with as well,
        because they are what training goes on from.
        """
        state: dict[str, Any] = {
            "version": STATE_DICT_VERSION,
            "schedule": state_to_json(self.state),
            "last_epoch": self.last_epoch,
            "calls_in_round": self._calls_in_round,
            "moved_in_round": self._moved_in_round,
            "skipped": list(self._skipped),
            "bucket_order": bucket_order(self.model),
            "samples_total": self._rounds.samples.total,
        }
        if self._calls_in_round:
            state["num_replicas"] = self.plan.num_replicas
            state["losses"] = self._window.values(self._calls_in_round)
            state["samples_in_round"] = self._rounds.samples.in_round
            if self.plan.is_search:
                state["snapshot"] = self._rounds.weights.snapshot_state()
        return state | self._further_state()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a saved state; any number of replicas may load any state.

        A state of mid-round goes on in mid-round at the same number of replicas. At another number the
        round starts again from the loaded weights.

        Collective, and every rank loads the same state.

        Raises:
            CheckpointError: of a newer version, damaged, or of other parameter groups or hyperparameters; on
                every rank.
        """
        state = agreed_state(self.collective, state_dict, self.state, also=self._further_state())
        self._load_further_state(state_dict)
        self.total_steps = state.config.total_steps
        self._needs_loss = needs_loss(
            state.config, self.collective.num_replicas, is_searching=state.is_searching
        )
        self._rounds.restore(state)
        replay_bucket_order(self.model, state_dict.get("bucket_order") or ())
        self._rounds.samples.restore(state_dict.get("samples_total", 0.0), 0)
        self._watch_first_forward()
        same_size = state_dict.get("num_replicas") == self.plan.num_replicas
        if not (state_dict["calls_in_round"] and same_size):
            if "snapshot" in state_dict:
                # The round starts again, from the weights that it had begun with.
                self._rounds.weights.load_snapshot_state(state_dict["snapshot"])
                self._rounds.weights.restore_snapshot()
            self._enter_round()
            return
        self._enter_round()
        if "snapshot" in state_dict:
            self._rounds.weights.load_snapshot_state(state_dict["snapshot"])
        self._calls_in_round = state_dict["calls_in_round"]
        self._moved_in_round = state_dict["moved_in_round"]
        self._skipped = list(state_dict["skipped"])
        self._is_boundary = False
        self._rounds.samples.restore(self._rounds.samples.total, state_dict.get("samples_in_round", 0))
        for i, loss in enumerate(state_dict["losses"] or ()):
            self._window.record(i, loss)
        self.last_epoch = state_dict["last_epoch"]
        self._set_values(self._moved_in_round)

    # ------------------------------------------------------------------ inside

    def step(self, loss: Tensor | float | None = None) -> None:
        """Count one optimizer step, and enter the next round where one ends.

        Args:
            loss: The batch's mean training loss, a 0-d tensor (any device) or a number. May be left out
                where no controller needs it.

        Raises:
            ScheduleExhaustedError: more than ``total_steps`` steps.
            ConfigError: no loss where the controller needs one, or a loss of more than one number.
        """
        i = self._calls_in_round
        if loss is not None:
            self._window.record(i, loss)
        elif self._needs_loss:
            raise ConfigError(
                f"controller={type(self.state.config.controller).__name__.lower()!r} compares training "
                "losses here: call scheduler.step(loss) with the batch's mean loss"
            )
        if self._updates.count_call():
            self._skipped.append(i)
            is_skip = self._stands_still
        else:
            is_skip = False
        self._calls_in_round = i = i + 1
        if not is_skip:
            self._moved_in_round += 1
            self.last_epoch += 1
        if i >= self._round_steps:
            self._end_round()
            return
        self._is_boundary = False
        if not is_skip:
            self._set_values(self._moved_in_round)

    def _watch_first_forward(self) -> None:
        """Tell the rounds of the first training forward pass; no hook stays on the model after it."""
        if self._forward_watch is not None:
            self._forward_watch.remove()
        if self.model is None or self.collective.world_size == 1:
            return
        rounds = self._rounds

        # A function, not a method: a deep copy of the model must not copy the scheduler.
        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def before_forward(module: nn.Module, _: Any) -> None:
            if module.training:
                rounds.before_forward()
                watch.remove()

        watch = self._forward_watch = self.model.register_forward_pre_hook(before_forward)

    def _end_round(self) -> None:
        if self.plan.num_steps == 0:
            self._enter_round()  # as if it had not been called
            raise ScheduleExhaustedError(
                f"step {self.last_epoch + 1} lies past total_steps={self.total_steps}; stop the loop there, "
                "or give the schedule more steps"
            )
        event = self._rounds.end_round(
            self._window.values(self._calls_in_round),
            calls=self._calls_in_round,
            skipped=self._skipped,
            external_rates=self._external_rates(),
        )
        self._enter_round()
        self._is_boundary = True
        self._rounds.tell(event)

    def _enter_round(self) -> None:
        plan = self.plan
        self._round_steps = plan.num_steps
        self._calls_in_round = self._moved_in_round = 0
        self._skipped = []
        # Several teams may skip apart from each other: there the schedule goes on until the boundary.
        self._stands_still = plan.is_one_team and not plan.is_search
        self._window.reset(max(plan.num_steps, 1))
        self.last_epoch = plan.step
        self._enter_values(plan)
        self._set_values(0)

    def _finite_replicas(self) -> list[float]:
        """Weight 1 for each replica whose every rank is finite; collective."""
        rows = self.collective.gather_row([float(self._rounds.weights.is_finite())])
        g = self.collective.ranks_per_replica
        finite = [float(all(row[0] for row in rows[i : i + g])) for i in range(0, len(rows), g)]
        if not any(finite):
            raise ConfigError(
                "no replica's weights are finite, so there is nothing to average; wait for the boundary's "
                "rollback"
            )
        return finite

    def _enter_values(self, plan: Plan) -> None:
        """Prepare the values of a round's steps."""
        raise TypeError("a scheduler says how its values are made")

    def _set_values(self, moved: int) -> None:
        """Write the values of the round's step ``moved`` into the optimizer."""
        raise TypeError("a scheduler says how its values are set")

    def _further_state(self) -> dict[str, Any]:
        """What a class saves besides."""
        return {}

    def _load_further_state(self, state_dict: Mapping[str, Any]) -> None:
        """Take it back."""

    def _external_rates(self) -> dict[HParamKey, float]:
        """The base scheduler's own rates, where the base is the user's own."""
        return {}
