"""What operators ask for happens at a boundary, on all replicas, inside the bounds, and leaves a record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from hdet_ray.config import Fixed, Paper
from hdet_ray.core.decide import decide, start
from hdet_ray.core.overrides import Freeze, Override, OverrideRecord, Removal, SetBounds
from hdet_ray.core.plan import Plan, value_at
from hdet_ray.core.state import ScheduleState
from hdet_ray.core.steering import check_override
from hdet_ray.exceptions import OverrideError
from tests.unit.runs import (
    after,
    c_of,
    dropout,
    make_config,
    make_replica,
    make_report,
    measured,
    search_of,
    weight_decay,
)

Command = Override | Removal | Freeze | SetBounds


def set_rate(value: float, **settings: Any) -> Override:
    return Override(id="a", hparam="lr", op="set", value=value, **settings)


def scale_rate(value: float, **settings: Any) -> Override:
    return Override(id="a", hparam="lr", op="scale", value=value, **settings)


def step(state: ScheduleState, plan: Plan, *commands: Command, **changes: Any) -> tuple[ScheduleState, Plan]:
    """One uneventful round, at whose end these commands arrive."""
    return decide(state, make_report(plan, commands=commands, **changes))


def record(state: ScheduleState, override_id: str = "a") -> OverrideRecord:
    (found,) = [r for r in state.overrides if r.override.id == override_id]
    return found


def peak(plan: Plan, group: int = 0) -> float:
    return plan.peak["lr", group]


def searched(num_replicas: int = 4, **settings: Any) -> tuple[ScheduleState, Plan]:
    """A run whose search has ended at c = 1."""
    last = search_of(make_config(**settings), num_replicas, lambda c: 2 + (c - 1) ** 2, untrained_loss=99.0)[
        -1
    ]
    return last.next_state, last.next_plan


# Set


def test_set_pins_the_peak_on_every_replica_from_the_next_round_on() -> None:
    state, plan = start(make_config(Fixed()), 4)
    state, after_set = step(state, plan, set_rate(2e-3))
    assert plan.overrides == ()
    assert after_set.overrides == ("a",)
    assert peak(after_set) == 2e-3
    assert len(after_set.values["lr", 0]) == 4
    assert value_at(after_set, "lr", 0, 0, 500) == pytest.approx(
        2 * value_at(plan, "lr", 0, 0, 500) * after_set.values["lr", 0][0] / plan.values["lr", 0][0]
    )
    assert (record(state).status, record(state).applied_round) == ("applied", 1)


def test_set_under_paper_after_its_warm_up_means_the_rate_itself_and_stops_the_controller() -> None:
    state, plan = start(make_config(Paper(warmup_steps=0)), 4)
    state, plan = step(state, plan, set_rate(2e-3))
    for _ in range(3):
        assert plan.base["lr", 0] == 2e-3
        before = state
        state, plan = step(state, plan)
        assert state.velocity == before.velocity
    before = state
    state, plan = step(state, plan, Removal(id="a"))
    assert record(state).status == "removed"
    # What replicas did around the pinned value says nothing about the controller's own.
    assert (state.rates, state.velocity) == (before.rates, before.velocity)
    assert plan.base["lr", 0] == state.rates[0] != 2e-3  # type: ignore[index]


def test_set_of_a_further_hyperparameter_pins_it_and_holds_the_others_free() -> None:
    config = make_config(Paper(warmup_steps=0), explored=[weight_decay(), dropout()])
    state, plan = start(config, 4)
    state, plan = step(state, plan, Override(id="a", hparam="dropout", op="set", value=0.5))
    ranked = [make_replica(float(r), probe_loss=float(r)) for r in range(4)]
    pinned = state
    state, plan = decide(state, make_report(plan, ranked))
    assert plan.base["dropout", 0] == 0.5
    assert state.explored["dropout", 0] == pinned.explored["dropout", 0]
    assert state.explored["weight_decay", 0] != pinned.explored["weight_decay", 0]


def test_a_dropout_set_to_zero_is_not_spread_and_does_not_stop_the_run() -> None:
    state, plan = start(make_config(Fixed(), explored=[dropout()]), 4)
    state, plan = step(state, plan, Override(id="a", hparam="dropout", op="set", value=0.0))
    assert [value_at(plan, "dropout", 0, r, plan.step) for r in range(4)] == [0.0] * 4


def test_set_for_all_groups_gives_each_the_value_and_for_one_only_that() -> None:
    config = make_config(Fixed(), max_lr=(1e-3, 4e-3))
    _, everywhere = step(*start(config, 2), set_rate(2e-3))
    _, one = step(*start(config, 2), set_rate(2e-3, group=1))
    assert (peak(everywhere, 0), peak(everywhere, 1)) == (2e-3, 2e-3)
    assert (peak(one, 0), peak(one, 1)) == (1e-3, 2e-3)


def test_of_two_sets_the_newest_counts_and_its_end_brings_the_older_back() -> None:
    state, plan = step(*start(make_config(Fixed()), 2), set_rate(2e-3))
    newer = Override(id="b", hparam="lr", op="set", value=3e-3, expires_after_rounds=1)
    state, plan = step(state, plan, newer)
    assert peak(plan) == 3e-3
    state, plan = step(state, plan)
    assert peak(plan) == 2e-3


# Scale


def test_scale_multiplies_once_and_stays() -> None:
    state, plan = step(*start(make_config(Fixed()), 2), scale_rate(0.5))
    for _ in range(3):
        assert peak(plan) == pytest.approx(5e-4)
        state, plan = step(state, plan)
    assert record(state).status == "applied"


def test_scale_of_one_group_changes_its_ratio_for_good() -> None:
    config = make_config(Fixed(), max_lr=(1e-3, 4e-3))
    state, plan = step(*start(config, 2), scale_rate(0.5, group=1))
    assert (peak(plan, 0), peak(plan, 1)) == pytest.approx((1e-3, 2e-3))
    state, plan = step(state, plan, Override(id="b", hparam="lr", op="scale", value=3.0))
    assert (peak(plan, 0), peak(plan, 1)) == pytest.approx((3e-3, 6e-3))


def test_an_expired_or_removed_scale_takes_its_factor_back() -> None:
    state, plan = step(*start(make_config(Fixed()), 2), scale_rate(0.5, expires_after_rounds=2))
    peaks = []
    for _ in range(3):
        peaks.append(peak(plan))
        state, plan = step(state, plan)
    assert peaks == pytest.approx([5e-4, 5e-4, 1e-3])
    assert record(state).status == "expired"
    state, plan = step(*start(make_config(Fixed()), 2), scale_rate(0.5))
    state, plan = step(state, plan, Removal(id="a"))
    assert peak(plan) == pytest.approx(1e-3)


@pytest.mark.parametrize("group", [None, 1])
def test_scale_under_paper_multiplies_the_rates_it_follows(group: int | None) -> None:
    config = make_config(Paper(warmup_steps=0), max_lr=(1e-3, 4e-3))
    _, plain = step(*start(config, 2))
    _, scaled = step(*start(config, 2), scale_rate(0.5, group=group))
    ratios = [scaled.base["lr", g] / plain.base["lr", g] for g in range(2)]
    assert ratios == pytest.approx([0.5 if group is None else 1.0, 0.5])


# When


def test_an_override_waits_for_its_round() -> None:
    state, plan = start(make_config(Fixed()), 2)
    state, plan = step(state, plan, set_rate(2e-3, apply_at_round=3))
    for _ in range(5):
        assert (peak(plan) == 2e-3) == (plan.round >= 3)
        assert record(state).status == ("applied" if plan.round >= 3 else "pending")
        state, plan = step(state, plan)
    assert record(state).applied_round == 3


def test_an_override_for_a_round_that_has_passed_takes_effect_at_the_next() -> None:
    state, plan = step(*after(make_config(Fixed()), 2, 4), set_rate(2e-3, apply_at_round=1))
    assert (peak(plan), record(state).applied_round) == (2e-3, 5)


def test_a_set_expires_after_as_many_rounds_as_it_says() -> None:
    state, plan = step(*start(make_config(Fixed()), 2), set_rate(2e-3, expires_after_rounds=2))
    peaks = []
    for _ in range(3):
        peaks.append(peak(plan))
        state, plan = step(state, plan)
    assert peaks == [2e-3, 2e-3, 1e-3]
    assert record(state).status == "expired"


def test_a_pending_override_can_be_removed_before_it_applies() -> None:
    state, plan = step(*start(make_config(Fixed()), 2), set_rate(2e-3, apply_at_round=3))
    state, plan = step(state, plan, Removal(id="a"))
    for _ in range(4):
        assert peak(plan) == 1e-3
        state, plan = step(state, plan)
    assert record(state).status == "removed"


# Refused


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        (set_rate(100.0), "outside its bounds"),
        (set_rate(-1e-3), "outside its bounds"),
        (scale_rate(1e-9), "outside its bounds"),
        (set_rate(2e-3, group=7), "of group 7"),
        (Override(id="a", hparam="temperature", op="set", value=1.0), "no hyperparameter 'temperature'"),
    ],
)
def test_what_can_not_apply_is_refused_with_the_reason_and_changes_nothing(
    override: Override, reason: str
) -> None:
    state, plan = start(make_config(Fixed()), 2)
    _, plain = step(state, plan)
    with pytest.raises(OverrideError, match=reason):
        check_override(state, override)
    refused, after_refusal = step(state, plan, override)
    assert record(refused).status == "refused"
    assert reason in record(refused).reason
    assert after_refusal == plain


def test_an_id_is_used_once() -> None:
    state, plan = step(*start(make_config(Fixed()), 2), set_rate(2e-3))
    state, plan = step(state, plan, set_rate(3e-3))
    assert [r.status for r in state.overrides] == ["applied", "refused"]
    assert peak(plan) == 2e-3


def test_an_override_for_all_groups_applies_to_all_or_to_none() -> None:
    bounds = {("lr", 0): (1e-4, 1e-2), ("lr", 1): (1e-3, 5e-3)}
    state, plan = start(make_config(Fixed(), max_lr=(1e-3, 4e-3), bounds=bounds), 2)
    state, plan = step(state, plan, set_rate(8e-3))
    assert record(state).status == "refused"
    assert (peak(plan, 0), peak(plan, 1)) == (1e-3, 4e-3)


def test_a_pending_override_that_new_bounds_exclude_is_refused_when_it_is_due() -> None:
    state, plan = step(*start(make_config(Fixed()), 2), set_rate(5e-3, apply_at_round=3))
    state, plan = step(state, plan, SetBounds(hparam="lr", low=1e-4, high=2e-3))
    state, plan = step(state, plan)
    assert record(state).status == "refused"
    assert peak(plan) == 1e-3


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"op": "multiply", "value": 1.0}, "op='multiply'"),
        ({"op": "set", "value": math.nan}, "value=nan"),
        ({"op": "scale", "value": 0.0}, r"scale by 0\.0"),
        ({"op": "set", "value": 1.0, "apply_at_round": -1}, "apply_at_round=-1"),
        ({"op": "set", "value": 1.0, "expires_after_rounds": 0}, "expires_after_rounds=0"),
    ],
)
def test_an_override_that_makes_no_sense_is_refused_by_value(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(OverrideError, match=reason):
        Override(id="a", hparam="lr", **settings)


# Freeze and bounds


def test_a_frozen_rate_stays_until_it_is_freed() -> None:
    state, plan = after(make_config(Paper(warmup_steps=0)), 4, 2)
    state, plan = step(state, plan, Freeze(hparam="lr", is_frozen=True))
    frozen_at = state.rates
    state, plan = step(state, plan)
    assert state.rates == frozen_at
    state, plan = step(state, plan, Freeze(hparam="lr", is_frozen=False))
    assert state.rates != frozen_at


def test_new_bounds_pull_the_value_and_what_overrides_hold_inside() -> None:
    state, plan = step(*start(make_config(Fixed()), 2), set_rate(5e-3))
    state, plan = step(state, plan, SetBounds(hparam="lr", low=1e-4, high=2e-3))
    assert peak(plan) == 2e-3
    state, plan = step(state, plan, Removal(id="a"), SetBounds(hparam="lr", low=1e-4, high=5e-4))
    assert peak(plan) == pytest.approx(5e-4)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (SetBounds(hparam="lr", low=0.0, high=1.0), "lower bound above 0"),
        (SetBounds(hparam="weight_decay", low=-1.0, high=1.0), "lower bound above 0"),
        (SetBounds(hparam="lr", low=1e-3, high=2e-3), "no common factor"),
        (SetBounds(hparam="temperature", low=0.0, high=1.0), "no such hyperparameter"),
        (Freeze(hparam="temperature", is_frozen=True), "nothing to freeze"),
        (Removal(id="nobody's"), "nothing to remove"),
    ],
)
def test_a_command_that_can_not_apply_is_told_and_changes_nothing(command: Command, reason: str) -> None:
    config = make_config(Fixed(), max_lr=(1e-3, 1e-2), explored=[weight_decay()])
    state, plan = start(config, 4)
    plain, _ = step(state, plan)
    told, after_command = step(state, plan, command)
    assert any(reason in note for note in after_command.notes)
    assert told == type(plain)(**{**{f: getattr(plain, f) for f in plain.__slots__}, "notes": told.notes})


# During a search


def test_set_during_a_search_ends_it_at_that_value() -> None:
    state, plan = start(make_config(), 4)
    state, plan = step(state, plan, set_rate(3e-3))
    assert not state.is_searching
    assert (plan.phase, peak(plan)) == ("train", 3e-3)
    assert plan.search_steps == plan.step == 20
    state, plan = step(state, plan, Removal(id="a"))
    assert peak(plan) == pytest.approx(3e-3)  # what was set is what the search has found


def test_set_for_one_group_during_a_search_keeps_the_ratio_to_the_others() -> None:
    state, plan = start(make_config(max_lr=(1e-3, 4e-3)), 4)
    _, plan = step(state, plan, set_rate(8e-3, group=1))
    assert (peak(plan, 0), peak(plan, 1)) == pytest.approx((2e-3, 8e-3))


@pytest.mark.parametrize("num_rounds", [0, 1, 2, 3])
def test_freeze_during_a_search_ends_it_at_the_best_so_far(num_rounds: int) -> None:
    config = make_config()
    found = search_of(config, 4, lambda c: 2 + (c - 1) ** 2, untrained_loss=99.0)[num_rounds]
    report = measured(
        found.plan,
        lambda c: 2 + (c - 1) ** 2,
        untrained_loss=99.0,
        commands=(Freeze(hparam="lr", is_frozen=True),),
    )
    state, plan = decide(found.state, report)
    assert state.search is not None
    assert plan.phase == "train"
    tried = {p.c for p in state.search.points if p.phase == found.plan.phase}
    best = min(tried, key=lambda c: abs(c - 1)) if num_rounds < 3 else 1.0
    assert state.log_scale == pytest.approx(best, abs=1e-6)


def test_scale_during_a_search_waits_for_the_first_round_after_it() -> None:
    config = make_config()
    state, plan = start(config, 4)
    command: Sequence[Command] = (scale_rate(0.5),)
    while plan.is_search:
        report = measured(plan, lambda c: 2 + (c - 1) ** 2, untrained_loss=99.0, commands=command)
        state, plan = decide(state, report)
        command = ()
        assert record(state).status == ("pending" if plan.is_search else "applied")
    assert peak(plan) == pytest.approx(1e-3 * math.e / 2)
    assert record(state).applied_round == plan.round


def test_overrides_of_other_hyperparameters_do_not_disturb_a_search() -> None:
    state, plan = start(make_config(explored=[weight_decay()]), 4)
    state, plan = step(state, plan, Override(id="a", hparam="weight_decay", op="set", value=0.1))
    assert plan.is_search
    assert [value_at(plan, "weight_decay", 0, r, plan.step) for r in range(4)] == [0.1] * 4


def test_bounds_set_during_a_search_hold_for_what_is_tried_next_not_for_what_was_tried() -> None:
    state, plan = start(make_config(), 4)
    tried = [c_of(plan, r) for r in range(4)]
    bounds = SetBounds(hparam="lr", low=5e-4, high=2e-3)
    state, plan = decide(
        state, measured(plan, lambda c: 2 + (c - 1) ** 2, untrained_loss=99.0, commands=(bounds,))
    )
    assert state.search is not None
    assert [p.c for p in state.search.points] == pytest.approx(tried)
    while plan.is_search:
        assert all(5e-4 * (1 - 1e-9) <= peak(plan) * m <= 2e-3 * (1 + 1e-9) for m in plan.values["lr", 0])
        state, plan = decide(state, measured(plan, lambda c: 2 + (c - 1) ** 2))
    assert peak(plan) == pytest.approx(2e-3)


def test_after_a_search_the_found_rate_can_be_set_scaled_and_freed() -> None:
    state, plan = searched()
    assert peak(plan) == pytest.approx(1e-3 * math.e)
    state, plan = step(state, plan, set_rate(5e-3, expires_after_rounds=1))
    assert peak(plan) == 5e-3
    state, plan = step(state, plan)
    assert peak(plan) == pytest.approx(1e-3 * math.e)
