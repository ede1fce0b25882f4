"""A remote control on real ranks: what rank 0 alone hears, every rank does, and none is left waiting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hdet_ray import Auto, Fixed, HDETOneCycleLR, LocalControl
from hdet_ray.core.overrides import Override
from hdet_ray.exceptions import FencedError
from hdet_ray.train.outbox import Identity
from hdet_ray.train.protocol import Answer, answer_to_json
from hdet_ray.train.remote_control import RemoteControl
from tests.distributed import loops
from tests.distributed.ranks import run_on_ranks

ROUND = 5
STEPS = 4 * ROUND
SPREAD = Fixed(alpha=1 / 9, sync_every=ROUND)


class Controller:
    """Answers as a controller would: an override in round 1, a pause in round 2, a fence in round 3."""

    def call(self, kind: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        round = request.get("round")
        halved = Override(id="o1", hparam="lr", op="scale", value=0.5)
        answer = Answer(
            status="fenced" if round == 3 else "ok",
            epoch=1,
            commands=(halved,) if round == 1 else (),
            directive="pause" if round == 2 else None,
            message="attempt 2 has begun" if round == 3 else "",
        )
        return answer_to_json(answer)


def make(rank: int, controller: Any) -> tuple[HDETOneCycleLR, nn.Module]:
    model = loops.wrap(loops.make_net())
    control = RemoteControl(Identity(job="j", attempt=1, num_replicas=2), Controller())
    scheduler = HDETOneCycleLR(
        loops.make_optimizer("adamw", model),
        max_lr=[0.01, 0.02],
        total_steps=STEPS,
        controller=controller,
        model=model,
        probe=loops.probe_of(model),
        control=control if rank == 0 else None,
    )
    return scheduler, model


def step(scheduler: HDETOneCycleLR, model: nn.Module, i: int, rank: int) -> None:
    x, y = loops.batch(i, rank)
    loss = nn.functional.mse_loss(model(x), y)
    scheduler.optimizer.zero_grad()
    loss.backward()
    scheduler.optimizer.step()
    scheduler.step(loss)


def until_fenced(rank: int) -> dict[str, Any]:
    scheduler, model = make(rank, SPREAD)
    directives: list[str | None] = []
    overrides: list[tuple[str, ...]] = []
    scheduler.on_boundary(lambda event: directives.append(event.directive))
    scheduler.on_boundary(lambda event: overrides.append(event.plan.overrides))
    error = ""
    try:
        for i in range(STEPS):
            step(scheduler, model, i, rank)
    except FencedError as raised:
        error = str(raised)
    return {"directives": directives, "overrides": overrides, "error": error}


def test_commands_directives_and_a_fence_reach_every_rank(tmp_path: Path) -> None:
    ends = run_on_ranks(until_fenced, 2, store_path=tmp_path)
    for end in ends:
        assert end["directives"] == [None, None, "pause"]
        assert end["overrides"] == [(), ("o1",), ("o1",)]
        assert "attempt 2 has begun" in end["error"]


def replaced(rank: int) -> list[Any]:
    """Rates and weights of a run that was made for one controller and given another."""
    ends = []
    for is_replaced in (False, True):
        scheduler, model = make(rank, Auto() if is_replaced else SPREAD)
        scheduler.control = LocalControl()
        if is_replaced:
            scheduler.use_controller(SPREAD)
        for i in range(STEPS):
            step(scheduler, model, i, rank)
        ends.append([p.detach().tolist() for p in model.parameters()] + [scheduler.plan.base])
    return ends


def test_a_run_given_another_controller_trains_as_if_made_with_it(tmp_path: Path) -> None:
    for made, given in run_on_ranks(replaced, 2, store_path=tmp_path):
        assert made == given
