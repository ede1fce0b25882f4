"""What the service promises, once from the first command to the last, on a real Ray and over real HTTP."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hdet_ray.core.codec import from_json
from hdet_ray.core.plan import RATE, Plan, value_at
from tests.service.live import Live, live_service, wait_for
from tests.service.users import export, history, rates_of, upload_project

WEIGHTS = {"0.weight", "0.bias", "2.weight", "2.bias"}
"""Names in the user's network."""

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def service() -> Iterator[Live]:
    with live_service(retry_delay_s="0.5") as running:
        yield running


def require_planned_rates(
    trace: Path, items: list[dict[str, Any]], num_replicas: int, total_steps: int
) -> None:
    """Each rank stepped with the rate that the ledger's plans give it."""
    plans = {item["plan"]["round"]: from_json(Plan, item["plan"]) for item in items}
    for rank in range(num_replicas):
        checked = 0
        for used in rates_of(trace, rank):
            plan = plans.get(used["round"])
            if plan is None:  # the first round's plan stands in no line
                continue
            planned = value_at(plan, RATE, 0, rank, used["step"])
            assert math.isclose(used["lr"], planned, rel_tol=1e-9), (rank, used, planned)
            checked += 1
        assert checked > total_steps // 2


def test_an_override_reaches_every_optimizer_and_the_run_can_be_proven(tmp_path: Path) -> None:
    with live_service() as service:
        total_steps = 900
        config = {"total_steps": total_steps, "pace_s": 0.03, "trace": str(tmp_path)}
        environment = upload_project(service, tmp_path)
        job_id = service.submit(
            entrypoint="mine:train", config=config, runtime_env=environment, replicas={"min": 2, "max": 2}
        )
        rounds = set()

        def trains() -> dict[str, Any] | None:
            schedule = service.ask("GET", f"/v1/jobs/{job_id}/schedule").json()
            rounds.add(schedule["round"])
            return schedule if schedule["phase"] == "train" and len(rounds) > 2 else None

        wait_for(trains, 300, lambda: service.describe(job_id))
        found = service.ask("GET", f"/v1/jobs/{job_id}/schedule")
        asked = {"hparam": "lr", "op": "scale", "value": 0.5, "reason": "a test"}
        path = f"/v1/jobs/{job_id}/schedule/overrides"
        condition = {"If-Match": found.headers["ETag"]}
        preview = service.ask("POST", f"{path}?dry_run=true", json=asked, headers=condition)
        assert preview.status_code == 200, preview.text
        answer = service.ask("POST", path, json=asked, headers=condition)
        assert answer.status_code == 202, answer.text
        override_id = answer.json()["id"]

        def applied() -> dict[str, Any] | None:
            override = service.ask("GET", f"{path}/{override_id}").json()
            return override if override["state"] == "applied" else None

        override = wait_for(applied, 120, lambda: service.describe(job_id))
        scrape = service.ask("GET", "/metrics").text
        assert f'hdet_base_hparam{{group="0",hparam="lr",run="{job_id}"}}' in scrape
        assert "hdet_override_active" in scrape
        assert service.wait_end(job_id)["state"] == "SUCCEEDED", service.describe(job_id)

        items = history(service, job_id)
        require_planned_rates(tmp_path, items, 2, total_steps)
        plans = {item["plan"]["round"]: from_json(Plan, item["plan"]) for item in items}
        before, after = plans[override["applied_round"] - 1], plans[override["applied_round"]]
        assert math.isclose(after.scale[RATE, 0], 0.5 * before.scale[RATE, 0], rel_tol=1e-12)
        assert override["applied_round"] in {used["round"] for used in rates_of(tmp_path, 0)}
        replayed = service.hdet("replay", job_id)
        assert replayed.returncode == 0, replayed.stderr
        assert set(export(service, job_id, tmp_path / "exported.safetensors")) == set(WEIGHTS)
        service.down()
        assert service.processes() == []


def worker_of_rank(service: Live, rank: int) -> Any:
    """A Train worker's process, told by the trace that it writes."""
    for process in service.processes():
        if any(file.path.endswith(f"rank-{rank}.jsonl") for file in process.open_files()):
            return process
    return None


@pytest.mark.parametrize("entrypoint", ["mine:train", "python train.py"])
def test_a_users_own_project_outlives_a_killed_worker_and_loads_in_plain_torch(
    service: Live, tmp_path: Path, entrypoint: str
) -> None:
    total_steps = 600
    config = {"total_steps": total_steps, "pace_s": 0.03, "trace": str(tmp_path)}
    spec: dict[str, Any] = {"entrypoint": entrypoint, "config": config}
    if entrypoint.startswith("python"):
        spec = {"entrypoint": f"{entrypoint} '{json.dumps(config)}'", "config": {}}
    job_id = service.submit(
        **spec, runtime_env=upload_project(service, tmp_path), replicas={"min": 2, "max": 2}
    )
    service.wait(job_id, lambda job: job["progress"]["step"] > 150)
    wait_for(lambda: worker_of_rank(service, 1), 30).kill()
    job = service.wait_end(job_id)
    assert (job["state"], job["progress"]["step"]) == ("SUCCEEDED", total_steps), service.describe(job_id)
    assert (job["attempt"], job["submission"]) == (2, 1)
    require_planned_rates(tmp_path, history(service, job_id), 2, total_steps)
    loaded = tmp_path / "load.py"
    weights = export(service, job_id, tmp_path / "exported.safetensors")
    loaded.write_text(
        "import sys, torch, safetensors.torch\nfrom torch import nn\n"
        "net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))\n"
        "net.load_state_dict(safetensors.torch.load_file(sys.argv[1]))\n"
        "assert not any('hdet' in name for name in sys.modules)\nprint(net(torch.zeros(1, 8)).item())\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(loaded), str(tmp_path / "exported.safetensors")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
