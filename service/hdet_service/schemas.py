"""What callers may send: strict pydantic models that refuse what they don't know.

Nothing is coerced: ``"1"`` is no number, ``1.0`` no integer, ``true`` neither. A controller's settings are
derived from `hdet_ray.config`'s classes, so that a setting and its default are written down once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from hdet_ray.config import Controller
from hdet_ray.workloads import WORKLOADS
from hdet_service.controller_settings import ControllerSettings, to_controller

MAX_CONFIG_BYTES = 64 * 1024
"""A job's ``config`` and ``hdet`` travel to its processes in an environment variable."""
MAX_REPLICAS = 1024
MAX_DEVICES = 1024
MAX_ENV_VARS = 128
MAX_LABELS = 16
MAX_COUNT = 1_000_000_000
"""Above every round or step that a run can have; keeps integers inside the database's."""

_MODULE_FUNCTION = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*"
_COMMAND = r"[!-~]+( [ -~]*[!-~])|[!-~]*/[!-~]+"
_ENTRYPOINT = f"^(({'|'.join(sorted(WORKLOADS))})|({_MODULE_FUNCTION})|({_COMMAND}))$"
_LABEL_KEY = r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$"
_LABEL_VALUE = r"^([A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?)?$"
_ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
_RESERVED_ENV = ("HDET_", "RAY_")
_WORKING_DIR = r"^([0-9a-f]{64}|(https|s3|gs|abfss|azure)://[!-~]{1,1000}\.zip)$"
_STORAGE_PATH = r"^(/|[a-z][a-z0-9+]{1,15}://)[ -~]{1,1000}$"
_TEXT = r"^[^\x00-\x08\x0b-\x1f\x7f]*$"


class Strict(BaseModel):
    """Refuses unknown fields, other types, and numbers that are not finite."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _check_env_name(name: str) -> str:
    if not re.fullmatch(_ENV_NAME, name) or name.startswith(_RESERVED_ENV):
        raise ValueError(
            f"{name!r} can't be set: letters, digits and _ only, and neither HDET_* nor RAY_*, "
            "which the service sets itself"
        )
    return name


def _check_no_climbing(path: str) -> str:
    if ".." in path.split("/"):
        raise ValueError(f"{path!r} climbs out of its folder by '..'; name the folder itself")
    return path


def _check_entrypoint(entrypoint: str) -> str:
    if not re.fullmatch(_ENTRYPOINT, entrypoint):
        raise ValueError(
            f"{entrypoint[:200]!r} is no built-in workload ({', '.join(sorted(WORKLOADS))}), no "
            "`module:function` and no command; a command has an argument or a path, as `python train.py`"
        )
    return entrypoint


Entrypoint = Annotated[
    str,
    Field(max_length=4096),
    AfterValidator(_check_entrypoint),
    WithJsonSchema({"type": "string", "maxLength": 4096, "pattern": _ENTRYPOINT}),
]
EnvName = Annotated[
    str,
    AfterValidator(_check_env_name),
    WithJsonSchema({"type": "string", "pattern": r"^(?!HDET_|RAY_)[A-Za-z_][A-Za-z0-9_]{0,127}$"}),
]
EnvValue = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]
LabelKey = Annotated[str, Field(pattern=_LABEL_KEY)]
LabelValue = Annotated[str, Field(pattern=_LABEL_VALUE)]
Requirement = Annotated[str, Field(max_length=512, pattern=r"^[!-~]([ -~]*[!-~])?$")]
Reason = Annotated[str, Field(max_length=1000, pattern=_TEXT)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._ -]{0,126}[A-Za-z0-9])?$")]
HParam = Annotated[str, Field(pattern=r"^[!-~]{1,64}$")]


class RuntimeEnv(Strict):
    """What the job's processes find around them."""

    working_dir: Annotated[str, Field(pattern=_WORKING_DIR)] | None = None
    """SHA-256 of an uploaded package (`PUT /v1/packages/{sha256}`), or the URI of a remote zip file."""
    pip: list[Requirement] = Field(default_factory=list, max_length=200)
    """Requirements as pip takes them."""
    env_vars: dict[EnvName, EnvValue] = Field(default_factory=dict, max_length=MAX_ENV_VARS)
    """Environment variables; `HDET_*` and `RAY_*` are the service's."""


def _check_devices(value: object) -> int | float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 < value < 1:
            return value
        if 0 <= value <= MAX_DEVICES and value == int(value):
            return int(value)
    raise ValueError(f"must be a whole number from 0 to {MAX_DEVICES}, or a fraction of one (0.5)")


Devices = Annotated[
    int | float,
    PlainValidator(_check_devices),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": MAX_DEVICES},
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            ]
        }
    ),
]
"""Whole devices, or a fraction of one."""


class Replicas(Strict):
    """How many replicas train, and what each rank takes."""

    min: int = Field(ge=1, le=MAX_REPLICAS)
    """Below it the job waits for resources."""
    max: int = Field(ge=1, le=MAX_REPLICAS)
    """What is asked for; with fewer the job trains on, degraded."""
    ranks_per_replica: int = Field(default=1, ge=1, le=MAX_REPLICAS)
    """Processes that train one replica together, data-parallel."""
    gpus_per_rank: Devices = 0
    cpus_per_rank: Devices = 1

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(
                f"min={self.min} is above max={self.max}; swap them, or give both the same value for a group "
                "that keeps its size"
            )
        return self


class CheckpointSettings(Strict):
    """When the run is saved, how many are kept, and where."""

    every_rounds: int = Field(default=1, ge=1, le=MAX_COUNT)
    sync: bool = False
    """Whether a round waits until the checkpoint before it is stored."""
    keep: int = Field(default=3, ge=1, le=10_000)
    storage_path: Annotated[str, Field(pattern=_STORAGE_PATH), AfterValidator(_check_no_climbing)] | None = (
        None
    )
    """Folder that all nodes of the cluster share: an absolute path or a URI."""


EntrypointKind = Literal["workload", "function", "command"]


class JobSpec(Strict):
    """A job: what runs, on how many replicas, and how it is steered."""

    name: Name
    """May repeat; the job's `id` never does."""
    entrypoint: Entrypoint
    """`module:function` (a `train_loop_per_worker(config)`), a built-in workload (`byte_lm`, `digits`), or a
    command (`python train.py --x`), which finds its job by `HDET_JOB_ID` and `HDET_CONTROL`."""
    config: dict[str, Any] = Field(default_factory=dict)
    """What the entrypoint is called with; at most 64 KiB as JSON."""
    runtime_env: RuntimeEnv = Field(default_factory=RuntimeEnv)
    replicas: Replicas
    hdet: ControllerSettings | None = None
    """In place of the controller that the entrypoint's own scheduler names."""
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    collective_timeout_s: float = Field(default=60, ge=10, le=86_400)
    """Above what a rank computes between two collectives; one silent for half of it counts as lost."""
    max_failures: int = Field(default=3, ge=0, le=1000)
    """Failures after which the job is started again."""
    ttl_after_finished_s: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    """Seconds after its end at which the job and its logs are deleted; never, if absent."""
    priority: int = Field(default=0, ge=-1000, le=1000)
    """Higher ones start first."""
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=MAX_LABELS)

    @model_validator(mode="after")
    def _check_config_size(self) -> Self:
        size = len(json.dumps(self.config, allow_nan=False).encode())
        if size > MAX_CONFIG_BYTES:
            raise ValueError(
                f"config has {size} bytes as JSON; at most {MAX_CONFIG_BYTES} travel to the job's processes: "
                "put data into the package or into storage and name it here"
            )
        return self

    @property
    def entrypoint_kind(self) -> EntrypointKind:
        """Which of the three forms the entrypoint has."""
        if self.entrypoint in WORKLOADS:
            return "workload"
        return "function" if re.fullmatch(_MODULE_FUNCTION, self.entrypoint) else "command"

    @property
    def package(self) -> str | None:
        """SHA-256 of the uploaded package that is its working directory, if it has one."""
        working_dir = self.runtime_env.working_dir
        return working_dir if working_dir is not None and "://" not in working_dir else None

    def controller(self) -> Controller | None:
        """The library's own settings object of `hdet`."""
        return None if self.hdet is None else to_controller(self.hdet)

    def to_json(self) -> dict[str, Any]:
        """The spec as it is stored and shown, with defaults filled in."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobSpec:
        """A stored spec."""
        return cls.model_validate(dict(data))


class Action(Strict):
    """Why something is done: for the audit."""

    reason: Reason = ""


class _OverrideFields(Strict):
    hparam: HParam
    group: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Optimizer parameter group; all, if absent."""
    apply_at_round: Count | None = None
    """The next round to be planned, if absent."""
    expires_after_rounds: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    """Rounds in force from the one it applied at; until removed, if absent."""
    reason: Reason = ""
    """Why: shown beside it and kept in the audit."""


class SetOverride(_OverrideFields):
    """Pins a value; the controller is frozen for it until this expires or is removed."""

    op: Literal["set"]
    value: float


class ScaleOverride(_OverrideFields):
    """Multiplies a value once; when it expires or is removed, the factor is taken back."""

    op: Literal["scale"]
    value: float = Field(gt=0)


OverrideBody = Annotated[SetOverride | ScaleOverride, Field(discriminator="op")]
"""What `POST …/overrides` takes."""


class RollbackBody(Strict):
    """Back to the schedule and the checkpoint of a round."""

    round: Count
    reason: Reason = ""


class AutoPatch(Strict):
    """Freeze, let go on, or bound the controller of one hyperparameter."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["frozen"]}, {"required": ["bounds"]}]}
    )

    hparam: HParam
    frozen: bool = False
    bounds: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(default_factory=list)
    """`[low, high]`, for every group."""
    reason: Reason = ""

    @model_validator(mode="after")
    def _check_change(self) -> Self:
        if not self.model_fields_set & {"frozen", "bounds"}:
            raise ValueError("neither frozen nor bounds is given: nothing would change; give one of them")
        if self.bounds and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds {self.bounds} must be [low, high] with low below high")
        return self


class TokenBody(Strict):
    """A new bearer token."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
    """Owner of what is done with it; never used again for another token."""
    role: Literal["metrics", "viewer", "submitter", "operator"]


class DrainBody(Strict):
    """Stop admission (and pause what runs), or go on."""

    draining: bool = True
    reason: Reason = ""
