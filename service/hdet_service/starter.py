"""Drivers: the processes that run jobs, started and stopped through Ray's Job Submission API.

The service sees them through `Starter` only: tests record what would be started. All methods block; the
controller calls them in threads.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from hdet_ray.exceptions import HDETError

logger = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 60.0
PREFIX = "hdet-"
_OUR_ID = re.compile(rf"{PREFIX}[0-9A-HJKMNP-TV-Z]{{26}}-[0-9]+")


def is_ours(submission_id: str | None) -> bool:
    """Whether a submission is one of ours, among whatever else runs on the cluster: ``hdet-<ULID>-<n>``."""
    return submission_id is not None and _OUR_ID.fullmatch(submission_id) is not None


class StarterError(HDETError, RuntimeError):
    """Ray did not do what was asked, for now: try again."""


class LaunchRefusedError(StarterError):
    """This launch can't work, however often it is tried."""


class DriverStatus(StrEnum):
    """Where a driver's process stands, as Ray has it."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def has_ended(self) -> bool:
        """Its process is gone for good."""
        return self not in (DriverStatus.PENDING, DriverStatus.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverState:
    """One driver."""

    status: DriverStatus
    exit_code: int | None = None
    message: str = ""
    log_path: Path | None = None
    """Where its output lies on this machine, once there is some."""
    is_setup_failure: bool = False
    """Its runtime environment could not be made: the driver never ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a driver needs to start."""

    submission_id: str
    job_id: str
    submission: int
    command: str
    """A shell command."""
    env: Mapping[str, str]
    working_dir: Path | str | None = None
    """An uploaded package on this machine, or a remote URI."""
    wheels: tuple[str, ...] = ()
    """Paths of wheels inside the package that are laid out beside its modules."""
    pip: tuple[str, ...] = ()


class Starter(Protocol):
    """Starts and stops drivers."""

    def start(self, launch: Launch) -> str:
        """Start a driver, once per ``submission_id`` however often it is called; returns that id.

        Raises:
            LaunchRefusedError: it can never start.
            StarterError: it did not start now.
        """
        ...

    def stop(self, submission_id: str) -> None:
        """Ask a driver to end (TERM, then KILL); one that is unknown or has ended is left as it is.

        Raises:
            StarterError: the request did not get through.
        """
        ...

    def states(self) -> Mapping[str, DriverState]:
        """All our drivers that Ray knows, by submission id.

        Raises:
            StarterError: Ray does not answer.
        """
        ...

    def forget(self, submission_ids: Collection[str]) -> None:
        """Take drivers that have ended off Ray's list, so that it stays short."""
        ...

    def is_ready(self) -> bool:
        """Whether Ray answers."""
        ...


class RecordingStarter:
    """Keeps launches in a list instead of starting them; a test plays Ray by setting states."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.stopped: list[str] = []
        self.drivers: dict[str, DriverState] = {}
        self.is_up = True
        self.refusals: dict[str, Exception] = {}
        """Errors that a start of a job raises, by job id."""
        self._lock = threading.Lock()

    def start(self, launch: Launch) -> str:
        self._require_up()
        with self._lock:
            if launch.job_id in self.refusals:
                raise self.refusals[launch.job_id]
            if launch.submission_id not in self.drivers:
                self.launches.append(launch)
                self.drivers[launch.submission_id] = DriverState(status=DriverStatus.RUNNING)
        return launch.submission_id

    def stop(self, submission_id: str) -> None:
        self._require_up()
        self.stopped.append(submission_id)
        driver = self.drivers.get(submission_id)
        if driver is not None and not driver.status.has_ended:
            self.drivers[submission_id] = DriverState(status=DriverStatus.STOPPED)

    def states(self) -> Mapping[str, DriverState]:
        self._require_up()
        return dict(self.drivers)

    def forget(self, submission_ids: Collection[str]) -> None:
        for submission_id in submission_ids:
            self.drivers.pop(submission_id, None)

    def is_ready(self) -> bool:
        return self.is_up

    def end(self, submission_id: str, exit_code: int = 0, message: str = "") -> None:
        """The driver's process has ended."""
        status = DriverStatus.SUCCEEDED if exit_code == 0 else DriverStatus.FAILED
        self.drivers[submission_id] = DriverState(status=status, exit_code=exit_code, message=message)

    def _require_up(self) -> None:
        if not self.is_up:
            raise StarterError("Ray does not answer")


@dataclass(slots=True)
class RayStarter:
    """Drivers as Ray jobs, through the dashboard; Ray's token authentication is its client's own business.

    Args:
        gcs_address: ``host:port`` of the cluster. Given to every driver, since looking for "the" cluster
            may find another one on the same machine.
        logs_path: Folder of Ray's session in which drivers' output lies, on this machine.
        scratch: Folder for packages that are put together for a submission.
        connect: Makes the client; a new one is made after a failure.
    """

    gcs_address: str
    logs_path: Path | None
    scratch: Path
    connect: Callable[[str], Any]
    _client: Any = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def start(self, launch: Launch) -> str:
        from hdet_service.working_dirs import prepared_working_dir

        if self._knows(launch.submission_id):
            return launch.submission_id
        with prepared_working_dir(launch.working_dir, launch.wheels, self.scratch) as working_dir:
            runtime_env: dict[str, Any] = {"env_vars": dict(launch.env)}
            if working_dir is not None:
                runtime_env["working_dir"] = str(working_dir)
            if launch.pip:
                runtime_env["pip"] = list(launch.pip)
            try:
                self._ask(
                    "submit_job",
                    entrypoint=f"export RAY_ADDRESS={self.gcs_address}; {launch.command}",
                    submission_id=launch.submission_id,
                    runtime_env=runtime_env,
                    metadata={"hdet_job": launch.job_id},
                )
            except (ValueError, TypeError) as error:  # Ray's own checks of the runtime environment
                raise LaunchRefusedError(f"Ray refuses the runtime environment: {error}") from error
            except StarterError:
                if not self._knows(launch.submission_id):
                    raise
        return launch.submission_id

    def stop(self, submission_id: str) -> None:
        try:
            self._ask("stop_job", submission_id)
        except StarterError:
            if self._knows(submission_id):
                raise

    def states(self) -> Mapping[str, DriverState]:
        return {
            info.submission_id: self._state(info)
            for info in self._ask("list_jobs")
            if is_ours(info.submission_id)
        }

    def forget(self, submission_ids: Collection[str]) -> None:
        for submission_id in submission_ids:
            try:
                self._ask("delete_job", submission_id)
            except StarterError as error:
                logger.info("not taken off Ray's list: submission=%s cause=%s", submission_id, error)

    def is_ready(self) -> bool:
        try:
            self._ask("get_version")
        except StarterError:
            return False
        return True

    def _knows(self, submission_id: str) -> bool:
        return submission_id in self.states()

    def _state(self, info: Any) -> DriverState:
        setup = getattr(info.error_type, "value", info.error_type)
        path = None if self.logs_path is None else self.logs_path / f"job-driver-{info.submission_id}.log"
        return DriverState(
            status=DriverStatus(getattr(info.status, "value", info.status)),
            exit_code=info.driver_exit_code,
            message=info.message or "",
            log_path=path,
            is_setup_failure=setup == "RUNTIME_ENV_SETUP_FAILURE",
        )

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        import requests
        from ray.exceptions import RayError

        try:
            with self._lock:
                if self._client is None:
                    self._client = self.connect(self.gcs_address)
                client = self._client
            return getattr(client, method)(*args, **kwargs)
        except (RuntimeError, OSError, RayError, requests.RequestException) as error:
            with self._lock:
                self._client = None
            raise StarterError(
                f"Ray's job server did not {method.replace('_', ' ')}: {_brief(error)}"
            ) from error


def connect_to_ray(gcs_address: str) -> Any:
    """Ray's own client of the cluster at this address.

    Raises:
        ConnectionError: the dashboard does not answer.
    """
    from ray.job_submission import JobSubmissionClient

    class BoundedClient(JobSubmissionClient):
        """Ray's own waits for ever on a dashboard that hangs."""

        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            return super()._do_request(*args, timeout=_REQUEST_TIMEOUT_S, **kwargs)

    return BoundedClient(gcs_address)


def _brief(error: BaseException) -> str:
    """The last line: what the server raised, without its stack."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
