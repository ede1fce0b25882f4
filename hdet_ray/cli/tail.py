"""Reading a ledger while it is being written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hdet_ray.core.codec import from_json
from hdet_ray.core.replay import LedgerItem
from hdet_ray.core.state import ScheduleState, state_from_json
from hdet_ray.exceptions import HDETError, LedgerError

_ITEM_FIELDS = ("attempt", "round", "report", "plan", "report_digest")


class LedgerTail:
    """The initial state and the rounds of a ledger file, as they come.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._num_lines = 0

    def poll(self) -> list[ScheduleState | LedgerItem]:
        """What was appended since the last call: at the file's start the initial state, then rounds.

        A last line without its line break is still being written and waits for the next call.

        Raises:
            LedgerError: a whole line can't be read; names its number.
        """
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [self._parsed(line) for line in whole.splitlines()]

    def _parsed(self, line: bytes) -> ScheduleState | LedgerItem:
        self._num_lines += 1
        try:
            data: dict[str, Any] = json.loads(line)
            if self._num_lines == 1:
                return state_from_json(data)
            item: LedgerItem = from_json(
                LedgerItem, {name: data[name] for name in _ITEM_FIELDS if name in data}
            )
        except (ValueError, HDETError) as error:
            raise LedgerError(f"line {self._num_lines} of {self.path}: {error}") from error
        return item
