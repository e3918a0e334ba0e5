"""Every call of the store is bounded, and whatever fails in it is a `StoreError`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from tornado_compas_session.core.deadlines import Deadlines
from tornado_compas_session.core.trouble import Trouble
from tornado_compas_session.exceptions import (
    SessionError,
    StoreError,
    StoreUnavailable,
)

T = TypeVar("T")


def as_store_error(error: Exception) -> StoreError:
    """What is none of ours, by its kind alone: its text may quote session data."""
    ours = StoreError(f"the session store failed: {type(error).__name__}")
    ours.__cause__ = error
    return ours


class Guard:
    """
    Stands before the store: no call takes longer than `timeout` seconds, and no trouble
    can pass for an anonymous visitor.

    `trouble` is the store's own, where it has one: then it has told already what it
    raised itself. A future that a store returns it answers by the deadline itself.
    """

    def __init__(self, timeout: float, trouble: Trouble | None = None) -> None:
        self.timeout = timeout
        self._tells = trouble is None
        self.trouble = Trouble() if trouble is None else trouble
        self._deadlines = Deadlines(timeout)

    @property
    def deadline(self) -> float:
        """The loop's time by which a call that begins now is over."""
        return asyncio.get_running_loop().time() + self.timeout

    def __call__(self, work: Awaitable[T], kind: str = "writes") -> Awaitable[T]:
        """To be awaited instead of what the store returned; raises what is ours."""
        if type(work) is asyncio.Future and not self._tells:
            return work
        return self._guarded(work, kind)

    async def _guarded(self, work: Awaitable[T], kind: str) -> T:
        try:
            result = await self._deadlines.run(work)
        except StoreError as error:
            if self._tells:
                self.trouble.failed(kind, error)
            raise
        except SessionError:
            raise
        except TimeoutError as error:
            late = f"the session store did not answer within {self.timeout:g} seconds"
            raise self._met(kind, StoreUnavailable(late)) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # A driver's, whose other caller left. It would hang the connection on
            # Tornado 6.5, and is no reason to treat the visitor as anonymous.
            cancelled = "the call of the session store was cancelled"
            raise self._met(kind, StoreUnavailable(cancelled)) from None
        except Exception as error:
            raise self._met(kind, as_store_error(error)) from error
        if self._tells:
            self.trouble.worked(kind)
        return result

    def _met(self, kind: str, error: StoreError) -> StoreError:
        self.trouble.failed(kind, error)
        return error
