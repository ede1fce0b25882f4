"""Chaos: one run through the service outlives everything that can be drawn from a seed.

Workers, nodes, the controller and the driver are killed, workers are stopped, gradients become NaN, in the
search and after it. The run ends where the undisturbed one ends, and its books are right.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("ray")

from hdet_ray.testing import (
    Act,
    Fault,
    Happened,
    Kill,
    Own,
    RemoveNode,
    SetNan,
    Stop,
    draw_faults,
    read_happened,
)
from tests.ray.chaos_accounts import Accounts, count, read_lines
from tests.ray.chaos_loop import NUM_SAMPLES
from tests.ray.chaos_run import NUM_NODES, Chaos, chaos
from tests.service.users import history

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(3600)]

SEED = int(os.environ.get("HDET_CHAOS_SEED", "8"))
SCALE = os.environ.get("HDET_CHAOS_SCALE", "full")
"""``small``: a few faults, to try the test itself."""
FULL_STEPS, SMALL_STEPS = 2000, 500
PACE_S = 0.05

CONTROLLER, DRIVER = Own(name="kill_controller"), Own(name="kill_driver")
IN_SEARCH: dict[Act, int] = {Kill(): 1, Stop(): 1, SetNan(): 1, RemoveNode(): 1, CONTROLLER: 1, DRIVER: 1}
AFTER_SEARCH: dict[Act, int] = {
    Kill(): 7,
    Stop(): 5,
    SetNan(): 5,
    RemoveNode(): 5,
    CONTROLLER: 9,
    DRIVER: 5,
}
SEARCH_STEPS = range(10, 118)
"""A search takes 120 steps at least."""
CHECKPOINT_EVERY_ROUNDS = 1
EVAL_BOUND = 0.03


def drawn() -> tuple[tuple[Fault, ...], int]:
    """The faults, and the run's steps."""
    if SCALE == "small":
        few = dict.fromkeys(IN_SEARCH, 1)
        return draw_faults(SEED, few, steps=range(60, SMALL_STEPS - 100), num_ranks=NUM_NODES), SMALL_STEPS
    early = draw_faults(SEED, IN_SEARCH, steps=SEARCH_STEPS, num_ranks=NUM_NODES)
    late = draw_faults(
        SEED + 1, AFTER_SEARCH, steps=range(SEARCH_STEPS.stop + 10, FULL_STEPS - 60), num_ranks=NUM_NODES
    )
    return early + late, FULL_STEPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All that is known of the disturbed run, and the loss of its calm twin."""

    job: dict[str, Any]
    wall_s: float
    rounds: list[dict[str, Any]]
    happened: list[Happened]
    accounts: Accounts
    accepted: list[str]
    replayed: int
    test_loss: float
    calm_test_loss: float
    calm_rounds: list[dict[str, Any]]


def final_loss(chaos: Chaos, name: str) -> float:
    return float(json.loads((chaos.folder / name / "final.json").read_text())["test_loss"])


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("chaos")
    faults, total_steps = drawn()
    with chaos(folder) as running:
        service = running.service
        calm = running.submit("calm", total_steps, 0.0)
        assert service.wait_end(calm)["state"] == "SUCCEEDED", service.describe(calm)
        began_s = time.monotonic()
        job_id = running.submit("chaos", total_steps, PACE_S, faults)
        job, accepted = running.endure(job_id, "chaos", faults)
        assert job["state"] == "SUCCEEDED", service.describe(job_id)
        found = Outcome(
            job=job,
            wall_s=time.monotonic() - began_s,
            rounds=history(service, job_id),
            happened=read_happened(folder / "chaos" / "faults"),
            accounts=count(read_lines(folder / "chaos")),
            accepted=accepted,
            replayed=service.hdet("replay", job_id).returncode,
            test_loss=final_loss(running, "chaos"),
            calm_test_loss=final_loss(running, "calm"),
            calm_rounds=history(service, calm),
        )
    (folder / "rounds.json").write_text(json.dumps({"rounds": found.rounds, "accepted": accepted}))
    (folder / "summary.json").write_text(json.dumps(summary(found), indent=1))
    print(json.dumps(summary(found)))
    return found


def summary(outcome: Outcome) -> dict[str, Any]:
    """The run in figures, for the record."""
    accounts = outcome.accounts
    return {
        "wall_s": round(outcome.wall_s, 1),
        "faults": dict(Counter(map(_kind, outcome.happened))),
        "in_search": sum(each.step < _search_steps(outcome) for each in outcome.happened),
        "test_loss": outcome.test_loss,
        "calm_test_loss": outcome.calm_test_loss,
        "peak": [rounds[-2]["plan"]["peak"]["lr"] for rounds in (outcome.rounds, outcome.calm_rounds)],
        "rounds": len(outcome.rounds),
        "calm_rounds": len(outcome.calm_rounds),
        "attempts": sorted({item["attempt"] for item in outcome.rounds}),
        "ranks": dict(Counter(len(lines) for lines in accounts.chain)),
        "repeats": dict(Counter(accounts.repeats)),
        "samples": sum(map(sum, accounts.per_round().values())),
        "samples_repeated": accounts.num_repeated,
        "overrides": len(outcome.accepted),
        "job": {key: outcome.job.get(key) for key in ("attempt", "submission", "state")},
    }


def test_every_fault_happened_once(outcome: Outcome) -> None:
    faults, _ = drawn()
    assert sorted(happened.number for happened in outcome.happened) == list(range(len(faults)))
    if SCALE == "full":
        kinds = Counter(_kind(happened) for happened in outcome.happened)
        assert sum(kinds.values()) >= 40
        assert len(kinds) == 6
        assert min(kinds.values()) >= 5, kinds
        searching = [each for each in outcome.happened if each.step < _search_steps(outcome)]
        assert len(searching) >= 5


def test_the_loss_is_within_three_per_cent_of_the_undisturbed_runs(outcome: Outcome) -> None:
    assert outcome.test_loss <= (1 + EVAL_BOUND) * outcome.calm_test_loss


def test_no_round_of_the_newest_chain_is_lost_and_the_ledger_replays(outcome: Outcome) -> None:
    assert [item["round"] for item in outcome.rounds] == list(range(len(outcome.rounds)))
    assert sum(item["report"]["calls"] for item in outcome.rounds) == drawn()[1]
    assert outcome.replayed == 0


def test_no_override_is_lost_or_doubled(outcome: Outcome) -> None:
    folded = [
        command["id"]
        for item in outcome.rounds
        for command in item["report"].get("commands", ())
        if command["kind"] == "override"
    ]
    assert len(folded) == len(set(folded)), "an override was folded in twice"
    # One that came with the last rounds has no round to apply in.
    assert set(outcome.accepted[:-1]) <= set(folded), "an accepted override was lost"


def test_a_replica_steps_with_its_schedules_rate_after_every_fault(outcome: Outcome) -> None:
    for lines in outcome.accounts.chain:
        for line in lines:
            assert line["lr"] == pytest.approx(line["planned"], rel=1e-6), line


def test_a_fault_repeats_no_more_than_the_rounds_since_the_newest_checkpoint(outcome: Outcome) -> None:
    assert max(outcome.accounts.repeats) <= CHECKPOINT_EVERY_ROUNDS, outcome.accounts.repeats


def test_no_sample_is_skipped_and_none_counts_twice(outcome: Outcome) -> None:
    epochs = outcome.accounts.per_epoch()
    for epoch, counts in sorted(epochs.items()):
        # Where an epoch's last samples are fewer than ranks, the first ones stand in for the missing.
        assert counts.total() - len(counts) < NUM_NODES, (epoch, counts.most_common(3))
        if epoch < max(epochs):
            assert len(counts) == NUM_SAMPLES


def test_the_ledgers_samples_agree_with_an_independent_count(outcome: Outcome) -> None:
    facts = {item["round"]: item["report"]["facts"] for item in outcome.rounds}
    by_rank = outcome.accounts.per_round()
    assert {
        round: [told[f"samples/{replica}"] for replica in range(len(by_rank[round]))]
        for round, told in facts.items()
    } == by_rank
    assert [told["samples"] for told in facts.values()] == [sum(by_rank[round]) for round in facts]
    assert facts[max(facts)]["samples_total"] == sum(map(sum, by_rank.values()))


def _kind(happened: Happened) -> str:
    return str(happened.fault.get("name") or happened.fault["kind"])


def _search_steps(outcome: Outcome) -> int:
    return next(lines[0]["step"] for lines in outcome.accounts.chain if lines[0]["phase"] == "train")
