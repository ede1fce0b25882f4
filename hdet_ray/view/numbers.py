"""How numbers look to people: the same in the live table, the verdict and the charts."""

from __future__ import annotations

import math


def rate_text(rate: float | None) -> str:
    """A rate in three significant digits: ``3.16e-04``, and from 0.01 up plain."""
    if rate is None or not math.isfinite(rate):
        return "–"
    return f"{rate:#.3g}" if 0.01 <= abs(rate) < 1000 else f"{rate:.2e}"


def loss_text(loss: float | None) -> str:
    """A loss in four significant digits; what is not finite says so."""
    if loss is None:
        return "–"
    if not math.isfinite(loss):
        return "not finite"
    return f"{loss:.4g}" if abs(loss) >= 1e4 else f"{loss:.4f}"[: max(6, len(f"{loss:.0f}"))]


def duration_text(seconds: float | None) -> str:
    """``48 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
