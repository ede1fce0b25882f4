"""What is read back from JSON equals what was written, bit for bit; what can't be read is named."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdet_ray.config import Auto, Fixed, Paper
from hdet_ray.core.codec import digest, from_json, to_json
from hdet_ray.core.decide import start
from hdet_ray.core.overrides import Freeze, Override, Removal, SetBounds
from hdet_ray.core.plan import Plan
from hdet_ray.core.report import ReplicaReport, RoundReport
from hdet_ray.core.state import ScheduleConfig
from hdet_ray.exceptions import LedgerError
from tests.unit.runs import dropout, make_config, make_replica, make_report, weight_decay

finite = st.floats(allow_nan=False, allow_infinity=False)
numbers = st.floats()  # NaN and infinity too


def there_and_back(kind: Any, value: object) -> Any:
    return from_json(kind, json.loads(json.dumps(to_json(value), allow_nan=False)))


def plain(value: Any) -> Any:
    """For comparing: floats by their bits, except that all which are not finite are the same."""
    if is_dataclass(value):
        return type(value), {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, float):
        return value.hex() if math.isfinite(value) else "not finite"
    return value


replicas = st.builds(
    ReplicaReport,
    loss=numbers,
    tail_loss=numbers,
    start_loss=numbers,
    last_loss=numbers,
    noise=numbers,
    is_finite=st.booleans(),
    brought_nonfinite=st.booleans(),
    probe_loss=st.none() | numbers,
)
keys = st.tuples(st.sampled_from(["lr", "weight_decay"]), st.integers(0, 3))
overrides = st.builds(
    Override,
    id=st.text(max_size=5),
    hparam=st.text(max_size=5),
    op=st.sampled_from(["set", "scale"]),
    value=st.floats(1e-9, 1e9),
    group=st.none() | st.integers(0, 9),
    expires_after_rounds=st.none() | st.integers(1, 9),
)
commands = (
    overrides
    | st.builds(Removal, id=st.text(max_size=5))
    | st.builds(Freeze, hparam=st.text(max_size=5), is_frozen=st.booleans())
    | st.builds(SetBounds, hparam=st.just("lr"), low=st.floats(0, 1), high=st.floats(2, 3))
)
reports = st.builds(
    RoundReport,
    round=st.integers(0, 10**6),
    calls=st.integers(0, 10**6),
    steps=st.integers(0, 10**6),
    plan_digest=st.text(max_size=8),
    replicas=st.lists(replicas, max_size=4).map(tuple),
    untrained_loss=st.none() | numbers,
    external_rates=st.dictionaries(keys, finite, max_size=3),
    commands=st.lists(commands, max_size=4).map(tuple),
    next_num_replicas=st.none() | st.integers(1, 9),
    facts=st.dictionaries(st.text(max_size=5), finite, max_size=3),
)


@settings(max_examples=60)
@given(report=reports)
def test_a_report_comes_back_as_it_was(report: RoundReport) -> None:
    back = there_and_back(RoundReport, report)
    assert plain(back) == plain(report)
    assert digest(back) == digest(report)


@pytest.mark.parametrize("controller", [Auto(alpha=0.1), Paper(warmup_steps=0), Fixed(gradient_sync="local")])
@pytest.mark.parametrize("num_replicas", [1, 4, 5])
def test_a_plan_comes_back_as_it_was(controller: Auto | Paper | Fixed, num_replicas: int) -> None:
    explored = [weight_decay()] if num_replicas > 1 else []
    _, plan = start(make_config(controller, explored=explored), num_replicas)
    back = there_and_back(Plan, plan)
    assert back == plan
    assert digest(back) == digest(plan)


@given(rate=st.floats(1e-9, 1e3), base=st.floats(1e-5, 0.99))
def test_floats_come_back_in_every_bit(rate: float, base: float) -> None:
    config = make_config(max_lr=(rate,), explored=[weight_decay(base=base)])
    assert there_and_back(ScheduleConfig, config) == config


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_null_with_a_mark_beside_it(value: float) -> None:
    data = to_json(make_replica(2.0, last_loss=value))
    assert data["last_loss"] is None
    assert data["nonfinite"] is True
    assert "nonfinite" not in to_json(make_replica(2.0))
    assert math.isnan(from_json(ReplicaReport, data).last_loss)


def test_what_is_absent_stays_absent_beside_a_number_that_is_not_finite() -> None:
    silent = make_replica(math.nan, probe_loss=None)
    broken = make_replica(2.0, probe_loss=math.nan)
    assert there_and_back(ReplicaReport, silent).probe_loss is None
    assert math.isnan(there_and_back(ReplicaReport, broken).probe_loss)
    assert digest(silent) != digest(make_replica(math.nan, probe_loss=math.nan))


def test_keys_of_hyperparameter_and_group_nest() -> None:
    _, plan = start(make_config(max_lr=(1e-3, 2e-3)), 2)
    assert to_json(plan)["peak"] == {"lr": {"0": plan.peak["lr", 0], "1": plan.peak["lr", 1]}}


def test_an_integer_where_a_float_belongs_has_the_digest_of_the_float() -> None:
    whole = make_config(explored=[dropout(base=1, high=2)])
    written = make_config(explored=[dropout(base=1.0, high=2.0)])
    assert digest(whole) == digest(written) == digest(there_and_back(ScheduleConfig, whole))
    (before, _), (after_it, _) = ((start(config, 4)[1], config) for config in (whole, written))
    assert digest(before) == digest(after_it)


def test_a_field_that_equals_its_default_may_be_missing() -> None:
    data = to_json(make_replica(2.0))
    del data["probe_loss"], data["brought_nonfinite"]
    assert from_json(ReplicaReport, data) == make_replica(2.0)


def test_an_unknown_field_is_named_by_its_path() -> None:
    _, plan = start(make_config(), 2)
    data = to_json(make_report(plan))
    data["replicas"][1]["mood"] = "good"
    with pytest.raises(LedgerError, match=r"replicas\[1\]: unknown field 'mood'"):
        from_json(RoundReport, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("steps"), "steps is missing"),
        (lambda d: d.update(steps=1.5), r"steps: 1\.5 is not int"),
        (lambda d: d.update(steps=True), "steps: True is not int"),
        (lambda d: d.update(plan_digest=3), "plan_digest: 3 is not str"),
        (lambda d: d.update(replicas={}), "replicas: {} is not list"),
        (lambda d: d["replicas"][0].update(loss="low"), r"replicas\[0\]\.loss: 'low' is not a number"),
        (lambda d: d.update(commands=[{"kind": "reboot"}]), r"commands\[0\]\.kind: 'reboot' is none of"),
        (lambda d: d.update(commands=[{"kind": ["set"]}]), r"commands\[0\]\.kind: .* is none of"),
        (
            lambda d: d.update(external_rates={"lr": {"first": 1.0}}),
            "external_rates.lr: 'first' is no parameter",
        ),
        (
            lambda d: d.update(commands=[{"kind": "setbounds", "hparam": "lr", "low": 2.0, "high": 1.0}]),
            r"commands\[0\]: bounds \(2\.0, 1\.0\)",
        ),
    ],
)
def test_a_damaged_field_is_named_by_its_path(change: Any, message: str) -> None:
    _, plan = start(make_config(), 2)
    data = to_json(make_report(plan))
    change(data)
    with pytest.raises(LedgerError, match=message):
        from_json(RoundReport, data)


def test_a_value_that_the_dataclass_refuses_is_named_by_its_path() -> None:
    data = to_json(make_config())
    data["controller"]["alpha"] = 2.0
    with pytest.raises(LedgerError, match=r"controller: alpha=2\.0"):
        from_json(ScheduleConfig, data)


def test_the_digest_depends_on_every_field_and_on_nothing_else() -> None:
    _, plan = start(make_config(), 2)
    report = make_report(plan)
    assert digest(report) == digest(replace(report))
    assert digest(report) != digest(replace(report, steps=report.steps - 1))
    assert digest(report) != digest(replace(report, replicas=report.replicas[::-1][:1]))
