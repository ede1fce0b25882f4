"""Examples for the API's description, each one held to its model by a test."""

from __future__ import annotations

from typing import Any

from hdet_service.job_view import links

JOB_ID = "01JQ7Z3X4M9V6K2T8B5N1C0D7E"

SPEC: dict[str, Any] = {
    "name": "tiny-bytes",
    "entrypoint": "byte_lm",
    "config": {"preset": "tiny"},
    "replicas": {"min": 4, "max": 4},
    "hdet": {"controller": "auto"},
    "labels": {"team": "research"},
}

JOB: dict[str, Any] = {
    "id": JOB_ID,
    "name": "tiny-bytes",
    "owner": "ci",
    "state": "RUNNING",
    "reason": "Running",
    "message": "",
    "attempt": 1,
    "submission": 1,
    "failures": 0,
    "priority": 0,
    "labels": {"team": "research"},
    "progress": {"step": 400, "total_steps": 1500, "steps_per_s": 20.0, "eta_s": 55.0},
    "replicas": {"wanted": 4, "present": 4},
    "links": links(JOB_ID),
    "created_at": "2026-11-24T12:00:00.000Z",
    "updated_at": "2026-11-24T12:00:31.250Z",
    "started_at": "2026-11-24T12:00:02.500Z",
    "finished_at": None,
}

OVERRIDE: dict[str, Any] = {
    "hparam": "lr",
    "op": "scale",
    "value": 0.5,
    "reason": "the loss rises",
}

CHECKPOINT: dict[str, Any] = {
    "round": 12,
    "step": 1200,
    "attempt": 1,
    "path": "/data/runs/01JQ7Z3X4M9V6K2T8B5N1C0D7E/checkpoint_2026-11-24_12-00-31.250000",
    "at_s": 1795521631.25,
    "size_bytes": 1310720,
}
