"""Is the run's storage one place, seen from every node?

A path on a node's own disk looks like storage until the run resumes elsewhere and finds nothing. So at the
start rank 0 writes a file there, and one rank of every other node reads it.
"""

from __future__ import annotations

import logging
import posixpath
import time
import uuid

import pyarrow.fs as pafs

from hdet_ray.exceptions import ConfigError
from hdet_ray.optim.collective import Collective

logger = logging.getLogger(__name__)

_FOLDER = "hdet-seen"
_LOOKS = 4
_BETWEEN_LOOKS_S = 0.5


def require_shared_storage(
    collective: Collective, filesystem: pafs.FileSystem, run_path: str, *, node: str
) -> None:
    """Check that all nodes see the same storage; collective. Runs of one node have nothing to check.

    Args:
        collective: The run's ranks.
        filesystem: Of the storage, as this rank resolved it.
        run_path: The run's folder on it.
        node: This rank's node.

    Raises:
        ConfigError: on every rank; names the nodes that don't see what rank 0's node writes.
    """
    nodes = collective.gather_objects(node)
    if len(set(nodes)) == 1:
        return
    token = collective.broadcast_object(uuid.uuid4().hex if collective.rank == 0 else None)
    path = posixpath.join(run_path, _FOLDER, token)
    error = _write(filesystem, path, token) if collective.rank == 0 else None
    collective.agree(error)
    is_first_of_node = nodes.index(node) == collective.rank
    reads = None if not is_first_of_node or _holds(filesystem, path, token) else node
    blind = [other for other in collective.gather_objects(reads) if other is not None]
    if collective.rank == 0:
        filesystem.delete_dir(posixpath.dirname(path))
    if blind:
        raise ConfigError(
            f"node {nodes[0]} writes to the storage {run_path}, and {_names(blind)} can't read it there: each"
            " has a disk of its own; use RunConfig(storage_path=…) on a shared file system (NFS, s3://, gs://)"
        )


def _write(filesystem: pafs.FileSystem, path: str, token: str) -> ConfigError | None:
    try:
        filesystem.create_dir(posixpath.dirname(path), recursive=True)
        with filesystem.open_output_stream(path) as writer:
            writer.write(token.encode())
    except OSError as error:
        return ConfigError(
            f"the storage can't be written at {path} ({error}); check RunConfig(storage_path=…)"
        )
    return None


def _holds(filesystem: pafs.FileSystem, path: str, token: str) -> bool:
    """A file that is not there yet, or a hiccup of the network, is looked at again."""
    for _ in range(_LOOKS):
        try:
            with filesystem.open_input_stream(path) as reader:
                return bool(reader.read() == token.encode())
        except OSError as error:
            logger.warning("the storage can't be read here yet: path=%s error=%s", path, error)
            time.sleep(_BETWEEN_LOOKS_S)
    return False


def _names(nodes: list[str]) -> str:
    return f"node {nodes[0]}" if len(nodes) == 1 else f"nodes {', '.join(nodes)}"
