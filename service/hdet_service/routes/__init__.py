"""The calls of the API, one module a subject."""

from __future__ import annotations

from fastapi import APIRouter

from hdet_service.routes import admin, checkpoints, health, jobs, packages, schedule, streams

ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    jobs.router,
    streams.router,
    checkpoints.router,
    schedule.router,
    packages.router,
    admin.router,
)
"""In the order in which the description lists them."""
