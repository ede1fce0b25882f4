"""A job's processes read their environment once, and say what in it can't be read."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("ray")

from hdet_ray import Auto, ConfigError, Fixed, Paper
from hdet_ray.train.job_run import controller_of
from hdet_ray.train.settings import job_settings
from tests.unit.small_runs import adamw, are_equal, net, ours, train

JOB = {"HDET_JOB_ID": "j", "HDET_CONTROL": "hdet/hdet-controller"}


def test_a_run_that_is_nobodys_job_has_no_settings() -> None:
    assert job_settings({}) is None
    assert job_settings({"HDET_JOB_ID": "j"}) is None
    assert job_settings({"HDET_CONTROL": "hdet/x"}) is None


def test_the_environment_is_read_as_it_was_written() -> None:
    spec = {"name": "a", "hdet": {"controller": "fixed", "alpha": 0.2}}
    found = job_settings(
        {**JOB, "HDET_SUBMISSION": "3", "HDET_RESUME_ROUND": "0", "HDET_JOB_SPEC": json.dumps(spec)}
    )
    assert found is not None
    assert (found.job, found.namespace, found.actor) == ("j", "hdet", "hdet-controller")
    assert (found.submission, found.resume_round, found.control_timeout_s) == (3, 0, 1.0)
    assert found.spec == spec


def test_the_actors_name_may_have_rays_scheme() -> None:
    found = job_settings({**JOB, "HDET_CONTROL": "ray://hdet/hdet-controller"})
    assert found is not None
    assert (found.namespace, found.actor) == ("hdet", "hdet-controller")


@pytest.mark.parametrize(
    "wrong",
    [
        {"HDET_CONTROL": "hdet-controller"},
        {"HDET_SUBMISSION": "-1"},
        {"HDET_RESUME_ROUND": "two"},
        {"HDET_JOB_SPEC": "{"},
        {"HDET_JOB_SPEC": "[]"},
        {"HDET_CONTROL_TIMEOUT_S": "0"},
        {"HDET_CONTROL_TIMEOUT_S": "nan"},
    ],
)
def test_what_cannot_be_read_is_named(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        job_settings({**JOB, **wrong})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ({"controller": "auto"}, Auto()),
        ({"controller": "paper", "sync_every": 10, "sigma": 0.2}, Paper(sync_every=10, sigma=0.2)),
        ({"controller": "fixed", "alpha": 0}, Fixed(alpha=0.0)),
    ],
)
def test_a_spec_may_name_the_controller(given: Any, expected: Any) -> None:
    assert controller_of({"hdet": given}) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"controller": "magic"}, "magic"),
        ({"controller": "fixed", "sigma": 0.1}, "sigma"),
        ({"controller": "fixed", "alpha": 2.0}, "alpha=2.0"),
        ({}, "None"),
    ],
)
def test_a_controller_that_cannot_be_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        controller_of({"hdet": given})


def test_a_run_given_another_controller_is_the_run_made_with_it() -> None:
    ends = []
    for is_replaced in (False, True):
        model = net()
        optimizer = adamw(model)
        wanted = Fixed(alpha=0.0, sync_every=10)
        scheduler = ours(optimizer, controller=Paper(sync_every=5) if is_replaced else wanted)
        if is_replaced:
            scheduler.use_controller(wanted)
        assert scheduler.plan.num_steps == 10
        ends.append(train(model, optimizer, scheduler.step))
    assert are_equal(*ends)


def test_a_run_that_has_begun_keeps_its_controller() -> None:
    model = net()
    optimizer = adamw(model)
    scheduler = ours(optimizer)
    train(model, optimizer, scheduler.step, range(1))
    with pytest.raises(ConfigError, match="after 1 steps"):
        scheduler.use_controller(Fixed())
