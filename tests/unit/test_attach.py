"""`attach` in Ray's local mode: one process, no cluster, no storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import ray.train
import torch
from ray.train import ScalingConfig
from torch.utils.data import DistributedSampler

from hdet_ray import ConfigError, Fixed, HDETOneCycleLR, HDETTrainer, attach
from hdet_ray.core.replay import read_ledger
from hdet_ray.data import ElasticSampler
from hdet_ray.optim.control import LocalControl

STEPS = 6


def make_scheduler(**options: Any) -> tuple[HDETOneCycleLR, torch.nn.Module]:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    controller = Fixed(alpha=0.0, sync_every=2)
    options = {"model": model, **options}
    scheduler = HDETOneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS, controller=controller, **options)
    return scheduler, model


def run(loop: Callable[[], Any]) -> Any:
    return HDETTrainer(loop, scaling_config=ScalingConfig(num_workers=0)).fit()


def test_a_loop_trains_in_rays_local_mode_and_reports_its_rounds() -> None:
    def loop() -> int:
        scheduler, model = make_scheduler()
        start = attach(scheduler)
        ray.train.report({"mine": 1})
        for _ in range(start, STEPS):
            loss = model(torch.ones(4, 2)).square().mean()
            loss.backward()
            scheduler.optimizer.step()
            scheduler.step(loss)
        return start

    result = run(loop)
    assert result.return_value == 0
    assert result.metrics["mine"] == 1
    assert result.metrics["hdet/step"] == STEPS
    assert result.metrics["hdet/round"] == STEPS / 2


def test_outside_a_worker_attach_says_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray's local mode leaves its worker behind in this process.
    monkeypatch.setattr("ray.train.v2._internal.execution.train_fn_utils._train_fn_utils", None)
    with pytest.raises(ConfigError, match="outside a Ray Train worker"):
        attach(make_scheduler()[0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"checkpoint_every_rounds": 0}, "checkpoint_every_rounds=0"),
        ({"sampler": DistributedSampler([1, 2], num_replicas=1, rank=0)}, "ElasticSampler"),
        ({"extra": {"ema": object()}}, r"extra\['ema'\] is a object"),
    ],
)
def test_what_cannot_be_saved_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        run(lambda: attach(make_scheduler()[0], **options))


def test_a_scheduler_without_a_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="model="):
        run(lambda: attach(make_scheduler(model=None)[0]))


def test_a_second_attach_in_a_worker_is_refused() -> None:
    def loop() -> None:
        attach(make_scheduler()[0])
        attach(make_scheduler()[0])

    with pytest.raises(ConfigError, match="called twice"):
        run(loop)


def test_a_sampler_that_counts_has_each_rounds_samples_in_the_reports(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"

    def loop() -> None:
        scheduler, model = make_scheduler()
        scheduler.control = LocalControl(ledger=ledger)
        sampler = ElasticSampler(list(range(8)), num_replicas=1, rank=0)
        attach(scheduler, sampler=sampler)
        for _ in range(STEPS):
            next(iter(sampler))
            model(torch.ones(4, 2)).square().mean().backward()
            scheduler.optimizer.step()
            scheduler.step(torch.tensor(1.0))

    run(loop)
    items = read_ledger(ledger.read_text().splitlines()).items
    assert [item.report.facts["samples"] for item in items] == [2.0, 2.0, 2.0]
