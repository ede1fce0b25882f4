"""A run that is a job: its attempt, its control channel, and what it tells the controller beside rounds."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train

from hdet_ray.config import Controller, resolve_controller
from hdet_ray.core.codec import from_json
from hdet_ray.exceptions import CheckpointError, ConfigError, HDETError, LedgerError
from hdet_ray.optim.collective import Collective
from hdet_ray.train.attempts import Attempts
from hdet_ray.train.layout import HDET_FOLDER, PINNED_FOLDER
from hdet_ray.train.outbox import Identity
from hdet_ray.train.remote_control import RemoteControl
from hdet_ray.train.reports import StoredCheckpoint
from hdet_ray.train.round_lines import RoundLines
from hdet_ray.train.settings import JobSettings, job_settings
from hdet_ray.train.transport import ActorTransport

logger = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 5.0
"""Of one call, in the background: a boundary does not wait for it that long."""


class JobRun:
    """This worker's side of the job.

    Args:
        settings: The job in the environment.
        collective: The run's ranks.
    """

    def __init__(self, settings: JobSettings, collective: Collective) -> None:
        self.settings = settings
        self.attempt = 0
        self.control: RemoteControl | None = None
        """Rank 0's."""
        self._collective = collective
        storage = ray.train.get_context().get_storage()
        self._filesystem: pafs.FileSystem = storage.storage_filesystem
        self._run_path: str = storage.experiment_fs_path
        self._attempts = Attempts(self._filesystem, self._run_path)

    def begin_attempt(self, ledger: Path) -> None:
        """Number this start of the run; collective.

        Raises:
            CheckpointError: the storage can't be written; on every rank.
        """
        attempt, error = 0, None
        if self._collective.rank == 0:
            try:
                attempt = self._attempts.begin(
                    self.settings.submission, above=RoundLines(ledger).newest_attempt()
                )
            except OSError as raised:
                error = CheckpointError(
                    f"{self._run_path} can't be written ({raised}); check the job's storage"
                )
        self._collective.agree(error)
        self.attempt = self._collective.broadcast_object(attempt)

    def choose(self, paths: list[str]) -> str | None:
        """The checkpoint of an operator's rollback; None where the newest counts.

        Raises:
            CheckpointError: there is none of that round.
        """
        if self.settings.resume_round is None:
            return None
        return self._attempts.choose(
            paths, submission=self.settings.submission, round=self.settings.resume_round
        )

    def pinned(self) -> dict[str, ray.train.Checkpoint]:
        """Checkpoints that are kept for an operator's rollback, by our folder in each; see `choose`."""
        if self.settings.resume_round is None:
            return {}
        folder = posixpath.join(self._run_path, PINNED_FOLDER)
        infos = self._filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
        return {
            posixpath.join(info.path, HDET_FOLDER): ray.train.Checkpoint(
                info.path, filesystem=self._filesystem
            )
            for info in infos
        }

    def connect(self, ledger: Path, *, resumed_round: int | None) -> RemoteControl:
        """Rank 0's control, which finds the controller when the first step is taken."""
        settings = self.settings
        identity = Identity(
            job=settings.job,
            attempt=self.attempt,
            submission=settings.submission,
            num_replicas=self._collective.num_replicas,
            storage_path=self._place(),
            resumed_round=resumed_round,
        )
        transport = ActorTransport(settings.namespace, settings.actor, _CALL_TIMEOUT_S)
        self.control = RemoteControl(
            identity, transport, control_timeout_s=settings.control_timeout_s, ledger=ledger
        )
        return self.control

    def note(self, kind: str, data: Mapping[str, Any]) -> None:
        """Tell the controller; where this rank has no line to it, nobody does."""
        if self.control is not None:
            self.control.note(kind, data)

    def note_stored(self, stored: StoredCheckpoint) -> None:
        """A checkpoint lies in the storage."""
        self.note("checkpoint", {"round": stored.round, "step": stored.step, "path": stored.path})

    def flush(self) -> None:
        """Let the controller have everything before this worker ends."""
        if self.control is not None:
            self.control.flush()

    def _place(self) -> str:
        """The run's folder, as others can name it."""
        if isinstance(self._filesystem, pafs.LocalFileSystem) or self.settings.storage_path is None:
            return self._run_path
        return posixpath.join(self.settings.storage_path, posixpath.basename(self._run_path))


def settings_on_every_rank(collective: Collective) -> JobSettings | None:
    """The job in the environment, the same on every rank, or None; collective.

    Raises:
        ConfigError: a variable that can't be read; on every rank.
    """
    found, error = None, None
    try:
        found = job_settings()
    except ConfigError as raised:
        error = raised
    collective.agree(error)
    jobs = collective.gather_objects(None if found is None else found.job)
    if len(set(jobs)) > 1:
        raise ConfigError(f"ranks belong to different jobs ({jobs}); start all workers with one environment")
    return found


def controller_of(spec: Mapping[str, Any]) -> Controller | None:
    """The controller that a job's spec names in place of its script's.

    Raises:
        ConfigError: unknown, or with a setting that can't work.
    """
    given = spec.get("hdet")
    if given is None:
        return None
    fields = {name: value for name, value in given.items() if name != "controller"}
    kind = type(resolve_controller(str(given.get("controller"))))
    try:
        controller: Controller = from_json(kind, fields, "hdet")
    except LedgerError as error:
        raise ConfigError(str(error)) from error
    return controller


def controller_on_every_rank(spec: Mapping[str, Any], collective: Collective) -> Controller | None:
    """The same, with what is wrong raised on every rank; collective."""
    controller, error = None, None
    try:
        controller = controller_of(spec)
    except HDETError as raised:
        error = raised
    collective.agree(error)
    return controller
