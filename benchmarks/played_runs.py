"""Runs without training: rank 0's side of the exchange, with made-up losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hdet_ray.config import Fixed
from hdet_ray.core.codec import canonical_text, digest, to_json
from hdet_ray.core.decide import decide, start
from hdet_ray.core.plan import RATE
from hdet_ray.core.report import ReplicaReport, RoundReport
from hdet_ray.core.state import ScheduleConfig, state_to_json
from hdet_ray.train.protocol import ExchangeRequest, OpenRequest, answer_from_json, request_to_json

_ROUND_STEPS = 10


class PlayedRun:
    """One job's rank 0: its state, its next request, and what it makes of the answer.

    Args:
        job: The job's id.
        num_replicas: N; every replica trains with its own rate, so plans and reports are of full size.
        total_rounds: Rounds until the schedule ends.
    """

    def __init__(self, job: str, num_replicas: int, total_rounds: int = 1_000_000) -> None:
        self.job = job
        config = ScheduleConfig(
            controller=Fixed(alpha=1 / 9, sync_every=_ROUND_STEPS),
            total_steps=total_rounds * _ROUND_STEPS,
            max_lr=(1e-3,),
            floor_lr=(4e-9,),
        )
        self.state, self.plan = start(config, num_replicas)
        self._report: RoundReport | None = None

    def opening(self) -> dict[str, Any]:
        """The request that opens the run."""
        return request_to_json(
            OpenRequest(
                job=self.job,
                attempt=1,
                submission=1,
                state=state_to_json(self.state),
                num_replicas=self.plan.num_replicas,
                storage_path="",
            )
        )

    def next_request(self) -> dict[str, Any]:
        """The report of the round that is due."""
        plan = self.plan
        self._report = RoundReport(
            round=plan.round,
            calls=plan.num_steps,
            steps=plan.num_steps,
            plan_digest=digest(plan),
            replicas=tuple(self._replica(r) for r in range(plan.num_replicas)),
            external_rates={(RATE, 0): 1e-3},
            facts={"wall_s": 1.0, "sync_s": 0.01, "sync_bytes": 4e6},
        )
        return request_to_json(
            ExchangeRequest(
                job=self.job,
                attempt=1,
                submission=1,
                round=plan.round,
                report=canonical_text(to_json(self._report)),  # as rank 0 sends it
            )
        )

    def take(self, answer: Mapping[str, Any]) -> None:
        """Decide as the answer says.

        Raises:
            SystemExit: it is no offer, or names another plan than `decide` gives.
        """
        offer = answer_from_json(answer)
        if offer.status != "ok" or self._report is None:
            raise SystemExit(f"{self.job}: {offer.status} {offer.message}")
        self.state, self.plan = decide(self.state, replace(self._report, commands=offer.commands))
        if offer.plan_digest != digest(self.plan):
            raise SystemExit(f"{self.job}: round {self.plan.round} was decided otherwise than here")

    def _replica(self, replica: int) -> ReplicaReport:
        loss = 2.0 + math.cos(replica + self.plan.round)
        return ReplicaReport(
            loss=loss, tail_loss=loss, start_loss=loss, last_loss=loss, noise=0.05, is_finite=True
        )
