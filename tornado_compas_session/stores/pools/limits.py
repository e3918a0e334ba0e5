"""Time limits: how they are counted, and how they are said to the server."""

from __future__ import annotations

import asyncio

#: How long after its limit a cancellation may take; then the connection is cut.
GRACE = 0.5


def left(until: float) -> float:
    """The seconds until this time of the loop."""
    return until - asyncio.get_running_loop().time()


def begin(lock_timeout: float | None) -> str:
    """The script that begins a transaction, in one trip."""
    return "BEGIN" if lock_timeout is None else f"BEGIN; {lock_limit(lock_timeout)}"


def lock_limit(seconds: float) -> str:
    """The script that bounds, in a transaction, each wait for a row."""
    # Zero would mean no limit.
    return f"SET LOCAL lock_timeout = '{max(1, int(seconds * 1000))}ms'"
