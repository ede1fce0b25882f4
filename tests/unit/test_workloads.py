"""Workloads: batches are functions of their number, splits are disjoint, settings say what is wrong."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hdet_ray.config import Auto, Fixed
from hdet_ray.exceptions import ConfigError
from hdet_ray.workloads import WORKLOADS, load_workload
from hdet_ray.workloads.byte_lm import load_text
from hdet_ray.workloads.counters import generator
from hdet_ray.workloads.digits import load_images

NAMES = sorted(WORKLOADS)


def a_task(name, **config):
    module = load_workload(name)
    return module.Task(module.Settings.from_config(config))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_the_same_whatever_was_drawn_before(name):
    fresh, used = a_task(name), a_task(name)
    for step in range(5):
        used.batch(step, 0)
        used.probe_batch(step)
    torch.rand(3)
    for mine, other in zip(fresh.batch(7, 2), used.batch(7, 2), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", NAMES)
def test_steps_ranks_and_seeds_have_batches_of_their_own(name):
    first, second = a_task(name), a_task(name, seed=1)
    batches = [first.batch(0, 0), first.batch(0, 1), first.batch(1, 0), second.batch(0, 0)]
    assert not any(torch.equal(a[0], b[0]) for a, b in combinations(batches, 2))


@pytest.mark.parametrize("name", NAMES)
def test_a_probe_batch_is_the_same_on_every_rank_and_differs_by_number(name):
    assert torch.equal(a_task(name).probe_batch(3)[0], a_task(name).probe_batch(3)[0])
    assert not torch.equal(a_task(name).probe_batch(3)[0], a_task(name).probe_batch(4)[0])


@pytest.mark.parametrize("name", NAMES)
def test_drawing_batches_and_building_a_model_leave_global_randomness_alone(name):
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    task = a_task(name)
    task.batch(0, 0)
    task.build_model()
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_builds_the_same_model(name):
    first, second, other = (a_task(name, seed=s).build_model() for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_the_tiny_model_stays_tiny_and_gives_a_loss_near_uniform_guessing(name):
    task = a_task(name)
    model = task.build_model()
    assert 10_000 < sum(p.numel() for p in model.parameters()) < 30_000
    inputs, targets = task.evaluation("val")
    classes = model(inputs[:1]).shape[1]
    loss = load_workload(name).evaluate(model, (inputs, targets))
    assert loss == pytest.approx(torch.tensor(float(classes)).log().item(), rel=0.15)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_is_in_eval_mode_and_leaves_training_mode(name):
    task = a_task(name)
    model = task.build_model()
    seen = []
    model.register_forward_hook(lambda module, *_: seen.append(module.training))
    load_workload(name).evaluate(model, task.evaluation("test"))
    assert seen == [False]
    assert model.training


def test_splits_of_the_text_are_different_files_of_one_sorted_list():
    sizes = {split: len(load_text(split)) for split in ("train", "val", "test")}
    assert sizes["train"] > 2_000_000
    assert min(sizes["val"], sizes["test"]) > 100_000
    starts = {bytes(load_text(split)[:2000].tolist()) for split in ("train", "val", "test")}
    assert len(starts) == 3
    assert all(int(load_text(split).max()) < 128 for split in ("train", "val", "test"))


def test_no_image_is_in_two_splits_and_none_is_lost():
    images = {split: load_images(split)[0] for split in ("train", "val", "test")}
    assert sum(map(len, images.values())) == 1797
    rows = {split: {tuple(row) for row in x.tolist()} for split, x in images.items()}
    assert not any(rows[a] & rows[b] for a, b in combinations(rows, 2))


def test_fresh_noise_differs_between_steps_and_repeated_noise_belongs_to_the_image():
    repeated = a_task("digits", fresh_noise=False, batch_size=2000)
    seen = {}
    for step in range(2):
        images, labels = repeated.batch(step, 0)
        for image, label in zip(images.tolist(), labels.tolist(), strict=True):
            seen.setdefault(tuple(image), label)
    assert len(seen) <= 1079
    fresh = a_task("digits", batch_size=500)
    first, second = ({tuple(i) for i in fresh.batch(step, 0)[0].tolist()} for step in range(2))
    assert not first & second


def test_dropout_is_there_when_it_is_asked_for():
    task = a_task("digits", dropout=0.5)
    model = task.build_model()
    inputs = task.batch(0, 0)[0]
    assert not torch.equal(model(inputs), model(inputs))


@given(seed=st.integers(0, 2**40), step=st.integers(0, 2**40))
def test_neighbouring_counters_draw_unrelated_numbers(seed, step):
    draws = {
        torch.randint(2**62, (1,), generator=generator(seed, purpose, *counters)).item()
        for purpose in ("a", "b")
        for counters in ((step, 0), (step + 1, 0), (step, 1))
    }
    assert len(draws) == 6


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"learning_rate": 1}, "'learning_rate' is no setting"),
        ({"preset": "huge"}, "preset='huge' is unknown"),
        ({"optimizer": "lion"}, "optimizer='lion' is unknown"),
        ({"max_lr": 0.0}, "max_lr=0.0 must be"),
        ({"total_steps": 0}, "total_steps=0 must be at least 1"),
    ],
)
def test_a_setting_that_cannot_work_is_named(config, message):
    with pytest.raises(ConfigError, match=message):
        load_workload("byte_lm").Settings.from_config(config)


def test_a_preset_gives_values_that_the_config_may_override():
    settings = load_workload("byte_lm").Settings.from_config({"preset": "small", "total_steps": 10})
    assert settings.context == 24
    assert settings.total_steps == 10


def test_plain_stands_for_one_cycle_with_nothing_spread():
    settings = load_workload("digits").Settings.from_config({"controller": "plain"})
    assert settings.build_controller() == Fixed(alpha=0.0)
    assert load_workload("digits").Settings.from_config({}).build_controller() == Auto()


def test_an_unknown_workload_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match="workload='mnist' is unknown; use one of byte_lm, digits"):
        load_workload("mnist")
