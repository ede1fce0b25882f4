"""Golden trajectories: a change of any decision shows up here, as data to be reviewed."""

from __future__ import annotations

import json

import pytest

from tests.unit.regenerate_golden import CONTROLLERS, read, trajectory


@pytest.mark.parametrize("name", list(CONTROLLERS))
def test_a_trajectory_is_decided_as_it_was_in_every_bit(name: str) -> None:
    # Through JSON, as what was kept: tuples are lists there.
    decided = json.loads(json.dumps(trajectory(name)))
    for now, kept in zip(decided, read(name), strict=True):
        assert now == kept, f"round {kept['round']}; if meant, run python -m tests.unit.regenerate_golden"


def test_the_trajectories_cross_every_phase_and_a_rollback() -> None:
    kept = {name: read(name) for name in CONTROLLERS}
    assert {r["phase"] for r in kept["auto"]} == {"scout", "pairs", "fan_out"}
    assert all(any(r["rollbacks"] for r in rounds) for rounds in kept.values())
    assert kept["paper"][-1]["rates"] is not None
