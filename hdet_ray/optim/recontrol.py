"""Another controller for a run that has not begun: a job's spec may name one in place of its script's."""

from __future__ import annotations

from dataclasses import replace

from hdet_ray.config import Controller
from hdet_ray.core.state import ScheduleConfig
from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.gradient_sync import ddp_of
from hdet_ray.optim.setup import Parts, check_model, check_noise, needs_loss, needs_teams, on_every_rank


def recontrolled(parts: Parts, controller: Controller) -> Parts:
    """The parts of a run under another controller; collective, before its first step.

    Raises:
        ConfigError: on every rank, where the run can't work with it.
    """
    arguments = replace(parts.arguments, controller=controller)
    rounds, collective = parts.rounds, parts.rounds.collective

    def check() -> ScheduleConfig:
        check_model(arguments, controller, collective)
        check_noise(arguments.warm_noise, controller)
        is_shared_by_ddp = ddp_of(arguments.model) is not None and collective.world_size > 1
        if is_shared_by_ddp and needs_teams(controller) and not rounds.syncs_by_teams:
            raise ConfigError(
                f"controller={type(controller).__name__.lower()!r} shares gradients in teams, but the model "
                "has a communication hook of its own; leave out its register_comm_hook"
            )
        return replace(parts.config, controller=controller)

    config = on_every_rank(collective, check)
    on_every_rank(collective, lambda: rounds.begin_anew(config))
    return replace(
        parts,
        arguments=arguments,
        config=config,
        needs_loss=needs_loss(config, collective.num_replicas, is_searching=rounds.state.is_searching),
    )
