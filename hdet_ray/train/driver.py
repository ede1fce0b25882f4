"""``python -m hdet_ray.train.driver``: runs a job whose entrypoint is a train loop.

The controller starts it through Ray and says what to run by ``HDET_JOB_SPEC``. The entrypoint is imported
here, before any worker starts, so what fails there costs no workers. How it ends is told by a note and by
the exit code, since the controller may be away.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import posixpath
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError

from hdet_ray.exceptions import CheckpointError, ConfigError
from hdet_ray.train.failures import last_line, own_error
from hdet_ray.train.group_notes import LossNotes, StandingNotes
from hdet_ray.train.hopeless import end_of
from hdet_ray.train.notes import Notes
from hdet_ray.train.outcomes import DriverExit
from hdet_ray.train.settings import JobSettings, job_settings
from hdet_ray.train.storage import resolve

logger = logging.getLogger(__name__)

_PATIENCE_S = 60.0
"""How long the last word is repeated while the controller is away; its exit code says the same."""

_RESIZE_INTERVAL_S = 15.0
"""How often Ray looks for added capacity while a group trains."""

_STORAGE_PAUSES_S = (1.0, 4.0, 10.0)
"""Between looks at storage that may be away for a moment."""

_COLLECTIVE_TIMEOUT_S = 60.0
"""Where the spec is an older service's, which knows no other."""


@dataclass(frozen=True, slots=True)
class End:
    """How the run ended."""

    exit: DriverExit
    message: str = ""


class EntrypointError(ConfigError):
    """The entrypoint can't be imported, or isn't a loop; ``last_line`` is the end of its traceback."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(last_line(cause))


def main() -> int:
    """Run the job in the environment.

    Returns:
        A `DriverExit`.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("hdet_ray").setLevel(logging.INFO)
    job = job_settings()
    if job is None or not job.spec:
        print("HDET_JOB_ID, HDET_CONTROL and HDET_JOB_SPEC are not set: `hdet submit` does", file=sys.stderr)
        return DriverExit.ENTRYPOINT_ERROR
    ray.init(ignore_reinit_error=True, logging_level=logging.WARNING)
    notes = Notes(job)
    end = run_job(job, notes)
    if end.message:
        print(end.message, file=sys.stderr, flush=True)
    outcome = "succeeded" if end.exit is DriverExit.COMPLETED else "failed"
    notes.tell(
        "finished",
        {"outcome": outcome, "reason": end.exit.reason, "message": end.message},
        patience_s=_PATIENCE_S,
    )
    return end.exit


def run_job(job: JobSettings, notes: Notes) -> End:
    """Import, start, train."""
    try:
        loop = load_loop(str(job.spec["entrypoint"]), job.spec.get("config") or {})
    except EntrypointError as error:
        return End(DriverExit.ENTRYPOINT_ERROR, str(error))
    notes.tell("imported", {}, patience_s=_PATIENCE_S)
    try:
        check_storage(job)
    except CheckpointError as error:
        return End(DriverExit.CHECKPOINT_ERROR, str(error))
    try:
        trainer = build_trainer(loop, job, notes)
        notes.tell("started", {}, patience_s=1.0)
        trainer.fit()
    except (TrainingFailedError, ConfigError, CheckpointError) as error:
        traceback.print_exc()
        return _failed(error)
    return End(DriverExit.COMPLETED)


def check_storage(job: JobSettings) -> None:
    """The run's folder can be made and written from here, where Ray would only end with a traceback.

    Raises:
        CheckpointError: it can't, nor some seconds later; names the place and the remedy.
    """
    for pause_s in _STORAGE_PAUSES_S:
        try:
            return _write_test(job)
        except CheckpointError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            logger.warning("the storage can't be used yet: pause_s=%g cause=%s", pause_s, error)
            time.sleep(pause_s)
    return _write_test(job)


def _write_test(job: JobSettings) -> None:
    if job.storage_path is None:
        return  # Ray's own default
    try:
        if not ("://" in job.storage_path or os.path.isabs(job.storage_path)):
            raise ConfigError("it is neither an absolute path nor a URI")
        filesystem, path = resolve(job.storage_path)
        folder = posixpath.join(path, job.job)
        filesystem.create_dir(folder, recursive=True)
        probe = posixpath.join(folder, f".hdet-written-{job.submission}")
        with filesystem.open_output_stream(probe) as writer:
            writer.write(b"1")
        filesystem.delete_file(probe)
    except (ConfigError, OSError, pyarrow.ArrowException) as error:
        raise CheckpointError(
            f"the storage {job.storage_path} can't be used ({error}); give the job a checkpoint.storage_path "
            "(or the service HDET_STORAGE) that exists and that its processes may write"
        ) from error


def load_loop(entrypoint: str, config: Mapping[str, Any]) -> Callable[..., Any]:
    """The train loop that an entrypoint names: ``module:function``, or a built-in workload.

    Raises:
        EntrypointError: it can't be imported, isn't callable, or a workload's setting can't work.
    """
    # By name: workloads are written for this package's users, and it imports none of them by itself.
    workloads = importlib.import_module("hdet_ray.workloads")
    try:
        if entrypoint in workloads.WORKLOADS:
            workload = workloads.load_workload(entrypoint)
            workload.Settings.from_config(config)
            loop: Callable[..., Any] = workload.train_loop_per_worker
            return loop
        module, _, name = entrypoint.partition(":")
        # The working directory: a user's module lies in it, also where Python was told to be safe.
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        loop = getattr(importlib.import_module(module), name)
        _check_loop(loop, entrypoint)
    except (Exception, SystemExit) as error:  # whatever a user's module does when it is imported
        traceback.print_exc()
        raise EntrypointError(error) from error
    return loop


def _check_loop(loop: Any, entrypoint: str) -> None:
    if not callable(loop):
        raise TypeError(f"{entrypoint} is a {type(loop).__name__}; name a function that takes the config")
    parameters = inspect.signature(loop).parameters.values()
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) > 1:
        raise TypeError(
            f"{entrypoint} takes {len(required)} arguments; a loop takes one, the config, or none"
        )


def build_trainer(loop: Callable[..., Any], job: JobSettings, notes: Notes) -> Any:
    """`HDETTrainer` around a loop, as the job's spec says."""
    from hdet_ray.train.trainer import HDETTrainer

    spec = job.spec
    replicas, checkpoint = spec["replicas"], spec["checkpoint"]
    ranks_per_replica = int(replicas["ranks_per_replica"])
    gpus = float(replicas["gpus_per_rank"])
    resources = {"CPU": float(replicas["cpus_per_rank"])} | ({"GPU": gpus} if gpus else {})
    num_workers = _num_workers(replicas)
    losses = LossNotes(notes)
    standing = StandingNotes(
        notes,
        losses,
        min_workers=num_workers if isinstance(num_workers, int) else num_workers[0],
        per_worker=resources,
    )
    return HDETTrainer(
        loop,
        train_loop_config=dict(spec.get("config") or {}),
        ranks_per_replica=ranks_per_replica,
        collective_timeout_s=float(spec.get("collective_timeout_s", _COLLECTIVE_TIMEOUT_S)),
        checkpoint_every_rounds=int(checkpoint["every_rounds"]),
        checkpoint_sync=bool(checkpoint.get("sync", False)),
        checkpoint_keep=int(checkpoint["keep"]),
        scaling_config=ScalingConfig(
            num_workers=num_workers,  # type: ignore[arg-type]  # typed for Ray's old API
            elastic_resize_monitor_interval_s=_RESIZE_INTERVAL_S,  # type: ignore[call-arg]
            use_gpu=gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=job.job,
            storage_path=job.storage_path,
            failure_config=FailureConfig(max_failures=int(spec["max_failures"])),
            callbacks=[losses, standing],  # type: ignore[list-item]  # typed for Ray's old API
        ),
    )


def _num_workers(replicas: Mapping[str, Any]) -> int | tuple[int, int]:
    """Workers of a job: a range where its replicas are one."""
    smallest, largest = (int(replicas[end]) * int(replicas["ranks_per_replica"]) for end in ("min", "max"))
    return largest if smallest == largest else (smallest, largest)


def _failed(error: BaseException) -> End:
    """What a failed run's reason is: the library's own error behind it, or workers that failed too often."""
    cause = own_error(error)
    end = None if cause is None else end_of(cause)
    if end is not None:
        return End(end, last_line(cause or error))
    text = last_line(error)
    if "FloatingPointError" in text:
        return End(DriverExit.NON_FINITE, text)
    return End(DriverExit.RETRIES_EXHAUSTED, text)


if __name__ == "__main__":
    sys.exit(main())
