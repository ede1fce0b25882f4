"""What the service can be told. The only file of the service that reads environment variables.

Every setting is ``HDET_<NAME>`` in the environment; `hdet up` hands them to the controller as JSON, so that
a restarted one has the same.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hdet_ray.exceptions import ConfigError

DATABASE_FILE = "hdet.sqlite3"
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
RAY_WORKER_PORTS = range(10002, 20000)
"""Ray hands these to its workers: a service that sits on one may find it taken after a restart."""


def default_home() -> Path:
    """The user's data folder."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "hdet"


class Settings(BaseSettings):
    """Settings of one controller.

    Raises:
        ConfigError: (from `load_settings`) a value that can't work.
    """

    model_config = SettingsConfigDict(env_prefix="HDET_", frozen=True, extra="forbid")

    home: Path = Field(default_factory=default_home)
    """Holds database, tokens, packages and kept logs."""

    # Where it listens.
    host: str = "127.0.0.1"
    port: int = Field(default=8470, ge=1, le=65535)
    url: str | None = None
    """Address that clients use, where it is not ``http://host:port``."""
    tls_terminated: bool = False
    """Something in front of the service speaks TLS."""
    insecure_i_know: bool = False
    """Listen beyond loopback without TLS."""

    # Who may.
    tokens_file: Path | None = None
    """First tokens: lines of ``name role token`` (a mounted Secret)."""
    entrypoint_allowlist: tuple[str, ...] = ()
    """Entrypoints that may be submitted, as shell patterns; empty allows all."""

    # Jobs.
    max_running_jobs: int = Field(default=8, ge=1)
    storage: str | None = None
    """Where runs go whose spec names no ``storage_path``: a shared folder or a URI; None is
    ``home/runs``, which is enough on one machine."""
    retry_delay_s: float = Field(default=5.0, ge=0)
    """Wait before the first retry; doubles with each one."""
    retry_delay_max_s: float = Field(default=300.0, ge=0)
    pause_timeout_s: float = Field(default=120.0, gt=0)
    """A driver that has not paused by then is stopped; its newest checkpoint counts."""
    silence_timeout_s: float = Field(default=60.0, gt=0)
    """Reports that stay away for this long (and for ten usual rounds) count as lost replicas."""
    tick_s: float = Field(default=1.0, gt=0)
    """Time between two looks at Ray's list of jobs."""

    # Bounds.
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    max_package_bytes: int = Field(default=512 << 20, ge=1024)
    max_page: int = Field(default=200, ge=1)
    default_page: int = Field(default=50, ge=1)
    max_sse_clients: int = Field(default=64, ge=1)
    max_sse_clients_per_token: int = Field(default=16, ge=1)
    requests_per_s: float = Field(default=50.0, gt=0)
    """Per token."""
    request_burst: int = Field(default=100, ge=1)
    max_log_bytes: int = Field(default=64 << 20, ge=1 << 16)
    """Kept of one driver's output; the rest is left out and said so."""
    finished_series_grace_s: float = Field(default=300.0, ge=0)
    """Metrics of a finished job go away after this."""
    ledger_full_rounds: int = Field(default=10_000, ge=10)
    """Newest rounds of a job that are kept in full."""
    package_keep_days: float = Field(default=30.0, gt=0)
    """An uploaded package that no job needs is deleted so long after its last use."""

    # The cluster.
    ray_address: str | None = None
    """``host:port`` of Ray's GCS; None lets the controller ask the Ray that it runs in."""
    cluster_id: str | None = None
    """Marks every process of a head that `hdet up` started."""

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("port")
    @classmethod
    def _outside_rays_ports(cls, port: int) -> int:
        if port in RAY_WORKER_PORTS:
            raise ValueError(
                f"{port} lies in {RAY_WORKER_PORTS.start}-{RAY_WORKER_PORTS.stop - 1}, which Ray hands to "
                "its workers; take one outside, such as 8470"
            )
        return port

    @model_validator(mode="after")
    def _guarded(self) -> Settings:
        if self.host not in LOOPBACK_HOSTS and not (self.tls_terminated or self.insecure_i_know):
            raise ValueError(
                f"host={self.host!r} is reachable from other machines, and tokens would travel in the clear; "
                "put TLS in front and set HDET_TLS_TERMINATED=true, or accept it with --insecure-i-know"
            )
        return self

    @property
    def public_url(self) -> str:
        """Address that clients use, without a trailing slash."""
        if self.url is not None:
            return self.url.rstrip("/")
        return self.local_url

    @property
    def local_url(self) -> str:
        """The listener itself, as it is reached on its own machine whatever ``url`` says."""
        return f"http://{_dialable(self.host)}:{self.port}"

    @property
    def database_path(self) -> Path:
        return self.home / DATABASE_FILE

    @property
    def packages_path(self) -> Path:
        return self.home / "packages"

    @property
    def logs_path(self) -> Path:
        return self.home / "logs"

    @property
    def token_path(self) -> Path:
        """The first operator's token, mode 0600."""
        return self.home / "token"

    @property
    def runs_storage(self) -> str:
        return self.storage or str(self.home / "runs")


def load_settings(**given: object) -> Settings:
    """Settings from the environment, with what is given in place of it; None stands for not given.

    Raises:
        ConfigError: a value that can't work; names the setting and the remedy.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError(_first_problem(error)) from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    return f"HDET_{name.upper()}: {text}" if name else text


class ClientSettings(BaseSettings):
    """What a caller of the service can be told by its environment."""

    model_config = SettingsConfigDict(env_prefix="HDET_", frozen=True, extra="ignore")

    home: Path = Field(default_factory=default_home)
    """Folder of a service on this machine: its address and first token are read there."""
    url: str | None = None
    token: SecretStr | None = None
    host: str = "127.0.0.1"
    port: int = 8470

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @property
    def database_path(self) -> Path:
        """The database of the service on this machine."""
        return self.home / DATABASE_FILE

    @property
    def default_url(self) -> str:
        """Address of a service on this machine that was started with the same environment."""
        return f"http://{_dialable(self.host)}:{self.port}"


def load_client_settings() -> ClientSettings:
    """A caller's settings from the environment.

    Raises:
        ConfigError: a value that can't work; names the setting.
    """
    try:
        return ClientSettings()
    except ValidationError as error:
        raise ConfigError(_first_problem(error)) from error


def _dialable(host: str) -> str:
    """The host that a caller on the same machine dials for one that is listened on."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
