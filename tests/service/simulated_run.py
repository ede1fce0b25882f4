"""A run without training beside a real controller's store: rank 0's own code, made-up reports, a bad network.

The worker is `RemoteControl` itself, with a courier that delivers when it is told to, so that a test says at
which call what is lost, doubled or delayed.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from hdet_ray.config import Auto, Controller
from hdet_ray.core.decide import start
from hdet_ray.core.plan import Plan
from hdet_ray.core.planning import plan_for
from hdet_ray.core.report import RoundReport
from hdet_ray.core.state import ScheduleState
from hdet_ray.train.outbox import Identity, Outbox
from hdet_ray.train.protocol import ControlUnavailable
from hdet_ray.train.remote_control import Courier, RemoteControl, deliver_next
from hdet_ray.train.round_lines import RoundLines
from hdet_service.auth import Principal, Role
from hdet_service.runs import Runs
from hdet_service.store.database import Store
from hdet_service.store.models import Job
from tests.unit.runs import c_of, make_config, make_replica, make_report

JOB = "01JQ0000000000000000000001"
OPERATOR = Principal("ops", Role.OPERATOR)
SHORT = Auto(alpha=0.1, sync_every=40)

Fault = Literal["ok", "request_lost", "answer_lost", "delayed", "doubled"]


class Service:
    """A controller's part that answers runs, over one database; killed and started at will."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "hdet.sqlite3"
        self.epoch = 0
        self.now_s = 1000.0
        shutil.copy(_migrated(), self.path)  # migrating anew for each test takes longer than the test
        self.store = Store.open(self.path, clock=self._clock)
        self.store.write_sync(lambda session: session.add(new_job()))
        self._begin()

    def restart(self) -> None:
        """As after a kill: nothing but the database is left."""
        self.store.close()
        self.store = Store.open(self.path, clock=self._clock)
        self._begin()

    def call(self, kind: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """What the actor does."""
        answer: dict[str, Any] = asyncio.run(getattr(self.runs, kind)(json.loads(json.dumps(request))))
        return json.loads(json.dumps(answer, allow_nan=False))  # type: ignore[no-any-return]

    def override(
        self, hparam: str = "lr", op: str = "scale", value: float = 0.5, **more: Any
    ) -> dict[str, Any]:
        """Ask for an override on the newest revision."""
        body = {"hparam": hparam, "op": op, "value": value, **more}
        return asyncio.run(self.runs.override(JOB, body, if_match=self.etag(), who=OPERATOR))[0]

    def remove(self, override_id: str) -> dict[str, Any]:
        """Take one back."""
        return asyncio.run(self.runs.override_remove(JOB, override_id, if_match=None, who=OPERATOR))[0]

    def patch(self, hparam: str = "lr", **change: Any) -> dict[str, Any]:
        """Freeze or bound."""
        return asyncio.run(self.runs.patch_auto(JOB, hparam, **change, if_match=self.etag(), who=OPERATOR))[0]

    def override_of(self, override_id: str) -> dict[str, Any]:
        """One as the API shows it."""
        return asyncio.run(self.runs.override_get(JOB, override_id))

    def schedule(self) -> dict[str, Any]:
        """`/schedule`."""
        return asyncio.run(self.runs.schedule(JOB))

    def etag(self) -> str:
        """Of the schedule as it stands."""
        return f'"{self.job().revision}"'

    def job(self) -> Job:
        """The job's row."""
        return self.store.read_sync(lambda session: session.get_one(Job, JOB))

    def change_job(self, change: Callable[[Job], None]) -> None:
        """As the life of jobs does."""
        self.store.write_sync(lambda session: change(session.get_one(Job, JOB)))

    def ledger(self, *, all_attempts: bool = False) -> list[str]:
        """The exported ledger: its first line, then the history's items verbatim."""
        page = asyncio.run(self.runs.history(JOB, limit=100_000, all_attempts=all_attempts))
        return [json.dumps(page.start), *page.lines]

    def _begin(self) -> None:
        self.epoch += 1
        self.runs = Runs(self.store, epoch=self.epoch)

    def _clock(self) -> float:
        self.now_s += 0.25
        return self.now_s


@functools.cache
def _migrated() -> Path:
    """A database with all migrations and nothing in it."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Store.open(folder / "empty.sqlite3").close()
    return folder / "empty.sqlite3"


class Network:
    """Carries calls to the service, as badly as it is told to."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.faults: deque[Fault] = deque()
        """What happens to the next calls; then all goes well."""
        self.is_down = False
        self.calls: list[tuple[str, int | None]] = []
        self._delayed: list[tuple[str, Mapping[str, Any]]] = []

    def call(self, kind: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Transport`."""
        self.calls.append((kind, request.get("round")))
        fault: Fault = "request_lost" if self.is_down else self.faults.popleft() if self.faults else "ok"
        if fault == "delayed":
            self._delayed.append((kind, request))
        if fault in ("request_lost", "delayed"):
            raise ControlUnavailable(fault)
        answer = self.service.call(kind, request)
        if fault == "doubled":
            answer = self.service.call(kind, request)
        if fault == "answer_lost":
            raise ControlUnavailable(fault)
        return answer

    def arrive(self, which: int = 0) -> None:
        """A delayed call arrives after all; nobody hears its answer."""
        if self._delayed:
            kind, request = self._delayed.pop(which % len(self._delayed))
            self.service.call(kind, request)


class InlineCourier:
    """Delivers when it is waited for, or told to."""

    def __init__(self) -> None:
        self.outbox: Outbox | None = None

    def start(self, outbox: Outbox) -> None:
        self.outbox = outbox

    def change(self, act: Callable[[], None]) -> None:
        act()

    def wait(self, is_over: Callable[[], bool], timeout_s: float) -> bool:
        while not is_over() and self.deliver():
            pass
        return is_over()

    def deliver(self) -> bool:
        """Make the next call, if there is one to make."""
        return self.outbox is not None and self.outbox.has_work and deliver_next(self.outbox, self.change)

    def close(self) -> None: ...


class Worker:
    """Rank 0 of a run: attempts, rounds, checkpoints at every boundary."""

    def __init__(
        self,
        network: Network,
        folder: Path,
        *,
        controller: Controller = SHORT,
        num_replicas: int = 2,
        total_steps: int = 800,
        make_courier: Callable[[], Courier] = InlineCourier,
        timeout_s: float = 1.0,
    ) -> None:
        self.network = network
        self.make_courier = make_courier
        self.timeout_s = timeout_s
        self.ledger = folder / "hdet_ledger.jsonl"
        self.attempt = 0
        self.num_rounds = 0
        config = make_config(controller, total_steps=total_steps, max_lr=(1e-3, 3e-3))
        self.checkpoints = {0: start(config, num_replicas)[0]}
        self.begin(0, num_replicas)

    def begin(self, round: int, num_replicas: int | None = None) -> None:
        """A new attempt goes on from a round's checkpoint."""
        self.attempt += 1
        self.num_replicas = num_replicas or self.num_replicas
        for newer in [r for r in self.checkpoints if r > round]:
            del self.checkpoints[newer]
        self.state: ScheduleState = self.checkpoints[round]
        self.plan: Plan = plan_for(self.state, self.num_replicas)
        self.courier = self.make_courier()
        self.control = RemoteControl(
            Identity(job=JOB, attempt=self.attempt, num_replicas=self.num_replicas),
            self.network,
            control_timeout_s=self.timeout_s,
            ledger=self.ledger,
            courier=self.courier,
        )
        self.control.resume(self.state)

    def train(self, rounds: int = 1) -> None:
        """Train and exchange rounds, a checkpoint after each."""
        for _ in range(rounds):
            self.num_rounds += 1
            report = self.report()
            self.state, self.plan = self.control.exchange(self.state, report)
            self.checkpoints[self.state.round] = self.state

    def report(self) -> RoundReport:
        """Losses that follow from each replica's rate; facts that differ every time, as clocks do."""
        losses = [2.0 + (c_of(self.plan, r) - 1.0) ** 2 for r in range(self.plan.num_replicas)]
        replicas = [
            make_replica(loss, probe_loss=loss if self.plan.probe is not None else None) for loss in losses
        ]
        return make_report(self.plan, replicas, facts={"wall_s": 1.0 + self.num_rounds / 64, "sync_s": 0.125})

    def deliver(self) -> None:
        """Let the background deliver what waits, as far as it gets."""
        while isinstance(self.courier, InlineCourier) and self.courier.deliver():
            pass

    def chain(self) -> list[dict[str, Any]]:
        """The newest chain of the run's own ledger."""
        return list(RoundLines(self.ledger).read(0, self.state.round))

    @property
    def is_over(self) -> bool:
        """The schedule has ended."""
        return self.plan.num_steps == 0


def new_job(**changes: Any) -> Job:
    """A job that a driver was started for."""
    told: dict[str, Any] = {
        "id": JOB,
        "name": "a-run",
        "owner": "ann",
        "spec": {"replicas": {"min": 2, "max": 2}},
        "state": "RUNNING",
        "reason": "Running",
        "message": "",
        "created_s": 0.0,
        "updated_s": 0.0,
        **changes,
    }
    return Job(**told)
