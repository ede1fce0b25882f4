"""The injector: one line in a train loop, and the faults that are due happen to this worker.

It asks the scheduler where it is and whom it has around it, so it works under any launcher.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.stepping import ReplicaScheduler
from hdet_ray.testing.acts import perform
from hdet_ray.testing.book import Book
from hdet_ray.testing.faults import Fault, SlowDown


class FaultInjector:
    """Makes faults happen to the worker that it lives in.

    Call `before_step` at the top of each step, before the forward pass. Each fault happens once in the run,
    also where the group starts again and comes by the same step; what happens is written to
    ``happened.jsonl`` in the folder first.

    Args:
        faults: The same list in every worker; those of nodes are left to `DriverFaults`.
        folder: Where it is written down: one that all nodes see, and another one for each rehearsal.

    Raises:
        ConfigError: what is no fault, or a folder that can't be written.
    """

    def __init__(self, faults: Iterable[Fault], folder: str | os.PathLike[str]) -> None:
        self.faults = tuple(faults)
        for fault in self.faults:
            if not isinstance(fault, Fault):
                raise ConfigError(f"{fault!r} is no Fault; read dictionaries with faults_from_json")
        self.book = Book(folder)
        self._open = [
            (number, fault)
            for number, fault in enumerate(self.faults)
            if not fault.is_of_driver and not self.book.has(number)
        ]
        self._slow_s = 0.0
        self._slow_until = -1

    def before_step(self, scheduler: ReplicaScheduler) -> None:
        """Let happen what is due on this rank."""
        step, round = scheduler.iterations, scheduler.plan.round
        collective = scheduler.collective
        if collective.rank == 0:
            self.book.tell_progress(step, round)
        for number, fault in [entry for entry in self._open if entry[1].is_due(step, round)]:
            if fault.rank % collective.world_size != collective.rank:
                continue
            self._open.remove((number, fault))
            if self.book.enter(
                number,
                fault,
                rank=collective.rank,
                num_ranks=collective.world_size,
                step=step,
                round=round,
            ):
                self._do(fault, scheduler, step)
        if step < self._slow_until:
            time.sleep(self._slow_s)

    def _do(self, fault: Fault, scheduler: ReplicaScheduler, step: int) -> None:
        if isinstance(fault.act, SlowDown):
            self._slow_s, self._slow_until = fault.act.pause_s, step + fault.act.for_steps
        else:
            perform(fault.act, scheduler)
