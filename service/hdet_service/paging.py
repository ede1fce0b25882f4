"""Pages: how many items, where a page begins, and the cursor of the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import StringConstraints

from hdet_service.problems import Invalid
from hdet_service.reading import query_int
from hdet_service.schemas import Strict

T = TypeVar("T")

MAX_LIMIT = 1000
"""Of any service; a service's own cap (`HDET_MAX_PAGE`) is usually lower."""


class PageQuery(Strict):
    """Where a page begins, and how long it is."""

    limit: query_int(1, MAX_LIMIT) | None = None  # type: ignore[valid-type]
    """Items of a page; 50 unless given. A service may give fewer."""
    cursor: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    """`next` of the page before."""


def page_limit(request: Request, query: PageQuery) -> int:
    """Items of this page: what was asked for, at most the service's cap."""
    settings = request.app.state.controller.settings
    return int(min(query.limit or settings.default_page, settings.max_page))


def page_start(request: Request, query: PageQuery, scope: str, kind: type[T]) -> T | None:
    """The key of the last item before the page; None at the beginning.

    Raises:
        BadCursor: not of this list.
    """
    if query.cursor is None:
        return None
    last = request.app.state.cursors.read(scope, query.cursor)
    if not isinstance(last, kind):
        raise Invalid(
            "the cursor is of another list", errors=[{"field": "cursor", "message": "of another list"}]
        )
    return last


def page(
    request: Request,
    rows: Sequence[T],
    limit: int,
    scope: str,
    key: Callable[[T], str | int],
    view: Callable[[T], Any],
) -> dict[str, Any]:
    """A page of ``rows``, of which one more than ``limit`` were read where there are more."""
    shown = rows[:limit]
    has_more = len(rows) > limit
    following = request.app.state.cursors.write(scope, key(shown[-1])) if has_more and shown else None
    return {"items": [view(row) for row in shown], "next": following}
