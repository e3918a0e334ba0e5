"""
`HeldConnection`: keeps what a handler writes until the commit is known.

It stands in front of Tornado's connection with the three methods of
`httputil.HTTPConnection`. Everything arrives in order, is kept in order, and leaves in
order: released, or dropped for an error page. Tornado's server waits for the real
connection's `finish`, so keep-alive and pipelining are untouched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from tornado.httputil import HTTPConnection, HTTPHeaders, ResponseStartLine


class HeldConnection:
    """
    A connection that holds what is written to it, until `release` or `drop`.

    Made with `holding=False` it lets pass what comes, but for the end of the response:
    the last byte that the Content-Length promises, the headers of an answer without a
    body, or `finish`. Before that it asks `before_end`, which says whether to hold it.

    `complete_headers` adds to the headers what is known only when they leave. A body
    that does not fit its Content-Length is let through to the real connection at once,
    where Tornado raises its own error inside the handler; `broken` tells.
    """

    #: Whether the client has seen the headers, so that no error page can follow.
    headers_left = False
    #: Why the response was dropped, if it was.
    failed: Exception | None = None
    #: The body does not fit its Content-Length; Tornado deals with it.
    broken = False
    #: Called once when it is decided what leaves.
    on_decided: Callable[[], None] | None = None
    #: Bytes that the Content-Length still promises; None if it promises nothing.
    _expected: int | None = None
    _headers: HTTPHeaders | None = None

    def __init__(
        self,
        connection: Any,
        complete_headers: Callable[[HTTPHeaders], None],
        before_end: Callable[[], bool],
        *,
        holding: bool,
    ) -> None:
        #: The real one.
        self.connection = connection
        self._complete_headers: Callable[[HTTPHeaders], None] | None = complete_headers
        self._before_end: Callable[[], bool] | None = before_end
        self._kept: list[tuple[Callable[[], Any], asyncio.Future[None] | None]] = []
        self.holding = holding

    @property
    def face(self) -> HTTPConnection:
        """What the handler has for its connection."""
        return _Face(self)

    def write_headers(
        self,
        start_line: Any,
        headers: HTTPHeaders,
        chunk: bytes | None = None,
    ) -> asyncio.Future[None]:
        """Keeps or sends the start line, the headers and the first of the body."""
        self._headers = headers
        request = getattr(self.connection, "_request_start_line", None)
        bodiless = request is not None and request.method == "HEAD"
        if isinstance(start_line, ResponseStartLine):
            bodiless = bodiless or start_line.code in (204, 304)
        if not bodiless and "Content-Length" in headers:
            self._expected = int(headers["Content-Length"])
        self._count(chunk)
        if bodiless or (chunk is not None and self._expected == 0):
            self.end_comes()
        if not self.holding and self.failed is None:
            self._headers_leave()
        return self._keep(
            lambda: self.connection.write_headers(start_line, headers, chunk)
        )

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        """Keeps or sends a part of the body."""
        self._count(chunk)
        if chunk and self._expected == 0:
            self.end_comes()
        return self._keep(lambda: self.connection.write(chunk))

    def finish(self) -> None:
        """Keeps or sends the end of the response."""
        if self._expected:
            self._let_through()
        self.end_comes()
        if self.holding:
            self._kept.append((self.connection.finish, None))
        elif self.failed is None:
            self.connection.finish()

    def release(self) -> None:
        """Sends what was kept, in order; from now on everything passes through."""
        self.holding = False
        if self._headers is not None:
            self._headers_leave()
        kept, self._kept = self._kept, []
        try:
            for call, told in kept:
                sent = call()
                if told is None:
                    continue
                if sent.done():  # all of it has left
                    _tell(told, sent)
                else:
                    sent.add_done_callback(partial(_tell, told))
        finally:
            self._decided()

    def drop(self, error: Exception) -> None:
        """Throws away what was kept; who waits for it, or writes more, hears why."""
        self.holding = False
        self.failed = error
        kept, self._kept = self._kept, []
        for _, told in kept:
            if told is not None and not told.done():
                told.set_exception(error)
                told.exception()  # nobody need be waiting
        self.forget()
        self._decided()

    def forget(self) -> None:
        """Lets go of the handler: a circle that only the collector would end."""
        self._complete_headers = self._before_end = None

    def _headers_leave(self) -> None:
        complete, self._complete_headers = self._complete_headers, None
        if complete is not None and self._headers is not None:
            complete(self._headers)
        self.headers_left = True

    def _decided(self) -> None:
        on_decided, self.on_decided = self.on_decided, None
        if on_decided is not None:
            on_decided()

    def end_comes(self) -> None:
        """What follows ends the response; from here on it may have to wait."""
        if not (self.holding or self.broken) and self.failed is None:
            ask = self._before_end
            self.holding = ask is not None and ask()

    def _keep(self, call: Callable[[], Any]) -> asyncio.Future[None]:
        if self.holding:
            told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._kept.append((call, told))
            return told
        if self.failed is not None:
            raise self.failed
        return call()  # type: ignore[no-any-return]

    def _count(self, chunk: bytes | None) -> None:
        if self._expected is not None and chunk:
            self._expected -= len(chunk)
            if self._expected < 0:
                self._let_through()

    def _let_through(self) -> None:
        self.broken = True
        if self.holding:
            self.release()


class _Face(HTTPConnection):
    """
    What is written is held, and all else is the real one's.

    Apart from the `HeldConnection`, because a `__getattr__` makes attributes slow.
    """

    def __init__(self, held: HeldConnection) -> None:
        self._real = held.connection
        self.write_headers = held.write_headers  # type: ignore[method-assign]
        self.write = held.write  # type: ignore[method-assign]
        self.finish = held.finish  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _tell(told: asyncio.Future[None], sent: asyncio.Future[None]) -> None:
    if told.done():
        return
    if sent.cancelled():
        told.cancel()
    elif error := sent.exception():
        told.set_exception(error)
        told.exception()
    else:
        told.set_result(None)
