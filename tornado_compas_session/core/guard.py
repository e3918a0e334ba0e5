"""Every call of the store is bounded, and whatever fails in it is a `StoreError`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from tornado_compas_session.core.deadlines import Deadlines
from tornado_compas_session.exceptions import (
    SessionError,
    StoreError,
    StoreUnavailable,
)

T = TypeVar("T")


class Guard:
    """Stands before the store, so that no trouble can pass for an anonymous visitor."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._deadlines = Deadlines(timeout)

    @property
    def deadline(self) -> float:
        """The loop's time by which a call that begins now is over."""
        return asyncio.get_running_loop().time() + self.timeout

    async def __call__(self, work: Awaitable[T]) -> T:
        """Awaits the store within the time limit; raises nothing but ours."""
        try:
            return await self._deadlines.run(work)
        except SessionError:
            raise
        except TimeoutError as error:
            raise StoreUnavailable(
                f"the session store did not answer within {self.timeout:g} seconds"
            ) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # A driver's, whose other caller left. It would hang the connection on
            # Tornado 6.5, and is no reason to treat the visitor as anonymous.
            raise StoreUnavailable(
                "the call of the session store was cancelled"
            ) from None
        except Exception as error:
            raise StoreError(
                f"the session store failed: {type(error).__name__}"
            ) from error
