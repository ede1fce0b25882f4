"""The one error of the tools' folder: what could not be fetched or checked, and what to do about it."""

from __future__ import annotations


class ToolsError(RuntimeError):
    """A tool or schema could not be had; the message says which, why, and the remedy."""
