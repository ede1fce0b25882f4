"""A user's project on its way to the service: packed with its wheel, uploaded over plain HTTP."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tests.service.live import Live

PROJECT = Path(__file__).parent / "users_project"
WHEEL = "wavelength-1.0-py3-none-any.whl"


def upload_project(service: Live, folder: Path) -> dict[str, Any]:
    """The ``runtime_env`` of a job that runs the project."""
    wheel, package = folder / WHEEL, folder / "project.zip"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("wavelength.py", "WAVELENGTH = 1.5\n")
        about = "Metadata-Version: 2.1\nName: wavelength\nVersion: 1.0\n"
        archive.writestr("wavelength-1.0.dist-info/METADATA", about)
    with zipfile.ZipFile(package, "w") as archive:
        archive.write(wheel, WHEEL)
        for file in ("mine.py", "train.py"):
            archive.write(PROJECT / file, file)
    return {"working_dir": service.upload(package), "pip": [f"./{WHEEL}"]}


def rates_of(folder: Path, rank: int) -> list[dict[str, Any]]:
    """What a rank's optimizer stepped with, in order; a line that a kill cut short is left out."""
    text = (folder / f"rank-{rank}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def history(service: Live, job_id: str) -> list[dict[str, Any]]:
    """The newest chain of a job's rounds."""
    items: list[dict[str, Any]] = []
    following: int | None = 0
    while following is not None:
        page = service.ask(
            "GET", f"/v1/jobs/{job_id}/schedule/history", params={"from_round": following, "limit": 200}
        ).json()
        items += page["items"]
        following = page["next"]
    return items


def export(service: Live, job_id: str, file: Path) -> dict[str, torch.Tensor]:
    """The newest checkpoint's weights, through the API and a file."""
    saved = service.ask("GET", f"/v1/jobs/{job_id}/checkpoints").json()["items"]
    newest = max(item["round"] for item in saved)
    answer = service.ask("GET", f"/v1/jobs/{job_id}/checkpoints/{newest}/export")
    assert answer.status_code == 200, answer.text
    file.write_bytes(answer.content)
    return safetensors.torch.load_file(file)
