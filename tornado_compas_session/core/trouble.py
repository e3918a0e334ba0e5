"""
The one place that knows whether the store is in trouble, and says so: once when it
begins, once when it changes, once when it is over. Never a line for each request.
"""

from __future__ import annotations

import asyncio
import logging
import re
from types import TracebackType

from tornado_compas_session.core.events import Events
from tornado_compas_session.exceptions import LockTimeout, StoreError

logger = logging.getLogger("tornado_compas_session")

#: Without an error for so many seconds, and with something that worked, it is over.
_QUIET = 1.0
_NUMBERS = re.compile(r"[\d.]+")


class Trouble:
    """Hears of every failure and every success, by kind: reads, writes, locks."""

    def __init__(self) -> None:
        #: What ails the store now, of each kind; empty while all is well.
        self._now: dict[str, StoreError] = {}
        self._last: dict[str, float] = {}
        #: What was said since it began: two errors may take turns.
        self._said: set[tuple[str, str]] = set()
        self._began = 0.0
        self._requests = 0
        self._timer: asyncio.TimerHandle | None = None
        self._worked: set[str] = set()
        #: Hears of the beginning and the end, if somebody wants to know.
        self.tell: Events | None = None

    @property
    def now(self) -> StoreError | None:
        """What ails the store, until it works again."""
        return next(iter(self._now.values()), None)

    def failed(self, kind: str, error: StoreError, requests: int = 1) -> None:
        """So many requests met this error."""
        loop = asyncio.get_running_loop()
        if isinstance(error, LockTimeout):
            kind = "locks"
        if not self._now:
            self._began, self._requests = loop.time(), 0
            self._said.clear()
        self._requests += requests
        self._last[kind] = loop.time()
        self._worked.discard(kind)
        self._now[kind] = error
        what = kind, _reason(error)
        if what not in self._said:
            self._said.add(what)
            logger.error("the session store is in trouble: %s fail: %s", kind, error)
            if self.tell is not None:
                name, message = type(error).__name__, str(error)
                self.tell("store.trouble", kind=kind, error=name, message=message)

    def worked(self, kind: str) -> None:
        """Something of this kind has worked; cheap while all is well."""
        if self._now:
            kinds = {kind, "locks"} if kind == "writes" else {kind}
            self._worked |= kinds & self._now.keys()
            if self._worked and self._timer is None:
                self._watch(_QUIET)

    def watch(self, kind: str) -> Watch:
        """What is done in its `with` block is of this kind, and is watched."""
        return Watch(self, kind)

    def _watch(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for kind in list(self._worked):
            quiet = now - self._last[kind]
            if quiet < _QUIET:
                self._watch(_QUIET - quiet)
                return
            self._worked.discard(kind)
            del self._now[kind]
        if not self._now:
            # The quiet second is not part of it.
            lasted = max(self._last.values()) - self._began
            logger.warning(
                "the session store works again, after %.1f seconds; %d requests were "
                "refused",
                lasted,
                self._requests,
            )
            if self.tell is not None:
                self.tell("store.works", seconds=lasted, requests=self._requests)


class Watch:
    """A context manager that can be entered by many at once: it keeps nothing."""

    __slots__ = ("_kind", "_trouble")

    def __init__(self, trouble: Trouble, kind: str) -> None:
        self._trouble, self._kind = trouble, kind

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._trouble.worked(self._kind)
        elif isinstance(error, StoreError):
            self._trouble.failed(self._kind, error)


def _reason(error: StoreError) -> str:
    return type(error).__name__ + _NUMBERS.sub("", str(error))
