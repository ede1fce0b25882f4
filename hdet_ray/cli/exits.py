"""What the command line ends with."""

from __future__ import annotations

EXIT_FAILED = 1
"""A job or a training ended badly, or a ledger departs."""
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
"""Nobody answers at the service's address."""
EXIT_REFUSED = 4
"""The service answered no."""
EXIT_INTERRUPTED = 130
