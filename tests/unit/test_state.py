"""The state: whole, small, the same at any world size, and refused when it can't be trusted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdet_ray.config import Auto, Fixed, Paper
from hdet_ray.core.decide import decide, start
from hdet_ray.core.overrides import Freeze, Override
from hdet_ray.core.planning import plan_for
from hdet_ray.core.state import STATE_VERSION, Explored, ScheduleConfig, state_from_json, state_to_json
from hdet_ray.exceptions import CheckpointError, ConfigError
from tests.unit.runs import after, dropout, make_config, make_replica, make_report, rounds, weight_decay

controllers = st.sampled_from([Auto(), Auto(alpha=0.1), Paper(warmup_steps=40), Fixed(gradient_sync="local")])


@given(
    controller=controllers,
    num_replicas=st.integers(1, 9),
    losses=st.lists(st.floats(0, 10) | st.just(float("nan")), min_size=1, max_size=20),
    num_rounds=st.integers(0, 12),
)
def test_a_state_read_back_from_json_plans_and_decides_the_same(
    controller: Auto | Paper | Fixed, num_replicas: int, losses: list[float], num_rounds: int
) -> None:
    config = make_config(controller, explored=[weight_decay()] if num_replicas > 2 else [])
    state, plan = start(config, num_replicas)
    for i in range(num_rounds):
        if not plan.num_steps:
            break
        drawn = [losses[(i + r) % len(losses)] for r in range(num_replicas)]
        commands = (Override(id=f"o{i}", hparam="lr", op="scale", value=0.9),) if i == 3 else ()
        report = make_report(plan, [make_replica(x, probe_loss=x) for x in drawn], commands=commands)
        back = state_from_json(json.loads(json.dumps(state_to_json(state), allow_nan=False)))
        assert back == state
        assert plan_for(back, num_replicas) == plan
        state, plan = decide(state, report)
        assert decide(back, report) == (state, plan)


def test_the_state_is_equal_however_its_report_was_carried() -> None:
    # Pure: nothing but the arguments counts.
    state, plan = start(make_config(), 4)
    report = make_report(plan)
    assert decide(state, report) == decide(state, report)


def test_a_states_size_does_not_grow_with_the_rounds_or_with_n() -> None:
    config = make_config(Paper(sync_every=10, warmup_steps=20), total_steps=2000, explored=[weight_decay()])
    sizes = {
        (n, k): len(json.dumps(state_to_json(after(config, n, k)[0]))) for n in (2, 64) for k in (10, 150)
    }
    assert max(sizes.values()) - min(sizes.values()) < 60  # digits of the numbers in it


def test_a_newer_version_is_refused_with_the_remedy() -> None:
    data = state_to_json(start(make_config(), 2)[0])
    data["version"] = STATE_VERSION + 1
    with pytest.raises(CheckpointError, match=f"version {STATE_VERSION + 1}.*upgrade hdet-ray"):
        state_from_json(data)


@pytest.mark.parametrize("version", [None, "1"])
def test_a_state_without_a_version_is_damaged(version: object) -> None:
    with pytest.raises(CheckpointError, match="damaged: version"):
        state_from_json({"version": version, "state": {}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("ratios"), "ratios is missing"),
        (lambda s: s.update(mood=1), "unknown field 'mood'"),
        (lambda s: s["config"]["controller"].update(kind="magic"), r"config\.controller\.kind: 'magic'"),
        (lambda s: s["config"].update(total_steps=0), "config: total_steps=0"),
    ],
)
def test_a_damaged_state_names_the_field(change: Any, message: str) -> None:
    data = state_to_json(start(make_config(), 2)[0])
    change(data["state"])
    with pytest.raises(CheckpointError, match=message):
        state_from_json(data)


def test_a_cut_state_is_a_checkpoint_error() -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        state_from_json({"version": STATE_VERSION})


# What a run may be started with


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 50, "controller": Fixed(sync_every=51)}, "sync_every=51 is longer than the run"),
        ({"controller": Paper(warmup_steps=1201)}, "warmup_steps=1201 is longer"),
        ({"bounds": {("lr", 0): (0.0, 1.0)}}, r"bounds \(0\.0, 1\.0\) of lr"),
        ({"bounds": {("lr", 0): (float("nan"), 1.0)}}, r"bounds \(nan, 1\.0\) of lr"),
        ({"bounds": {("lr", 0): (1e-2, 1e-3)}}, "low below high"),
        ({"probe_samples": 0}, "probe_samples=0"),
        ({"max_rollbacks": -1}, "max_rollbacks=-1"),
        ({"explored": [weight_decay(), weight_decay()]}, "weight_decay of group 0 is explored twice"),
    ],
)
def test_a_setting_that_can_not_work_is_refused_by_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**settings)


@pytest.mark.parametrize("rate", [-1e-3, 0.0, float("nan"), float("inf")])
def test_a_rate_that_is_no_rate_is_refused_by_value(rate: float) -> None:
    with pytest.raises(ConfigError, match=f"max_lr of group 0={rate!r}"):
        ScheduleConfig(controller=Fixed(), total_steps=10, max_lr=(rate,), floor_lr=(0.0,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dropout(base=0.0), "base=0 of dropout of group 0 can't be spread"),
        (lambda: dropout(base=0.95), r"base=0\.95 of dropout of group 0 lies outside"),
        (lambda: weight_decay(low=0.0), r"low=0\.0 of weight_decay of group 0: a logarithmic"),
        (lambda: weight_decay(low=2.0), "low below high"),
        (lambda: weight_decay(alpha=1.0), r"alpha=1\.0"),
        (lambda: weight_decay(momentum=1.0), r"momentum=1\.0"),
        (lambda: weight_decay(sigma=0.0), r"sigma=0\.0"),
        (lambda: weight_decay(step_size=-1.0), r"step_size=-1\.0"),
    ],
)
def test_a_hyperparameter_that_can_not_be_explored_is_refused_by_value(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_no_replicas_are_too_few() -> None:
    with pytest.raises(ConfigError, match="num_replicas=0"):
        start(make_config(), 0)


# Further hyperparameters


def test_a_hyperparameter_moves_by_its_log_where_its_scale_is_logarithmic() -> None:
    log, linear = (
        Explored(name="h", group=0, scale=scale, low=1e-3, high=10.0, base=0.1)  # type: ignore[arg-type]
        for scale in ("log", "linear")
    )
    moved = []
    for spec in (log, linear):
        state, plan = start(make_config(Auto(), total_steps=300, explored=[spec]), 2)
        multipliers = plan.values["h", 0]
        rewarding_high = [make_replica(2.0, probe_loss=-100.0 * m) for m in multipliers]
        state, _ = decide(state, make_report(plan, rewarding_high))
        moved.append(state.explored["h", 0])
    # Only the better of two replicas counts: Delta is its distance from the mean, 0.5 * 0.1 of it is taken.
    high, low = 1 + 1 / 9, 1 - 1 / 9
    assert moved[0] == pytest.approx(0.1 * (high / low) ** (0.5 * 0.5 * 0.1), rel=1e-12)
    assert moved[1] == pytest.approx(0.1 * (1 + 0.5 * 0.1 / 9), rel=1e-12)


def test_under_fixed_hyperparameters_are_spread_and_never_moved() -> None:
    config = make_config(Fixed(alpha=0.0), explored=[weight_decay()])
    ranked = [make_replica(float(r)) for r in range(4)]
    found = list(rounds(config, 4, lambda plan: make_report(plan, ranked)))
    assert {d.plan.phase for d in found} == {"fan_out"}
    assert found[-1].next_state.explored == found[0].state.explored


def test_hyperparameters_are_compared_on_probe_losses_where_there_is_a_probe() -> None:
    config = make_config(Auto(), total_steps=300, explored=[weight_decay()])
    state, plan = start(config, 4)
    assert plan.probe is not None
    by_train = [make_replica(float(r), probe_loss=2.0) for r in range(4)]
    assert decide(state, make_report(plan, by_train))[0].explored["weight_decay", 0] == pytest.approx(0.01)
    silent = [make_replica(float(r), probe_loss=None if r else 2.0) for r in range(4)]
    assert decide(state, make_report(plan, silent))[0].explored["weight_decay", 0] == pytest.approx(0.01)
    by_probe = [make_replica(2.0, probe_loss=float(r)) for r in range(4)]
    assert decide(state, make_report(plan, by_probe))[0].explored["weight_decay", 0] != pytest.approx(0.01)


def test_a_hyperparameter_at_its_bound_of_zero_stays_there_and_the_run_goes_on() -> None:
    spec = dropout(base=1e-9, step_size=1e9)
    state, plan = start(make_config(Auto(), total_steps=300, explored=[spec]), 2)
    multipliers = plan.values["dropout", 0]
    state, plan = decide(state, make_report(plan, [make_replica(2.0, probe_loss=m) for m in multipliers]))
    assert plan.base["dropout", 0] == 0.0
    _, plan = decide(state, make_report(plan))
    assert plan.values["dropout", 0] == (1.0, 1.0)


def test_a_frozen_hyperparameter_is_still_spread_and_does_not_move() -> None:
    config = make_config(Auto(), total_steps=300, explored=[weight_decay()])
    state, plan = start(config, 4)
    state, plan = decide(state, make_report(plan, commands=(Freeze(hparam="weight_decay", is_frozen=True),)))
    frozen_at = state.explored
    state, plan = decide(state, make_report(plan, [make_replica(2.0, probe_loss=float(r)) for r in range(4)]))
    assert state.explored == frozen_at
    assert plan.phase == "fan_out"
