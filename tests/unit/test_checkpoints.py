"""Checkpoints: everything comes back, and nothing incomplete or foreign is ever loaded."""

from __future__ import annotations

import collections
import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from hdet_ray.exceptions import CheckpointError
from hdet_ray.train.checkpoints import load, restore, restore_rank, save
from hdet_ray.train.export import export_weights
from hdet_ray.train.manifest import MANIFEST_VERSION
from hdet_ray.train.rng import capture_rng, restore_rng, seed_rng

UNTOUCHED = torch.optim.SGD([torch.zeros(1)], lr=0.1)
SCHEDULE = {"round": 4, "base": {"lr": {"0": 0.1 + 0.2}}, "loss": 1 / 3}


def make_model(seed: int, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def make_optimizer(model: nn.Module, num_groups: int = 2) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    groups = [{"params": parameters[:2], "lr": 1e-2}, {"params": parameters[2:], "lr": 1e-3}]
    return torch.optim.AdamW(groups if num_groups == 2 else [{"params": parameters}])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def written(folder: Path, world_size: int = 3, extra: dict[str, Any] | None = None) -> Path:
    model = make_model(seed=1)
    optimizer = make_optimizer(model)
    train(model, optimizer, steps=3)
    ranks = []
    for rank in range(world_size):
        torch.manual_seed(100 + rank)
        ranks.append({"rng": capture_rng(), "sampler": {"position": rank}})
    save(
        folder,
        model=model,
        optimizer=optimizer,
        schedule=SCHEDULE,
        ranks=ranks,
        round=4,
        step=80,
        extra=extra,
    )
    return folder


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def test_a_restored_run_goes_on_bit_equal_to_the_unbroken_one(tmp_path: Path) -> None:
    model, optimizer = (make := make_model(seed=1)), make_optimizer(make)
    train(model, optimizer, steps=3)
    save(
        tmp_path,
        model=model,
        optimizer=optimizer,
        schedule=SCHEDULE,
        ranks=[{"rng": capture_rng(), "sampler": None}],
        round=4,
        step=3,
    )
    train(model, optimizer, steps=3)

    other = make_model(seed=2)
    other_optimizer = make_optimizer(other)
    schedule = restore(load(tmp_path), other, other_optimizer)
    restore_rank(load(tmp_path), 0, other_optimizer, world_size=1, seed=0)
    train(other, other_optimizer, steps=3)

    assert schedule == SCHEDULE
    assert equal(model.state_dict(), other.state_dict())
    assert equal(optimizer.state_dict(), other_optimizer.state_dict())


def test_a_ddp_prefix_or_a_compiled_module_never_reaches_the_file(tmp_path: Path) -> None:
    bare = make_model(seed=1)
    compiled = torch.compile(bare)
    save(
        tmp_path,
        model=compiled,
        optimizer=make_optimizer(bare),
        schedule={},
        ranks=[{"rng": capture_rng()}],
        round=0,
        step=0,
    )
    assert safetensors.torch.load_file(tmp_path / "model.safetensors").keys() == bare.state_dict().keys()


def test_a_base_schedulers_own_state_comes_back_as_it_was(tmp_path: Path) -> None:
    model = make_model(seed=1)
    optimizer = make_optimizer(model)
    base = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 5, 5]).state_dict()
    schedule = {**SCHEDULE, "base": base}  # its milestones are a Counter with whole numbers as keys
    save(tmp_path, model=model, optimizer=optimizer, schedule=schedule, ranks=[], round=0, step=0)
    assert load(tmp_path).schedule == schedule


def test_tied_weights_are_saved_under_each_of_their_names(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    save(tmp_path, model=model, optimizer=optimizer, schedule={}, ranks=[], round=0, step=0)
    assert set(load(tmp_path).weights) == {"0.weight", "1.weight"}


def test_groups_keep_their_identity_when_their_values_are_loaded(tmp_path: Path) -> None:
    written(tmp_path)
    model = make_model(seed=2)
    optimizer = make_optimizer(model)
    held = optimizer.param_groups[0]
    held["lr"] = 5.0
    restore(load(tmp_path), model, optimizer)
    assert optimizer.param_groups[0] is held
    assert held["lr"] == 1e-2


def test_each_rank_gets_its_own_random_state_back(tmp_path: Path) -> None:
    loaded = load(written(tmp_path))
    for rank in range(3):
        restore_rank(loaded, rank, UNTOUCHED, world_size=3, seed=0)
        drawn = torch.rand(4)
        torch.manual_seed(100 + rank)
        assert torch.equal(drawn, torch.rand(4))


def test_ranks_beyond_the_saved_ones_are_seeded_by_seed_and_rank(tmp_path: Path) -> None:
    loaded = load(written(tmp_path, world_size=2))
    draws = []
    for rank, seed in [(5, 7), (5, 7), (6, 7), (5, 8)]:
        restore_rank(loaded, rank, UNTOUCHED, world_size=8, seed=seed)
        draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


@pytest.mark.parametrize("world_size", [2, 3])
def test_moments_that_differ_by_rank_come_back_where_ranks_are_as_many(
    tmp_path: Path, world_size: int
) -> None:
    states = []
    for seed in (1, 2):
        model = make_model(seed=seed)
        optimizer = make_optimizer(model)
        train(model, optimizer, steps=2)
        states.append(copy.deepcopy(optimizer.state_dict()["state"]))
    ranks = [{"rng": capture_rng(), "optimizer": state} for state in states]
    save(tmp_path, model=model, optimizer=optimizer, schedule={}, ranks=ranks, round=0, step=0)
    for rank in range(2):
        model = make_model(seed=3)
        optimizer = make_optimizer(model)
        restore(load(tmp_path), model, optimizer)
        optimizer.param_groups[0]["lr"] = 5.0
        restore_rank(load(tmp_path), rank, optimizer, world_size=world_size, seed=0)
        assert equal(optimizer.state_dict()["state"], states[rank if world_size == 2 else 1])
        assert optimizer.param_groups[0]["lr"] == 5.0


class Position:
    """A sampler as far as a checkpoint sees it."""

    value: int | None = None

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["position"]


@pytest.mark.parametrize(("world_size", "positions"), [(3, [0, 1, 2]), (2, [0, 0]), (5, [0, 0, 0, 0, 0])])
def test_samplers_agree_on_a_position_at_any_world_size(
    tmp_path: Path, world_size: int, positions: list[int]
) -> None:
    loaded = load(written(tmp_path, world_size=3))
    found = []
    for rank in range(world_size):
        sampler = Position()
        restore_rank(loaded, rank, UNTOUCHED, world_size=world_size, seed=0, sampler=sampler)
        found.append(sampler.value)
    assert found == positions


def test_a_sampler_without_a_saved_position_is_refused(tmp_path: Path) -> None:
    model = make_model(seed=1)
    save(
        tmp_path,
        model=model,
        optimizer=make_optimizer(model),
        schedule={},
        ranks=[{"rng": capture_rng(), "sampler": None}],
        round=0,
        step=0,
    )
    with pytest.raises(CheckpointError, match="no sampler position"):
        restore_rank(load(tmp_path), 0, UNTOUCHED, world_size=1, seed=0, sampler=Position())


@pytest.mark.parametrize("draw", [lambda: torch.rand(3).tolist(), random.random, np.random.random])
def test_every_global_generator_continues_where_it_was(draw: Callable[[], Any], tmp_path: Path) -> None:
    seed_rng(3, rank=1)
    draw()
    path = tmp_path / "rng.pt"
    torch.save(capture_rng(), path)
    expected = draw()
    seed_rng(4, rank=1)
    restore_rng(torch.load(path, weights_only=True))
    assert draw() == expected


def test_extra_objects_travel_with_the_checkpoint(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    scaler.scale(torch.ones(1))
    scaler.update(64.0)
    written(tmp_path, extra={"scaler": scaler.state_dict()})
    model, other = make_model(seed=2), torch.amp.GradScaler("cpu", init_scale=1.0)
    restore(load(tmp_path), model, make_optimizer(model), extra={"scaler": other})
    assert other.state_dict() == scaler.state_dict()


@pytest.mark.parametrize(
    "state", [{"mean": np.float64(0.5)}, {"seen": {"deep": [np.arange(3)]}}, {"last": collections.deque([1])}]
)
def test_what_torch_would_not_load_is_refused_when_it_is_saved(tmp_path: Path, state: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"extra='ema' can be saved but not loaded"):
        written(tmp_path, extra={"ema": state})
    assert not list(tmp_path.iterdir())


def test_a_number_of_numpys_among_the_optimizers_settings_is_named(tmp_path: Path) -> None:
    model = make_model(seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=np.float64(0.01))
    with pytest.raises(CheckpointError, match=r"param_groups can be saved but not loaded \(numpy"):
        save(tmp_path, model=model, optimizer=optimizer, schedule={}, ranks=[], round=0, step=0)


def test_an_extra_object_that_was_not_saved_is_named(tmp_path: Path) -> None:
    loaded = load(written(tmp_path))
    model = make_model(seed=2)
    with pytest.raises(CheckpointError, match="extra='ema'"):
        restore(loaded, model, make_optimizer(model), extra={"ema": model})


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "schedule.json", "ranks.pt"])
def test_a_truncated_file_is_never_loaded(tmp_path: Path, name: str) -> None:
    path = written(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{name} has \d+ bytes"):
        load(tmp_path)


def test_a_file_of_another_write_is_never_loaded(tmp_path: Path) -> None:
    path = written(tmp_path) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="digest"):
        load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (written(tmp_path) / "ranks.pt").unlink()
    with pytest.raises(CheckpointError, match=r"lacks ranks\.pt"):
        load(tmp_path)


def test_a_folder_without_a_manifest_is_unfinished(tmp_path: Path) -> None:
    (written(tmp_path) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="never finished"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "1"}', '{"version": 1}'])
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    (written(tmp_path) / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="can't be read"):
        load(tmp_path)


def test_a_checkpoint_of_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path) / "manifest.json"
    fields = json.loads(path.read_text())
    fields["version"] = MANIFEST_VERSION + 1
    fields["a_field_of_the_future"] = 1
    path.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="upgrade hdet_ray"):
        load(tmp_path)


def refused(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, match: str) -> None:
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(CheckpointError, match=match):
        restore(load(folder), model, optimizer)
    assert equal(before, (model.state_dict(), optimizer.state_dict()))


def test_a_checkpoint_of_another_model_changes_nothing(tmp_path: Path) -> None:
    model = make_model(seed=2, width=8)
    refused(written(tmp_path), model, make_optimizer(model), match="of another model: its '0.bias'")


def test_a_checkpoint_with_another_number_of_groups_changes_nothing(tmp_path: Path) -> None:
    model = make_model(seed=2)
    refused(written(tmp_path), model, make_optimizer(model, num_groups=1), match="2 parameter groups")


def test_a_checkpoint_with_other_groups_changes_nothing(tmp_path: Path) -> None:
    model = make_model(seed=2)
    optimizer = make_optimizer(model)
    optimizer.param_groups.reverse()
    refused(written(tmp_path), model, optimizer, match="parameter group 0")


def test_a_state_that_is_no_tensor_is_refused_before_the_manifest_is_written(tmp_path: Path) -> None:
    class WithExtraState(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"scale": 1.0}

    model = WithExtraState(2, 2)
    with pytest.raises(CheckpointError, match="_extra_state"):
        save(
            tmp_path,
            model=model,
            optimizer=make_optimizer(model),
            schedule={},
            ranks=[],
            round=0,
            step=0,
        )
    assert not (tmp_path / "manifest.json").exists()


def test_a_rewrite_that_dies_leaves_an_unfinished_folder(tmp_path: Path) -> None:
    written(tmp_path)
    model = make_model(seed=1)
    with pytest.raises((TypeError, AttributeError)):  # can't be written; the old weights are gone already
        save(
            tmp_path,
            model=model,
            optimizer=make_optimizer(model),
            schedule={"x": lambda: None},
            ranks=[],
            round=5,
            step=99,
        )
    with pytest.raises(CheckpointError, match="never finished"):
        load(tmp_path)


def test_exported_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    folder = written(tmp_path / "checkpoint_x" / "hdet")
    for place in (folder, folder.parent, f"file://{folder.parent}"):
        path = export_weights(place, tmp_path / "out" / "model.safetensors")
        assert equal(safetensors.torch.load_file(path), dict(load(folder).weights))


def test_weights_of_a_damaged_checkpoint_are_not_exported(tmp_path: Path) -> None:
    path = written(tmp_path / "c") / "optimizer.pt"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt"):
        export_weights(tmp_path / "c", tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_an_export_of_nothing_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="name the folder"):
        export_weights(tmp_path, tmp_path / "model.safetensors")
