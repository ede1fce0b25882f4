"""Storage of checkpoints: the newest complete one is found, on any file system, and nothing else is."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch
from torch import nn

from hdet_ray.exceptions import CheckpointError, ConfigError
from hdet_ray.train.checkpoints import load, save
from hdet_ray.train.manifest import NewerVersionError
from hdet_ray.train.storage import CheckpointStore, download, newest_complete, resolve, upload, verify_at

MakeStore = Callable[..., CheckpointStore]


@pytest.fixture(params=["local", "subtree", "mock"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    root = tmp_path / "storage"
    root.mkdir()
    filesystem = {
        "local": lambda: None,
        "subtree": lambda: pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem()),
        "mock": pafs._MockFileSystem,
    }[request.param]()
    place = root / "run" if request.param == "local" else "run"

    def make(keep: int = 3) -> CheckpointStore:
        return CheckpointStore(place, filesystem, keep=keep)

    return make


def checkpoint(folder: Path, value: float) -> Path:
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, value)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    save(folder, model=model, optimizer=optimizer, schedule={}, ranks=[], round=0, step=0)
    return folder


def weight_at(store: CheckpointStore, path: str, scratch: Path) -> float:
    download(store.filesystem, path, scratch)
    return float(load(scratch).weights["weight"][0, 0])


def overwrite(store: CheckpointStore, path: str, name: str, content: bytes) -> None:
    with store.filesystem.open_output_stream(posixpath.join(path, name)) as stream:
        stream.write(content)


def test_an_empty_place_has_no_newest_checkpoint(make_store: MakeStore) -> None:
    assert make_store().newest() is None


def test_the_newest_checkpoint_comes_back_whole(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    store.save(checkpoint(tmp_path / "a", 1.0), round=9)
    store.save(checkpoint(tmp_path / "b", 2.0), round=10)
    newest = store.newest()
    assert newest == store.path_of(10)
    assert weight_at(store, newest, tmp_path / "back") == 2.0


def test_only_the_newest_are_kept(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(keep=2)
    for round in range(5):
        store.save(checkpoint(tmp_path / "c", float(round)), round)
    assert store.rounds() == [3, 4]


def test_an_unfinished_upload_never_crowds_out_a_complete_checkpoint(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store(keep=1)
    store.save(checkpoint(tmp_path / "c", 1.0), round=1)
    path = store.save(checkpoint(tmp_path / "c", 2.0), round=2)
    store.filesystem.delete_file(posixpath.join(path, "manifest.json"))
    store.prune()
    assert store.rounds() == [2]  # round 1 was pruned while round 2 was complete
    store.save(checkpoint(tmp_path / "c", 3.0), round=1)
    store.prune()
    assert store.newest() == store.path_of(1)


@pytest.mark.parametrize("damage", ["truncated", "mixed", "no manifest", "no file"])
def test_a_damaged_newest_is_passed_over_with_a_warning(
    make_store: MakeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    store = make_store()
    store.save(checkpoint(tmp_path / "a", 1.0), round=1)
    path = store.save(checkpoint(tmp_path / "b", 2.0), round=2)
    content = (tmp_path / "b" / "model.safetensors").read_bytes()
    if damage == "truncated":
        overwrite(store, path, "model.safetensors", content[:-3])
    elif damage == "mixed":  # same size, another writer's
        overwrite(store, path, "model.safetensors", (tmp_path / "a" / "model.safetensors").read_bytes())
    else:
        name = "manifest.json" if damage == "no manifest" else "ranks.pt"
        store.filesystem.delete_file(posixpath.join(path, name))

    with caplog.at_level(logging.WARNING):
        newest = store.newest()

    assert newest == store.path_of(1)
    assert path in caplog.text


def test_a_newest_of_a_newer_version_is_not_passed_over(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    store.save(checkpoint(tmp_path / "a", 1.0), round=1)
    path = store.save(checkpoint(tmp_path / "b", 2.0), round=2)
    overwrite(store, path, "manifest.json", b'{"version": 99}')
    with pytest.raises(NewerVersionError, match="upgrade"):
        store.newest()


def test_an_upload_that_dies_over_an_older_one_leaves_it_unfinished(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store()
    path = store.save(checkpoint(tmp_path / "a", 1.0), round=1)
    blocked = posixpath.join(path, "optimizer.pt")
    store.filesystem.delete_file(blocked)
    store.filesystem.create_dir(blocked)  # the second file can't be written
    with pytest.raises(OSError, match=r"optimizer\.pt"):
        upload(checkpoint(tmp_path / "b", 2.0), store.filesystem, path)
    with pytest.raises(CheckpointError, match="never finished"):
        verify_at(store.filesystem, path)


def test_an_unfinished_folder_is_not_uploaded(make_store: MakeStore, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", 1.0)
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="finished"):
        make_store().save(folder, round=1)


def test_an_incomplete_checkpoint_is_not_downloaded(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    path = store.save(checkpoint(tmp_path / "a", 1.0), round=1)
    overwrite(store, path, "ranks.pt", b"")
    with pytest.raises(CheckpointError, match=r"ranks\.pt"):
        download(store.filesystem, path, tmp_path / "back")


def test_foreign_folders_beside_the_checkpoints_are_left_alone(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(keep=1)
    store.filesystem.create_dir(posixpath.join(store.path, "round-7"), recursive=True)
    for round in (1, 2):
        store.save(checkpoint(tmp_path / "a", 1.0), round)
    assert store.rounds() == [2]
    assert (
        store.filesystem.get_file_info(posixpath.join(store.path, "round-7")).type == pafs.FileType.Directory
    )


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
        CheckpointStore("nowhere://bucket")


def test_keeping_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep=0"):
        CheckpointStore(tmp_path, keep=0)
