"""What the simulation decides, real processes decide: one configuration both ways, in float64."""

from __future__ import annotations

import pytest

from benchmarks.agreement import compare
from hdet_ray.workloads import load_workload

TOLERANCE = 1e-6


@pytest.mark.parametrize(
    ("workload", "config"),
    [
        ("byte_lm", {"controller": "auto", "max_lr": 1e-3}),
        pytest.param(
            "digits", {"controller": "paper", "optimizer": "sgd", "max_lr": 0.1}, marks=pytest.mark.slow
        ),
    ],
)
def test_simulation_and_processes_go_the_same_way(workload, config):
    settings = load_workload(workload).Settings.from_config(
        {"total_steps": 400, "batch_size": 4, "seed": 3} | config
    )
    agreement = compare(workload, settings, 4)
    assert agreement.rounds >= 4
    assert agreement.same_phases
    assert agreement.same_teams
    assert agreement.largest_candidate_difference < TOLERANCE
    assert agreement.largest_base_difference < TOLERANCE
    assert agreement.largest_weight_difference < TOLERANCE
