"""Ray's index of checkpoints: half of one never ends a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")

from ray.train import RunConfig

from hdet_ray.exceptions import CheckpointError
from hdet_ray.train.index_copy import INDEX_FILE, IndexCopy, restore_index

WHOLE = json.dumps({"checkpoint_results": ["checkpoint_a"]})


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder / INDEX_FILE


def config_of(index: Path) -> RunConfig:
    return RunConfig(name=index.parent.name, storage_path=str(index.parent.parent))


def report(index: Path) -> None:
    """Ray has written its index, and says so."""
    copy = IndexCopy()
    copy.after_controller_start(SimpleNamespace(run_config=config_of(index)))
    copy.after_report(SimpleNamespace(checkpoint="one"), [])


@pytest.mark.parametrize("left", ["", WHOLE[:-4]])
def test_an_index_that_was_cut_short_is_that_of_the_checkpoint_before(index: Path, left: str) -> None:
    index.write_text(WHOLE)
    report(index)
    index.write_text(left)
    restore_index(config_of(index))
    assert index.read_text() == WHOLE


def test_a_whole_index_stays_as_it_is(index: Path) -> None:
    index.write_text(json.dumps({"checkpoint_results": []}))
    report(index)
    index.write_text(WHOLE)
    restore_index(config_of(index))
    assert index.read_text() == WHOLE


def test_half_an_index_is_never_copied(index: Path) -> None:
    index.write_text(WHOLE)
    report(index)
    index.write_text(WHOLE[:-4])
    report(index)
    restore_index(config_of(index))
    assert index.read_text() == WHOLE


def test_a_run_without_an_index_begins(index: Path) -> None:
    restore_index(config_of(index))
    assert not index.exists()


def test_an_index_that_nothing_can_replace_is_named(index: Path) -> None:
    index.write_text("{")
    with pytest.raises(CheckpointError, match=INDEX_FILE):
        restore_index(config_of(index))
