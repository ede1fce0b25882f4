"""Metrics that no panel and no rule reads, each with the reason. A test lets no other metric be left out."""

from __future__ import annotations

UNWATCHED: dict[str, str] = {}
"""Reason by name: ``{"hdet_example": "read by people while they debug, and by nobody else"}``."""
