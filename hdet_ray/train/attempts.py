"""Attempts: every start of a job's workers gets a number, written down where its checkpoints lie.

Numbers only grow, so the controller can tell which of two groups of workers is the run's. The driver that
an attempt belongs to stands beside it: after an operator's rollback, checkpoints of older drivers no longer
count.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from typing import Any

import pyarrow.fs as pafs

from hdet_ray.exceptions import CheckpointError
from hdet_ray.train.layout import ATTEMPTS_FOLDER
from hdet_ray.train.manifest import Manifest, NewerVersionError
from hdet_ray.train.storage import verify_at


class Attempts:
    """The attempts of one run.

    Args:
        filesystem: Of the run's storage.
        run_path: The run's folder on it.
    """

    def __init__(self, filesystem: pafs.FileSystem, run_path: str) -> None:
        self._filesystem = filesystem
        self._folder = posixpath.join(run_path, ATTEMPTS_FOLDER)

    def begin(self, submission: int, *, above: int = 0) -> int:
        """Write the next attempt down.

        Args:
            submission: The driver that it belongs to.
            above: An attempt that is known otherwise.

        Returns:
            Its number.
        """
        attempt = 1 + max([above, *self.submissions()])
        self._filesystem.create_dir(self._folder, recursive=True)
        with self._filesystem.open_output_stream(self._path(attempt)) as writer:
            writer.write(json.dumps({"attempt": attempt, "submission": submission}).encode())
        return attempt

    def submissions(self) -> dict[int, int]:
        """The driver of each attempt; one whose file was cut short belongs to none (0)."""
        infos = self._filesystem.get_file_info(pafs.FileSelector(self._folder, allow_not_found=True))
        numbers = [info.base_name.removesuffix(".json") for info in infos if info.base_name.endswith(".json")]
        return {int(number): self._submission(int(number)) for number in numbers if number.isdecimal()}

    def choose(self, paths: Sequence[str], *, submission: int, round: int) -> str:
        """The checkpoint that a rolled-back run goes on from.

        Args:
            paths: Our folders inside the run's checkpoints, newest first.
            submission: The driver that was started to roll back.
            round: Where to.

        Returns:
            The newest that this driver (or a later one) has written, else the newest of that round.

        Raises:
            CheckpointError: there is none of either.
        """
        submissions = self.submissions()
        of_round: list[tuple[int, str]] = []
        for path in paths:
            manifest = self._manifest(path)
            if manifest is None:
                continue
            if submissions.get(manifest.attempt, 0) >= submission:
                return path
            if manifest.round == round:
                of_round.append((manifest.attempt, path))
        if not of_round:
            raise CheckpointError(
                f"the run has no complete checkpoint of round {round} to go back to ({len(paths)} are of "
                "other rounds); keep more of them with checkpoint.keep, or go back to a round that has one"
            )
        return max(of_round, key=lambda found: found[0])[1]

    def _manifest(self, path: str) -> Manifest | None:
        try:
            return verify_at(self._filesystem, path)
        except NewerVersionError:
            raise
        except CheckpointError:
            return None

    def _submission(self, attempt: int) -> int:
        with self._filesystem.open_input_stream(self._path(attempt)) as reader:
            raw: bytes = reader.read()
        try:
            written: dict[str, Any] = json.loads(raw)
            return int(written["submission"])
        except (ValueError, KeyError, TypeError):
            return 0

    def _path(self, attempt: int) -> str:
        return posixpath.join(self._folder, f"{attempt}.json")
