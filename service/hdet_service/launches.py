"""What a job's driver is started with: its command, its environment, its working directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

from hdet_ray.train.outcomes import FINAL, REASONS
from hdet_service.reconcile import Ending, Outcome
from hdet_service.schemas import JobSpec
from hdet_service.settings import Settings
from hdet_service.starter import PREFIX, Launch
from hdet_service.states import Reason
from hdet_service.store.models import Job
from hdet_service.working_dirs import is_packaged_wheel

ACTOR_NAMESPACE = "hdet"
ACTOR_NAME = "hdet-controller"
MAX_VARIABLE_BYTES = 128 << 10
"""Linux starts no process with a longer variable than that."""
_RAYS_OWN_BYTES = 4096
"""Ray adds its own to ours."""
_LAST_OWN_CODE = 128
OWN_DRIVER = "python -m hdet_ray.train.driver"


EXIT_MEANINGS: Mapping[int, Outcome] = MappingProxyType(
    {int(code): Outcome(ending=Ending.FAILED, reason=Reason(REASONS[code])) for code in FINAL}
)
"""What the exit codes of our own driver say."""


def submission_id(job_id: str, submission: int) -> str:
    """Ray's id of a driver: the same for the same start of the same job."""
    return f"{PREFIX}{job_id}-{submission}"


def launch_of(job: Job, settings: Settings) -> Launch:
    """The newest submission of a job."""
    spec = JobSpec.from_json(job.spec)
    working_dir = spec.runtime_env.working_dir
    wheels = tuple(line for line in spec.runtime_env.pip if is_packaged_wheel(line))
    package = spec.package
    return Launch(
        submission_id=submission_id(job.id, job.submission),
        job_id=job.id,
        submission=job.submission,
        command=spec.entrypoint if spec.entrypoint_kind == "command" else OWN_DRIVER,
        env=_environment(job, spec, settings),
        working_dir=working_dir if package is None else settings.packages_path / f"{package}.zip",
        wheels=wheels,
        pip=tuple(line for line in spec.runtime_env.pip if line not in wheels),
    )


def environment_bytes(job: Job, spec: JobSpec, settings: Settings) -> int:
    """Length of the longest variable that Ray makes of a job's environment: all of it, once more as JSON."""
    environment = _environment(job, spec, settings)
    return len(json.dumps({"runtime_env": {"env_vars": environment}})) + _RAYS_OWN_BYTES


def exit_meaning(job: Job, exit_code: int | None) -> Outcome | None:
    """What a driver's exit code says of the job; None where it says nothing but that the driver is lost.

    A command of the user's own says by any code that it has failed, and is believed: only one that a signal
    ended (a shell tells that as 128 and more) was cut off.
    """
    if exit_code is None:
        return None
    if JobSpec.from_json(job.spec).entrypoint_kind != "command":
        return EXIT_MEANINGS.get(exit_code)
    if not 0 < exit_code <= _LAST_OWN_CODE:
        return None
    return Outcome(
        ending=Ending.GAVE_UP,
        reason=Reason.ENTRYPOINT_ERROR,
        message=f"its command ended with exit code {exit_code}",
    )


def storage_path(spec: JobSpec, settings: Settings) -> str:
    """Where runs of this job go: one folder below it, named by the job's id, is this run's."""
    return spec.checkpoint.storage_path or settings.runs_storage


def _environment(job: Job, spec: JobSpec, settings: Settings) -> dict[str, str]:
    failures_left = max(0, spec.max_failures - job.failures)
    told = spec.model_dump(mode="json", exclude={"runtime_env", "labels"}) | {"max_failures": failures_left}
    environment = {
        # A report is taken at a health check: the default of 2 s is longer than most rounds.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        **spec.runtime_env.env_vars,
        "HDET_JOB_ID": job.id,
        "HDET_CONTROL": f"{ACTOR_NAMESPACE}/{ACTOR_NAME}",
        "HDET_SUBMISSION": str(job.submission),
        "HDET_STORAGE_PATH": storage_path(spec, settings),
        "HDET_JOB_SPEC": json.dumps(told, allow_nan=False),
    }
    if job.resume_round is not None:
        environment["HDET_RESUME_ROUND"] = str(job.resume_round)
    return environment
