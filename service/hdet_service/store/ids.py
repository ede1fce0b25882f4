"""Ids of jobs and overrides: ULIDs that only grow, also where the clock steps back."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hdet_service.store.models import Job, OverrideRow

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_LENGTH = 26
_RANDOM_BITS = 80


class Ids:
    """Hands out ids; safe to use from several threads.

    Args:
        clock: Seconds since the epoch, UTC.
        newest: The greatest id that there is; all that follow are above it.
    """

    def __init__(self, clock: Callable[[], float], newest: str = "") -> None:
        self._clock = clock
        self._last = _decoded(newest)
        self._turn = threading.Lock()

    def next(self) -> str:
        """The time in milliseconds and 80 random bits; the last one plus 1 where that would not grow."""
        with self._turn:
            now = (int(self._clock() * 1000) << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
            self._last = max(now, self._last + 1)
            return _encoded(self._last)

    @staticmethod
    def newest_of(session: Session) -> str:
        """The greatest id in the tables; empty where there is none."""
        newest = (session.scalar(select(func.max(column))) for column in (Job.id, OverrideRow.id))
        return max((id for id in newest if id), default="")


def _encoded(number: int) -> str:
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_LENGTH)))


def _decoded(text: str) -> int:
    """The number of an id; 0 for a text that is none."""
    if len(text) != _LENGTH or any(letter not in _ALPHABET for letter in text):
        return 0
    number = 0
    for letter in text:
        number = number << 5 | _ALPHABET.index(letter)
    return number
