"""The stacked simulation: its optimizers are torch's, a collapsed run is the replicas that it stands for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.simulation import Row, new_run, rows_of, schedule_config, simulate
from benchmarks.stacked import RowAdamW, RowSGD, StackedNetwork, flat_parameters
from hdet_ray.config import Auto, Fixed
from hdet_ray.core.decide import start
from hdet_ray.workloads import load_workload

RATES = (1e-4, 1e-2, 0.3)


def a_run(name="byte_lm", num_replicas=4, **config):
    module = load_workload(name)
    settings = module.Settings.from_config({"total_steps": 60, "batch_size": 4} | config)
    task = module.Task(settings)
    network = StackedNetwork(task.build_model().double())
    return new_run("run", settings, task, network, num_replicas, dtype=torch.float64)


@pytest.mark.parametrize(("name", "rows"), [("adamw", RowAdamW), ("sgd", RowSGD)])
def test_rows_are_updated_as_by_torch_with_their_own_rate_and_momentum(name, rows):
    draw = torch.Generator().manual_seed(0)
    begin = torch.randn(3, 40, generator=draw, dtype=torch.float64)
    stacked, optimizer = begin.clone(), rows.untouched(begin)
    singles = [torch.nn.Parameter(row.clone()) for row in begin]
    make = torch.optim.AdamW if name == "adamw" else lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)
    references = [make([p], lr=rate) for p, rate in zip(singles, RATES, strict=True)]
    for step in range(30):
        gradients = torch.randn(3, 40, generator=draw, dtype=torch.float64)
        momentums = [0.85 + 0.1 * math.sin(step + i) ** 2 for i in range(3)]
        for i, (p, reference) in enumerate(zip(singles, references, strict=True)):
            group = reference.param_groups[0]
            group.update({"betas": (momentums[i], 0.999)} if name == "adamw" else {"momentum": momentums[i]})
            p.grad = gradients[i].clone()
            reference.step()
        columns = torch.tensor([RATES, momentums], dtype=torch.float64)[:, :, None]
        optimizer.step(stacked, gradients, columns[0], columns[1])
    assert torch.allclose(stacked, torch.stack([p.detach() for p in singles]), rtol=1e-12, atol=1e-12)


def test_a_row_taken_out_goes_on_as_it_would_have_among_the_others():
    begin = torch.ones(2, 5, dtype=torch.float64)
    gradients = torch.arange(10, dtype=torch.float64).view(2, 5)
    column = torch.full((2, 1), 0.1, dtype=torch.float64)
    together, optimizer = begin.clone(), RowAdamW.untouched(begin)
    optimizer.step(together, gradients, column, column)
    alone, copy = together[1:].clone(), optimizer.rows(torch.tensor([1]))
    copy.step(alone, gradients[1:], column[1:], column[1:])
    optimizer.step(together, gradients, column, column)
    assert torch.equal(alone, together[1:])


@pytest.mark.parametrize("name", ["byte_lm", "digits"])
def test_stacked_gradients_are_each_models_own(name):
    module = load_workload(name)
    tasks = [module.Task(module.Settings(seed=s)) for s in range(3)]
    models = [task.build_model() for task in tasks]
    batches = [task.batch(0, 0) for task in tasks]
    network = StackedNetwork(tasks[0].build_model())
    weights = torch.stack([flat_parameters(m) for m in models])
    gradients, losses = network.gradients(
        weights, torch.stack([x for x, _ in batches]), torch.stack([y for _, y in batches])
    )
    for i, (model, (inputs, targets)) in enumerate(zip(models, batches, strict=True)):
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        own = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert torch.allclose(gradients[i], own, atol=1e-6)
        assert losses[i].mean().item() == pytest.approx(loss.item(), rel=1e-5)


def test_a_collapsed_run_equals_the_replicas_that_it_stands_for():
    """With all but no spread the same run is simulated replica by replica, gradients shared."""
    collapsed = a_run(controller=Fixed(alpha=0.0, sync_every=20))
    apart = a_run(controller=Fixed(alpha=1e-14, sync_every=20))
    assert len(rows_of(collapsed.plan)) == 1
    assert len(rows_of(apart.plan)) == 4
    simulate([collapsed])
    simulate([apart])
    assert torch.allclose(collapsed.weights, apart.weights, atol=1e-10)
    for (_, one), (_, four) in zip(collapsed.history, apart.history, strict=True):
        assert [r.loss for r in one.replicas] == pytest.approx([r.loss for r in four.replicas], rel=1e-10)


def test_runs_in_one_stack_end_as_each_does_alone():
    alone = [a_run(total_steps=400, seed=s) for s in (0, 1)]
    for run in alone:
        simulate([run])
    tasks = [run.task for run in alone]
    together = [
        new_run(s, tasks[s].settings, tasks[s], alone[0].network, 4, dtype=torch.float64) for s in (0, 1)
    ]
    simulate(together)
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one.weights, other.weights, atol=1e-9)
        assert other.state.log_scale == pytest.approx(one.state.log_scale, abs=1e-9)


def test_a_search_round_leaves_the_weights_where_they_were():
    run = a_run(total_steps=400)
    before = run.weights.clone()
    seen = []

    def check():
        if run.history[-1][0].is_search:
            seen.append(torch.equal(run.weights, before))

    simulate([run], on_round=check)
    assert len(seen) >= 4
    assert all(seen)
    assert not torch.equal(run.weights, before)


def test_search_steps_are_part_of_the_run():
    runs = [a_run(total_steps=400, controller=c) for c in ("auto", "plain")]
    for run in runs:
        simulate([run])
    assert runs[0].state.search_steps > 0
    assert [sum(report.steps for _, report in run.history) for run in runs] == [400, 400]


def test_a_diverging_row_leaves_the_others_alone():
    good = a_run(controller="plain", optimizer="sgd", max_lr=0.1)
    bad = a_run(controller="plain", optimizer="sgd", max_lr=1e6)
    alone = a_run(controller="plain", optimizer="sgd", max_lr=0.1)
    bad.network = good.network
    simulate([alone])
    simulate([good, bad])
    assert torch.allclose(good.weights, alone.weights, atol=1e-9)


def test_plain_one_cycle_is_never_rolled_back():
    settings = load_workload("digits").Settings.from_config(
        {"controller": Fixed(alpha=0.0, sync_every=60), "optimizer": "sgd", "max_lr": 1e6, "total_steps": 60}
    )
    task = load_workload("digits").Task(settings)
    network = StackedNetwork(task.build_model())
    run = new_run("plain", settings, task, network, 4, is_judged=False)
    before = run.weights.clone()
    simulate([run])
    assert not torch.equal(run.weights, before)


@pytest.mark.parametrize(
    ("num_replicas", "sizes"), [(1, [1]), (2, [1, 1]), (4, [1, 1, 1, 1]), (8, [1] * 8), (16, [2] * 8)]
)
def test_a_scouts_rows_are_its_teams(num_replicas, sizes):
    settings = load_workload("byte_lm").Settings(total_steps=400, controller=Auto())
    plan = start(schedule_config(settings, Auto()), num_replicas)[1]
    assert [len(row.replicas) for row in rows_of(plan)] == sizes


def test_teams_of_unequal_size_are_refused():
    settings = load_workload("byte_lm").Settings(total_steps=400)
    plan = start(schedule_config(settings, Auto()), 4)[1]
    with pytest.raises(ValueError, match="unequal size"):
        rows_of(replace(plan, teams=(0, 0, 0, 1)))


def test_replicas_that_may_differ_are_rows_of_their_own():
    settings = load_workload("byte_lm").Settings(total_steps=400)
    plan = start(schedule_config(settings, Fixed()), 4)[1]
    assert rows_of(plan) == [Row(team=0, replicas=(r,)) for r in range(4)]
