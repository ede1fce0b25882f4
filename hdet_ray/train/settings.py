"""What a job's processes are told by their environment. The only file here that reads it.

The controller sets these for the driver, Ray hands them on to the workers. Without ``HDET_JOB_ID`` and
``HDET_CONTROL`` a run is nobody's job and decides by itself.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hdet_ray.exceptions import ConfigError

CONTROL_TIMEOUT_S = 1.0
"""How long a boundary waits for the controller at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """The job that this process belongs to."""

    job: str
    """Its id."""
    namespace: str
    """Ray namespace of the controller's actor."""
    actor: str
    """Name of the controller's actor."""
    submission: int = 0
    """How often a driver was started for the job; checkpoints and attempts are counted below it."""
    resume_round: int | None = None
    """Go on from the checkpoint of this round (an operator's rollback)."""
    storage_path: str | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    """The job as it was asked for."""
    control_timeout_s: float = CONTROL_TIMEOUT_S


def job_settings(environment: Mapping[str, str] = os.environ) -> JobSettings | None:
    """The job in the environment, or None.

    Raises:
        ConfigError: a variable that can't be read; names it.
    """
    job, control = environment.get("HDET_JOB_ID"), environment.get("HDET_CONTROL")
    if not job or not control:
        return None
    namespace, _, actor = control.removeprefix("ray://").rpartition("/")
    if not namespace or not actor:
        raise ConfigError(
            f"HDET_CONTROL={control!r} names no actor; use 'namespace/name', as hdet/hdet-controller"
        )
    resume_round = environment.get("HDET_RESUME_ROUND")
    return JobSettings(
        job=job,
        namespace=namespace,
        actor=actor,
        submission=_count("HDET_SUBMISSION", environment.get("HDET_SUBMISSION") or "0"),
        resume_round=_count("HDET_RESUME_ROUND", resume_round) if resume_round else None,
        storage_path=environment.get("HDET_STORAGE_PATH") or None,
        spec=_spec(environment.get("HDET_JOB_SPEC")),
        control_timeout_s=_timeout(environment.get("HDET_CONTROL_TIMEOUT_S")),
    )


@contextmanager
def defaults_in_environment(
    values: Mapping[str, str], environment: MutableMapping[str, str] = os.environ
) -> Iterator[None]:
    """Variables that are not set have these values inside; what is set stays."""
    missing = {name: value for name, value in values.items() if name not in environment}
    environment.update(missing)
    try:
        yield
    finally:
        for name in missing:
            environment.pop(name, None)


def _count(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r} is no count; the controller sets it, so leave it alone")
    return int(text)


def _timeout(text: str | None) -> float:
    if not text:
        return CONTROL_TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"HDET_CONTROL_TIMEOUT_S={text!r} must be a number of seconds above 0; 1 is usual")
    return seconds


def _spec(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        spec = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"HDET_JOB_SPEC is no JSON ({error}); the controller sets it, so leave it alone"
        ) from error
    if not isinstance(spec, dict):
        raise ConfigError("HDET_JOB_SPEC is no JSON object; the controller sets it, so leave it alone")
    return spec
