"""`attach`: one line in a Ray Train loop, and the run has checkpoints, a ledger and a way back.

It finds the newest complete checkpoint and restores what the loop has built; from then on it saves at
boundaries, where all replicas hold the same tensors. One rank writes for all of them.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ray.train
from torch import nn

from hdet_ray.exceptions import ConfigError, HDETError, RunPaused
from hdet_ray.optim.collective import Collective
from hdet_ray.optim.control import LocalControl
from hdet_ray.optim.rounds import BoundaryEvent
from hdet_ray.optim.stepping import ReplicaScheduler
from hdet_ray.train.checkpoints import Loaded, restore, restore_rank, save
from hdet_ray.train.job_run import JobRun, controller_on_every_rank, settings_on_every_rank
from hdet_ray.train.ledger import RunLedger
from hdet_ray.train.newest import NOTHING, Found, find_newest, load_found
from hdet_ray.train.reports import ReportBridge, StagedCheckpoint, bridge_reports
from hdet_ray.train.restored import require_planned_values
from hdet_ray.train.rng import capture_rng
from hdet_ray.train.safety import watch_over

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """Anything whose state can be taken and put back."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def attach(
    scheduler: ReplicaScheduler,
    *,
    sampler: Stateful | None = None,
    checkpoint_every_rounds: int | None = None,
    checkpoint_sync: bool | None = None,
    extra: Mapping[str, Stateful] | None = None,
) -> int:
    """Tie a scheduler to the Ray Train run that this worker belongs to. Every worker calls it, once.

    Restores model, optimizer, schedule, sampler and random state from the run's newest complete
    checkpoint, of any world size, and saves from then on at boundaries and after the last round. Works
    under `HDETTrainer` and a plain TorchTrainer.

    Args:
        scheduler: Made with ``model=``.
        sampler: Its position is saved per rank (`hdet_ray.data.ElasticSampler`, a shard of
            `hdet_ray.data.get_dataset_shard`, torchdata's StatefulDataLoader, …). Where it counts in
            ``samples_taken``, as those of `hdet_ray.data` do, reports tell the samples of each round.
        checkpoint_every_rounds: Rounds between checkpoints; None takes HDETTrainer's, or 1.
        checkpoint_sync: Whether a round waits until the checkpoint before it is stored, as HDETTrainer says
            it; None takes HDETTrainer's, or False. Where the loop reports checkpoints, those say it.
        extra: Further objects to save and restore by name, the same on every rank (an EMA of weights). The
            scheduler's ``grad_scaler`` is among them by itself.

    Where the run is a job of the service (``HDET_JOB_ID`` and ``HDET_CONTROL`` are set), its reports go to
    the controller. `scheduler.step` then raises `RunPaused` on every rank once a pause is saved
    (`HDETTrainer` ends the run cleanly there), and `FencedError` where a newer attempt has begun.

    Returns:
        The step to start at: how often the loop has called ``scheduler.step`` before.

    Raises:
        ConfigError: Not in a Ray Train worker, a second call, a scheduler without a model, an object
            without a state_dict, ``checkpoint_every_rounds`` below 1, or another one than on other ranks, or
            a storage that not all nodes see; on every rank.
        CheckpointError: The run has checkpoints but none is usable, or they are of another model.
        RestoreError: This rank could not read the checkpoint that rank 0 has found complete.
    """
    scheduler.collective.agree(_problem(scheduler, sampler, checkpoint_every_rounds, extra or {}))
    _require_equal(scheduler.collective, checkpoint_every_rounds, checkpoint_sync)
    bridge = bridge_reports(checkpoint_every_rounds, checkpoint_sync)
    if bridge.is_attached:
        raise ConfigError(
            "attach() was called twice in this worker; a run has one schedule, so fit another run for another"
        )
    bridge.is_attached = True
    bridge.clear_staged()
    scaler = {} if scheduler.grad_scaler is None else {"grad_scaler": scheduler.grad_scaler}
    attachment = _Attachment(scheduler, bridge, sampler, scaler | dict(extra or {}))
    watch_over(scheduler, bridge)  # first: replicas are compared before a boundary is saved
    attachment.join_job()
    attachment.resume()
    attachment.open_ledger()
    scheduler.on_boundary(attachment.after_boundary)
    if hasattr(sampler, "samples_taken"):
        scheduler.count_samples(sampler)
    return scheduler.iterations


@dataclass(frozen=True, slots=True, kw_only=True)
class _RankNote:
    """What each rank tells the one that writes."""

    rng: dict[str, Any]
    sampler: dict[str, Any] | None
    optimizer: dict[str, Any] | None
    """Its state, where replicas keep their own."""
    may_report_checkpoints: bool
    has_reported_checkpoints: bool
    is_behind: bool


class _Attachment:
    """A scheduler, and the run that it is tied to."""

    def __init__(
        self,
        scheduler: ReplicaScheduler,
        bridge: ReportBridge,
        sampler: Stateful | None,
        extra: Mapping[str, Stateful],
    ) -> None:
        self.scheduler = scheduler
        self.bridge = bridge
        self.sampler = sampler
        self.extra = extra
        self.collective = scheduler.collective
        self._rounds_unsaved = 0
        self._ledger: RunLedger | None = None
        self._job: JobRun | None = None
        self._resumed_round: int | None = None

    def join_job(self) -> None:
        """Where this run is a job: take the controller that its spec names, and begin an attempt."""
        settings = settings_on_every_rank(self.collective)
        if settings is None or not self.bridge.saves_checkpoints:
            return
        controller = controller_on_every_rank(settings.spec, self.collective)
        if controller is not None and self.scheduler.iterations == 0:
            self.scheduler.use_controller(controller)
        self._job = JobRun(settings, self.collective)
        self._ledger = RunLedger(ray.train.get_context().get_storage())
        if self.collective.rank == 0:
            self._ledger.fetch()
        self._job.begin_attempt(self._ledger.path)

    def resume(self) -> None:
        mine, problem = self._find() if self.collective.rank == 0 else (None, None)
        self.collective.agree(problem)
        found: Found = self.collective.broadcast_object(mine)
        if found.ours is None:
            return
        with found.ours.as_directory() as folder:
            loaded = load_found(folder, self.collective.rank)
            self._restore(loaded)
            if found.has_user_files:
                reporters = _reporters(loaded, self.collective.world_size)
                self.bridge.user_may_report_checkpoints = self.collective.rank in reporters
            if found.has_user_files and self.collective.rank == min(reporters):
                # The user's next checkpoint may come before our next boundary.
                staged = self.bridge.new_staged()
                shutil.copytree(folder, staged.folder, dirs_exist_ok=True)
                self.bridge.stage(staged)

    def after_boundary(self, event: BoundaryEvent) -> None:
        """The scheduler's last act at a boundary; on every rank."""
        self.bridge.own_metrics = _metrics(event)
        self._rounds_unsaved += 1
        is_paused = event.directive == "pause" and not event.is_last and self.bridge.saves_checkpoints
        is_due = event.is_last or event.directive is not None
        if not is_due and self._rounds_unsaved < self.bridge.checkpoint_every_rounds:
            return
        if not self.bridge.saves_checkpoints:
            self.bridge.publish(None)
            return
        note = _RankNote(
            rng=capture_rng(),
            sampler=None if self.sampler is None else self.sampler.state_dict(),
            optimizer=None
            if self.scheduler.averages_optimizer_state
            else self.scheduler.optimizer.state_dict()["state"],
            may_report_checkpoints=self.bridge.user_may_report_checkpoints,
            has_reported_checkpoints=self.bridge.user_reports_checkpoints,
            is_behind=self.bridge.is_behind,
        )
        notes = self.collective.gather_objects(note)
        reporters = _ranks_where(note.has_reported_checkpoints for note in notes)
        reporters = reporters or _ranks_where(note.may_report_checkpoints for note in notes)
        writer = reporters[0] if reporters else 0
        # A round that waits: the run leaves the loop, a node is about to go, or it was asked for.
        waits = is_paused or (not reporters and (event.directive is not None or self.bridge.checkpoint_sync))
        if notes[writer].is_behind and not (event.is_last or waits):
            return
        self._rounds_unsaved = 0
        staged = self._save(event, notes, reporters) if self.collective.rank == writer else None
        if waits:
            self.bridge.publish_whole(staged)
        elif not reporters:
            self.bridge.publish(staged)
        else:
            self.bridge.stage(staged)
        if self._ledger is not None and self.collective.rank == 0:
            self._ledger.push()
        if is_paused:
            self._leave(event)
        elif event.is_last and self._job is not None:
            self._job.flush()

    def open_ledger(self) -> None:
        """Let the control write the run's ledger, unless it has one of the user's choice."""
        control = self.scheduler.control
        if self.collective.rank != 0 or not self.bridge.saves_checkpoints:
            return
        if not isinstance(control, LocalControl) or control.ledger is not None:
            if self._job is not None:
                logger.warning("the scheduler has a control of its own: this job's controller is not asked")
            return
        if self._ledger is None:
            self._ledger = RunLedger(ray.train.get_context().get_storage())
            self._ledger.fetch()
        if self._job is None:
            self.scheduler.control = LocalControl(ledger=self._ledger.path)
            return
        self.scheduler.control = self._job.connect(self._ledger.path, resumed_round=self._resumed_round)
        self.bridge.on_stored = self._job.note_stored
        self.bridge.on_close.append(self._job.flush)

    def _leave(self, event: BoundaryEvent) -> None:
        """The pause is saved: say so, and leave the user's loop on every rank.

        Raises:
            RunPaused: always.
        """
        if self._job is not None:
            self._job.note("paused", {"round": event.state.round, "step": self.scheduler.iterations})
            self._job.flush()
        raise RunPaused(
            f"paused at round {event.state.round}; it goes on from the checkpoint of this boundary"
        )

    def _find(self) -> tuple[Found | None, HDETError | None]:
        """Rank 0 looks for all; what it can't take becomes every rank's error."""
        if not self.bridge.saves_checkpoints:
            return NOTHING, None
        try:
            return find_newest(self.bridge.newest_checkpoint(), self._job), None
        except HDETError as error:
            return None, error

    def _restore(self, loaded: Loaded) -> None:
        scheduler, collective = self.scheduler, self.collective
        self._resumed_round = loaded.manifest.round
        schedule = restore(loaded, _model_of(scheduler), scheduler.optimizer, extra=self.extra)
        scheduler.load_state_dict(schedule)
        restore_rank(
            loaded,
            collective.rank,
            scheduler.optimizer,
            world_size=collective.world_size,
            seed=scheduler.state.config.seed,
            sampler=self.sampler,
        )
        require_planned_values(scheduler)
        if collective.rank == 0:
            logger.info(
                "resumed: path=%s round=%d step=%d ranks_then=%d ranks_now=%d",
                loaded.where,
                loaded.manifest.round,
                loaded.manifest.step,
                loaded.manifest.world_size,
                collective.world_size,
            )

    def _save(self, event: BoundaryEvent, notes: list[_RankNote], reporters: list[int]) -> StagedCheckpoint:
        staged = self.bridge.new_staged()
        save(
            staged.folder,
            model=_model_of(self.scheduler),
            optimizer=self.scheduler.optimizer,
            schedule=self.scheduler.state_dict(),
            ranks=[_rank_state(note, is_reporter=rank in reporters) for rank, note in enumerate(notes)],
            round=event.state.round,
            step=self.scheduler.iterations,
            extra={name: item.state_dict() for name, item in self.extra.items()},
            attempt=0 if self._job is None else self._job.attempt,
        )
        staged.round, staged.step = event.state.round, self.scheduler.iterations
        return staged


def _ranks_where(flags: Iterable[bool]) -> list[int]:
    return [rank for rank, is_so in enumerate(flags) if is_so]


def _rank_state(note: _RankNote, *, is_reporter: bool) -> dict[str, Any]:
    return {
        "rng": note.rng,
        "sampler": note.sampler,
        "optimizer": note.optimizer,
        "reports_checkpoints": is_reporter,
    }


def _reporters(loaded: Loaded, world_size: int) -> set[int]:
    """The ranks whose loops report checkpoints; rank 0 where those that did are gone."""
    found = {rank for rank, state in enumerate(loaded.ranks) if state.get("reports_checkpoints")}
    return {rank for rank in found if rank < world_size} or {0}


def _metrics(event: BoundaryEvent) -> dict[str, Any]:
    """The round that begins, and the loss of the one that ended."""
    plan = event.plan
    metrics: dict[str, Any] = {
        "hdet/round": event.state.round,
        "hdet/step": event.state.step,
        "hdet/phase": plan.phase,
        "hdet/replicas": plan.num_replicas,
    }
    if "samples_total" in event.report.facts:
        metrics["hdet/samples"] = event.report.facts["samples_total"]
    losses = [replica.loss for replica in event.report.replicas if math.isfinite(replica.loss)]
    if losses:
        metrics["hdet/loss"] = math.fsum(losses) / len(losses)
    for kind, values in (("base", plan.base), ("peak", plan.peak)):
        for (name, group), value in values.items():
            metrics[f"hdet/{kind}_{name}" + (f"/{group}" if group else "")] = value
    return metrics


def _require_equal(collective: Collective, *settings: Any) -> None:
    """Ranks that save at different boundaries would wait for each other."""
    told = collective.gather_objects(settings)
    if len(set(told)) > 1:
        values = ", ".join(f"rank {rank}: {mine}" for rank, mine in enumerate(told))
        raise ConfigError(
            f"attach() was called with different checkpoint_every_rounds or checkpoint_sync ({values}); "
            "give all ranks the same"
        )


def _problem(
    scheduler: ReplicaScheduler,
    sampler: Stateful | None,
    checkpoint_every_rounds: int | None,
    extra: Mapping[str, Stateful],
) -> ConfigError | None:
    if scheduler.model is None:
        return ConfigError("attach() saves the model, and the scheduler has none; make it with model=…")
    if checkpoint_every_rounds is not None and checkpoint_every_rounds < 1:
        return ConfigError(
            f"checkpoint_every_rounds={checkpoint_every_rounds} must be at least 1: 1 saves at each boundary"
        )
    for name, item in {
        "sampler": sampler,
        **{f"extra[{key!r}]": value for key, value in extra.items()},
    }.items():
        if item is not None and not (hasattr(item, "state_dict") and hasattr(item, "load_state_dict")):
            return ConfigError(
                f"{name} is a {type(item).__name__}, which has no state_dict and load_state_dict; for a "
                "DistributedSampler take hdet_ray.data.ElasticSampler in its place"
            )
    return None


def _model_of(scheduler: ReplicaScheduler) -> nn.Module:
    model = scheduler.model
    if model is None:
        raise ConfigError("attach() saves the model, and the scheduler has none; make it with model=…")
    return model
