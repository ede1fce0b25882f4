"""Anything may be lost, doubled, delayed or killed, in any order: no round, no override is lost or doubled.

A state machine drives the run's own code and the service over one real database. Its network loses requests
and answers, doubles calls, and lets some arrive much later; controllers and workers die; operators steer in
between. After each walk everything is delivered, and then the two sides must agree to the last bit.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from sqlalchemy import select

from hdet_ray.config import Auto, Fixed
from hdet_ray.core.replay import read_ledger, replay
from hdet_service.problems import Conflict, Invalid
from hdet_service.store.models import Command
from tests.service.simulated_run import Network, Service, Worker

FAULTS = st.lists(
    st.sampled_from(["ok", "request_lost", "answer_lost", "delayed", "doubled"]), min_size=1, max_size=4
)


class ExchangeMachine(RuleBasedStateMachine):
    """One run, its controller, and everything that can happen between them."""

    @initialize(has_search=st.booleans())
    def begin(self, has_search: bool) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.service = Service(self.folder)
        self.network = Network(self.service)
        controller = Auto(alpha=0.1, sync_every=20) if has_search else Fixed(alpha=0.1, sync_every=20)
        self.worker = Worker(self.network, self.folder, controller=controller, total_steps=1200)
        self.asked: list[str] = []

    # ---- training

    @rule(rounds=st.integers(1, 3))
    def train(self, rounds: int) -> None:
        for _ in range(rounds):
            if not self.worker.is_over:
                self.worker.train()

    @rule(faults=FAULTS)
    def calls_go_wrong(self, faults: list[Any]) -> None:
        self.network.faults.extend(faults)

    @rule()
    def the_background_delivers(self) -> None:
        self.worker.deliver()

    @rule(which=st.integers(0, 5))
    def a_delayed_call_arrives(self, which: int) -> None:
        self.network.arrive(which)

    @rule(is_down=st.booleans())
    def the_controller_goes_or_comes(self, is_down: bool) -> None:
        self.network.is_down = is_down

    # ---- deaths

    @rule()
    def the_controller_is_killed(self) -> None:
        self.service.restart()

    @rule(back=st.integers(0, 4), num_replicas=st.integers(2, 4))
    def the_workers_are_killed(self, back: int, num_replicas: int) -> None:
        self.worker.begin(max(self.worker.state.round - back, 0), num_replicas)

    # ---- operators

    @rule(
        op=st.sampled_from(["set", "scale"]),
        group=st.sampled_from([None, 0, 1]),
        later=st.sampled_from([None, 0, 3]),
        expires=st.sampled_from([None, 1, 2]),
        factor=st.floats(0.25, 4.0),
    )
    def an_operator_overrides(
        self, op: str, group: int | None, later: int | None, expires: int | None, factor: float
    ) -> None:
        value = factor if op == "scale" else 1e-3 * factor
        at = None if later is None else self.worker.state.round + later
        try:
            asked = self.service.override(
                "lr", op, value, group=group, apply_at_round=at, expires_after_rounds=expires
            )
        except (Invalid, Conflict):
            return
        self.asked.append(asked["id"])

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def an_operator_takes_one_back(self, data: st.DataObject) -> None:
        try:
            self.service.remove(data.draw(st.sampled_from(self.asked)))
        except Conflict:
            return

    @rule(is_frozen=st.booleans())
    def an_operator_freezes(self, is_frozen: bool) -> None:
        try:
            self.service.patch("lr", frozen=is_frozen)
        except Conflict:
            return

    @rule(low=st.floats(1e-6, 1e-5), high=st.floats(1e-2, 1.0))
    def an_operator_bounds(self, low: float, high: float) -> None:
        try:
            self.service.patch("lr", bounds=[low, high])
        except (Invalid, Conflict):
            return

    # ---- in the end

    def teardown(self) -> None:
        if not hasattr(self, "worker"):
            return
        try:
            self._settle()
            self._check_chain()
            self._check_commands()
            self._check_overrides()
        finally:
            self.service.store.close()
            shutil.rmtree(self.folder)

    def _settle(self) -> None:
        """The network heals, everything is delivered, and two more rounds confirm what was decided."""
        self.network.faults.clear()
        self.network.is_down = False
        self.worker.deliver()
        self.train(2)
        assert self.worker.control.flush(0.0)

    def _check_chain(self) -> None:
        lines = self.service.ledger()
        assert [json.loads(line) for line in lines[1:]] == self.worker.chain()
        assert set(lines[1:]) <= set(self.worker.ledger.read_text().splitlines())  # to the last byte
        replayed = replay(read_ledger(lines))
        assert replayed.departure is None
        assert replayed.state == self.worker.state
        job = self.service.job()
        assert (job.round, job.attempt) == (self.worker.state.round, self.worker.attempt)

    def _check_commands(self) -> None:
        """Whatever an operator asked for waits, or stands in exactly one report of the newest chain."""
        rows = self.service.store.read_sync(lambda session: list(session.scalars(select(Command))))
        carried = [c for item in self.worker.chain() for c in item["report"]["commands"]]
        assert sorted(map(json.dumps, carried)) == sorted(
            json.dumps(row.body, sort_keys=True) for row in rows if row.folded_round is not None
        )
        for row in rows:
            if row.folded_round is not None:
                (item,) = [item for item in self.worker.chain() if item["round"] == row.folded_round]
                assert row.body in item["report"]["commands"]

    def _check_overrides(self) -> None:
        commands = [c for item in self.worker.chain() for c in item["report"].get("commands", [])]
        records = {record.override.id: record for record in self.worker.state.overrides}
        for id in self.asked:
            shown = self.service.override_of(id)
            carried = sum(command["kind"] == "override" and command["id"] == id for command in commands)
            assert carried == (1 if id in records else 0)
            if shown["state"] == "refused":
                assert shown["refusal"]
            if id not in records:
                assert shown["state"] in ("pending", "removed")
                continue
            record = records[id]
            if record.status == "applied" and record.applied_round == self.worker.state.round:
                assert shown["state"] == "pending"  # planned for the round that is running
            elif self.worker.is_over or shown["state"] != record.status:
                # The newest plan's records are confirmed by the report that is still to come.
                assert record not in self._confirmed()
            else:
                assert shown["applied_round"] == record.applied_round

    def _confirmed(self) -> list[Any]:
        """Records as they were in the plan that the newest report followed."""
        before = self.worker.checkpoints.get(self.worker.state.round - 1)
        return [] if before is None else list(before.overrides)


ExchangeMachine.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestExchangeMachine = ExchangeMachine.TestCase


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_more_walks_hold_it_too() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        ExchangeMachine,
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
