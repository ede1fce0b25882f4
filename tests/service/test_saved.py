"""Checkpoints over HTTP: listed as they lie in storage, exported as plain weights, a place to go back to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch
from torch import nn

from hdet_ray.train.checkpoints import load, save
from hdet_service.pins import pin, unpin_others
from hdet_service.problems import Conflict
from hdet_service.store.models import Job
from tests.service.serving import OPERATOR, SUBMITTER, Served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("home"))
    yield served
    served.close()


def _saved(folder: Path, round: int, attempt: int = 1) -> nn.Module:
    """A checkpoint as a run of Ray's keeps it."""
    torch.manual_seed(round)
    model = nn.Linear(3, 2)
    save(
        folder / f"checkpoint_{attempt}_{round:03d}" / "hdet",
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        schedule={"round": round},
        ranks=[{"rng": {}}],
        round=round,
        step=round * 100,
        attempt=attempt,
    )
    return model


@pytest.fixture
def run(served: Served, tmp_path: Path) -> tuple[str, Path]:
    """A job with a schedule, and the folder of its run, which is still empty."""
    job_id: str = served.run(served.service.submit_open())

    def place(session: Any) -> None:
        job = session.get(Job, job_id)
        job.storage_path, job.round = str(tmp_path), 9

    served.run(served.service.controller.store.write(place))
    return job_id, tmp_path


def _ask(served: Served, method: str, path: str, caller: str = SUBMITTER, **how: Any) -> httpx.Response:
    answer: httpx.Response = served.run(served.service.call(caller, method, path, **how))
    return answer


def test_complete_checkpoints_are_listed_and_others_are_not(served: Served, run: tuple[str, Path]) -> None:
    job_id, folder = run
    for round in (4, 2):
        _saved(folder, round)
    _saved(folder, 3)
    (folder / "checkpoint_1_003" / "hdet" / "manifest.json").unlink()  # still being written
    (folder / "checkpoint_of_somebody_else").mkdir()
    (folder / "notes.txt").write_text("x")
    items = _ask(served, "GET", f"/v1/jobs/{job_id}/checkpoints").json()["items"]
    assert [(item["round"], item["step"], item["attempt"]) for item in items] == [(2, 200, 1), (4, 400, 1)]
    assert all(item["size_bytes"] > 0 and item["at_s"] > 0 for item in items)
    assert items[0]["path"] == str(folder / "checkpoint_1_002")


def test_the_exported_weights_load_in_plain_torch(served: Served, run: tuple[str, Path]) -> None:
    job_id, folder = run
    model = _saved(folder, 4)
    answer = _ask(served, "GET", f"/v1/jobs/{job_id}/checkpoints/4/export")
    assert answer.status_code == 200
    assert f"{job_id}-round-4.safetensors" in answer.headers["content-disposition"]
    weights = safetensors.torch.load(answer.content)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert not list((served.service.controller.settings.home / "exports").iterdir())


def test_of_two_checkpoints_of_a_round_the_newest_attempts_counts(
    served: Served, run: tuple[str, Path]
) -> None:
    job_id, folder = run
    _saved(folder, 4, attempt=1)
    torch.manual_seed(99)
    newer = nn.Linear(3, 2)
    save(
        folder / "checkpoint_2_004" / "hdet",
        model=newer,
        optimizer=torch.optim.SGD(newer.parameters(), lr=0.1),
        schedule={},
        ranks=[{}],
        round=4,
        step=400,
        attempt=2,
    )
    answer = _ask(served, "GET", f"/v1/jobs/{job_id}/checkpoints/4/export")
    assert torch.equal(safetensors.torch.load(answer.content)["weight"], newer.state_dict()["weight"])


def test_a_round_without_a_checkpoint_is_404_and_a_damaged_one_409(
    served: Served, run: tuple[str, Path]
) -> None:
    job_id, folder = run
    _saved(folder, 4)
    assert _ask(served, "GET", f"/v1/jobs/{job_id}/checkpoints/5/export").status_code == 404
    weights = next(folder.glob("checkpoint_1_004/hdet/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    answer = _ask(served, "GET", f"/v1/jobs/{job_id}/checkpoints/4/export")
    assert answer.status_code == 409
    assert "truncated" in answer.json()["detail"]


def test_one_goes_back_only_to_a_round_that_has_a_checkpoint(served: Served, run: tuple[str, Path]) -> None:
    job_id, folder = run
    path = f"/v1/jobs/{job_id}/schedule/rollback"
    _saved(folder, 4)
    refused = _ask(served, "POST", path, OPERATOR, json={"round": 5})
    assert refused.status_code == 409
    assert "rounds 4 have one" in refused.json()["detail"]
    taken = _ask(served, "POST", path, OPERATOR, json={"round": 4, "reason": "too fast"})
    assert taken.status_code == 202, taken.text
    events = _ask(served, "GET", f"/v1/jobs/{job_id}/events").json()["items"]
    audits = [event["data"] for event in events if event["type"] == "audit"]
    assert audits[-1]["action"] == "rollback"
    assert audits[-1]["reason"] == "too fast"


def test_the_checkpoint_of_a_rollback_stays_when_the_run_prunes_it(
    served: Served, run: tuple[str, Path]
) -> None:
    job_id, folder = run
    model = _saved(folder, 4)
    (folder / "checkpoint_1_004" / "users.bin").write_bytes(b"theirs")
    rollback = f"/v1/jobs/{job_id}/schedule/rollback"
    assert _ask(served, "POST", rollback, OPERATOR, json={"round": 4}).status_code == 202
    shutil.rmtree(folder / "checkpoint_1_004")
    pinned = folder / "hdet-pinned" / "round-4-attempt-1"
    assert load(pinned / "hdet").manifest.round == 4
    weights = safetensors.torch.load_file(pinned / "hdet" / "model.safetensors")
    assert torch.equal(weights["weight"], model.state_dict()["weight"])
    assert (pinned / "users.bin").read_bytes() == b"theirs"


def test_a_rollback_that_is_refused_keeps_nothing(served: Served, run: tuple[str, Path]) -> None:
    job_id, folder = run
    for round in (4, 12):
        _saved(folder, round)
    rollback = f"/v1/jobs/{job_id}/schedule/rollback"
    assert _ask(served, "POST", rollback, OPERATOR, json={"round": 12}).status_code == 409
    assert not list(folder.glob("hdet-pinned/*"))
    assert _ask(served, "POST", rollback, OPERATOR, json={"round": 4}).status_code == 202
    assert _ask(served, "POST", rollback, OPERATOR, json={"round": 4}).status_code == 409, "it is stopping"
    assert [path.name for path in folder.glob("hdet-pinned/*")] == ["round-4-attempt-1"]


def test_a_checkpoint_that_goes_while_it_is_kept_refuses_the_rollback(tmp_path: Path) -> None:
    _saved(tmp_path, 4)
    (tmp_path / "checkpoint_1_004" / "hdet" / "optimizer.pt").unlink()
    with pytest.raises(Conflict, match="deleting its checkpoint checkpoint_1_004 just now"):
        pin(str(tmp_path), "checkpoint_1_004", "round-4-attempt-1")
    with pytest.raises(Conflict, match="has deleted its checkpoint checkpoint_1_005 just now"):
        pin(str(tmp_path), "checkpoint_1_005", "round-5-attempt-1")
    assert not list(tmp_path.glob("hdet-pinned/*"))


def test_a_pin_takes_no_room_in_a_folder_and_the_next_one_ends_it(tmp_path: Path) -> None:
    for round in (4, 5):
        _saved(tmp_path, round)
        assert pin(str(tmp_path), f"checkpoint_1_{round:03d}", f"r{round}")
        assert not pin(str(tmp_path), f"checkpoint_1_{round:03d}", f"r{round}")
    assert (tmp_path / "hdet-pinned" / "r4" / "hdet" / "model.safetensors").stat().st_nlink == 2
    unpin_others(str(tmp_path), "r5")
    assert [path.name for path in tmp_path.glob("hdet-pinned/*")] == ["r5"]


def test_storage_that_is_gone_has_no_checkpoints(served: Served, run: tuple[str, Path]) -> None:
    job_id, folder = run
    _saved(folder, 4)
    shutil.rmtree(folder)
    assert _ask(served, "GET", f"/v1/jobs/{job_id}/checkpoints").json() == {"items": [], "next": None}
