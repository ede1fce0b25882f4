"""Preemption: a node says that it will go, and from then on every boundary is saved.

Ray tells every worker which nodes are about to be taken. `ray.train.get_preemption_info` would be a barrier
at each call; what it would broadcast is rank 0's own note, and rank 0 speaks at every boundary anyway. So
rank 0 looks at its note there, and all ranks save at that boundary and at each one after it, whatever
`checkpoint_every_rounds` says: the node may go at once or at its deadline, and then a round is lost and no
more. Nothing is saved in the middle of a round (docs/decisions/0012).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ray.train.v2._internal.execution.context import get_train_context

logger = logging.getLogger(__name__)


def local_preemption_info() -> Any:
    """What this worker was told of nodes that are being taken away, or None."""
    return get_train_context().preemption_context.preemption_info


class PreemptionNotice:
    """Asks for checkpoints while a notice stands.

    Args:
        look: Gives the newest notice, or None.
    """

    def __init__(self, look: Callable[[], Any] = local_preemption_info) -> None:
        self._look = look
        self._told: Any = None

    def directive(self) -> str | None:
        """``checkpoint`` at every boundary after a notice: Ray ends the group when the node has gone."""
        info = self._look()
        if info is None:
            return None
        if info != self._told:
            self._told = info
            logger.warning(
                "preempted: ranks=%s nodes=%s deadline_ms=%s: saving at each boundary",
                info.preempted_ranks,
                info.preempted_node_ids,
                info.deadline_ms,
            )
        return "checkpoint"
