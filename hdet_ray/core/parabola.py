"""The lowest point of the parabola through three points."""

from __future__ import annotations

XY = tuple[float, float]


def vertex(left: XY, middle: XY, right: XY) -> float:
    """The x of the vertex of the parabola through three points of rising x, ``middle`` the lowest.

    Where the three lie on a line there is no vertex: the x of ``middle``.
    """
    (xa, ya), (xb, yb), (xc, yc) = left, middle, right
    to_left = (xb - xa) * (yb - yc)
    to_right = (xb - xc) * (yb - ya)
    if to_left == to_right:
        return xb
    return xb - ((xb - xa) * to_left - (xb - xc) * to_right) / (2 * (to_left - to_right))
