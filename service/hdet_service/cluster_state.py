"""What `hdet up` has started or joined, and the file that remembers it.

``cluster.json`` in the service's home names the head that is ours, or the cluster that was joined; only what
stands there is ever ended.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hdet_ray.exceptions import HDETError
from hdet_service.head import Head
from hdet_service.processes import ProcessId
from hdet_service.settings import Settings


class ClusterError(HDETError, RuntimeError):
    """The service did not start, or does not answer."""


class PortTakenError(ClusterError):
    """Something else listens on the service's port."""


class NotRunningError(ClusterError):
    """There is no service of this home."""


class UnreachableError(ClusterError):
    """Ray or the controller's actor gave no answer, for now: it may be starting, or under load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What `up` started, or joined."""

    url: str
    """Address that clients use; on this machine `Settings.local_url` is asked."""
    address: str
    """Of Ray's GCS."""
    head: Head | None
    """Ours; None where a cluster was joined."""
    settings: Settings
    supervisor: ProcessId | None = None

    @property
    def cluster_id(self) -> str | None:
        return None if self.head is None else self.head.cluster_id


def state_path(home: Path) -> Path:
    """The file that remembers."""
    return home / "cluster.json"


def write_state(running: Running) -> None:
    """Remember what was started, before anything can go wrong with it."""
    data = {
        "url": running.url,
        "local_url": running.settings.local_url,
        "address": running.address,
        "head": None if running.head is None else running.head.to_json(),
        "settings": running.settings.model_dump(mode="json"),
        "supervisor": None
        if running.supervisor is None
        else {"pid": running.supervisor.pid, "started_s": running.supervisor.started_s},
    }
    path = state_path(running.settings.home)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    draft.chmod(0o600)
    draft.replace(path)


def read_state(home: Path) -> Running | None:
    """What was started from this home; None where nothing was.

    Raises:
        ClusterError: the file can't be read.
    """
    try:
        data = json.loads(state_path(home).read_text(encoding="utf-8"))
        return Running(
            url=data["url"],
            address=data["address"],
            head=None if data["head"] is None else Head.from_json(data["head"]),
            settings=Settings.model_validate_json(json.dumps(data["settings"])),
            supervisor=None if data["supervisor"] is None else ProcessId(**data["supervisor"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(
            f"{state_path(home)} can't be read ({error}); delete it once nothing of that service runs"
        ) from error
