"""Storage of checkpoints: the newest complete one is found, on any file system, and nothing else is."""

from __future__ import annotations

import logging
import posixpath
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch
from torch import nn

from hdet_ray.exceptions import CheckpointError, ConfigError
from hdet_ray.train.checkpoints import load, save
from hdet_ray.train.manifest import NewerVersionError
from hdet_ray.train.storage import newest_complete, resolve, upload, verify_at


class Place:
    """Checkpoints on one of the file systems, by round.

    Args:
        filesystem: Where they lie.
        path: The folder above them.
        scratch: For what is uploaded.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str, scratch: Path) -> None:
        self.filesystem, self.path, self.scratch = filesystem, path, scratch

    def put(self, round: int) -> str:
        """Upload a checkpoint whose weights are its round's number."""
        path = posixpath.join(self.path, f"round-{round}")
        upload(checkpoint(self.scratch / str(round), float(round)), self.filesystem, path)
        return path

    def newest(self, *paths: str) -> str | None:
        return newest_complete(self.filesystem, paths)

    def overwrite(self, path: str, name: str, content: bytes) -> None:
        with self.filesystem.open_output_stream(posixpath.join(path, name)) as stream:
            stream.write(content)


@pytest.fixture(params=["local", "subtree", "mock"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    root = tmp_path / "storage"
    root.mkdir()
    if request.param == "local":
        return Place(pafs.LocalFileSystem(), str(root / "run"), tmp_path / "scratch")
    filesystem = (
        pafs._MockFileSystem()
        if request.param == "mock"
        else pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem())
    )
    return Place(filesystem, "run", tmp_path / "scratch")


def checkpoint(folder: Path, value: float) -> Path:
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, value)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    save(folder, model=model, optimizer=optimizer, schedule={}, ranks=[], round=0, step=0)
    return folder


def test_where_there_is_nothing_there_is_no_newest_checkpoint(place: Place) -> None:
    assert place.newest() is None
    assert place.newest(posixpath.join(place.path, "round-1")) is None


def test_an_uploaded_checkpoint_comes_back_whole(place: Place, tmp_path: Path) -> None:
    place.put(9)
    path = place.put(10)
    back = tmp_path / "back"
    back.mkdir()
    pafs.copy_files(path, str(back), source_filesystem=place.filesystem)
    assert float(load(back).weights["weight"][0, 0]) == 10.0


@pytest.mark.parametrize("damage", ["truncated", "mixed", "no manifest", "no file"])
def test_a_damaged_newest_is_passed_over_with_a_warning(
    place: Place, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    before, path = place.put(1), place.put(2)
    weights = {round: (place.scratch / str(round) / "model.safetensors").read_bytes() for round in (1, 2)}
    if damage == "truncated":
        place.overwrite(path, "model.safetensors", weights[2][:-3])
    elif damage == "mixed":  # same size, another writer's
        place.overwrite(path, "model.safetensors", weights[1])
    else:
        name = "manifest.json" if damage == "no manifest" else "ranks.pt"
        place.filesystem.delete_file(posixpath.join(path, name))

    with caplog.at_level(logging.WARNING):
        assert place.newest(path, before) == before
    assert path in caplog.text


def test_a_newest_of_a_newer_version_is_not_passed_over(place: Place) -> None:
    before, path = place.put(1), place.put(2)
    place.overwrite(path, "manifest.json", b'{"version": 99}')
    with pytest.raises(NewerVersionError, match="upgrade"):
        place.newest(path, before)


def test_an_upload_that_dies_over_an_older_one_leaves_it_unfinished(place: Place, tmp_path: Path) -> None:
    path = place.put(1)
    blocked = posixpath.join(path, "optimizer.pt")
    place.filesystem.delete_file(blocked)
    place.filesystem.create_dir(blocked)  # the second file can't be written
    with pytest.raises(OSError, match=r"optimizer\.pt"):
        upload(checkpoint(tmp_path / "b", 2.0), place.filesystem, path)
    with pytest.raises(CheckpointError, match="never finished"):
        verify_at(place.filesystem, path)


def test_an_unfinished_folder_is_not_uploaded(place: Place, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", 1.0)
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="finished"):
        upload(folder, place.filesystem, posixpath.join(place.path, "round-1"))


def test_candidates_are_tried_in_the_order_given(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path / "a", 1.0), checkpoint(tmp_path / "b", 2.0)
    filesystem = pafs.LocalFileSystem()
    assert newest_complete(filesystem, [str(second), str(first)]) == str(second)
    (second / "manifest.json").unlink()
    assert newest_complete(filesystem, [str(second), str(first)]) == str(first)


def test_a_relative_path_means_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("runs/x")[1] == str(tmp_path / "runs" / "x")


def test_a_place_that_pyarrow_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match="nowhere://bucket"):
        resolve("nowhere://bucket")
