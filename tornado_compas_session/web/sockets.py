"""
`WatchedSocketMixin`: an open WebSocket does not outlive its session, nor its visitor.

Nothing of a WebSocket is held: its handshake is out before its first message. So it is
looked now and then whether its session still lives, and what its messages change is
saved by the application, with `await self.session.save()`.
"""

from __future__ import annotations

import asyncio
import logging
import random

from tornado.websocket import WebSocketHandler

from tornado_compas_session.core.session import Session
from tornado_compas_session.web.response import HeldResponseMixin

logger = logging.getLogger("tornado_compas_session")

# What the loop runs it holds weakly; these are held until they end.
_looks: set[asyncio.Task[None]] = set()
_warned: set[type] = set()


class WatchedSocketMixin(HeldResponseMixin):
    """Watches over the session of an open WebSocket; idle for other handlers."""

    _session_watch: asyncio.TimerHandle | None = None

    def on_connection_close(self) -> None:
        """Stops watching; says so if a socket's changes were never saved."""
        if self._session_watch is not None:
            self._session_watch.cancel()
        super().on_connection_close()
        session = self._session
        if (
            isinstance(self, WebSocketHandler)
            and session is not None
            and session.modified
            and type(self) not in _warned
        ):
            _warned.add(type(self))
            logger.warning(
                "a WebSocket of %s closed with changes of its session that nobody "
                "saved; after changing it, call `await self.session.save()`",
                type(self).__name__,
            )

    def _session_watch_over(self, session: Session) -> None:
        if session.life.record is not None:
            seconds = self._session_manager.options.websocket_check
            loop = asyncio.get_running_loop()
            # Not all sockets of a restarted server at the same moment.
            self._session_watch = loop.call_later(
                seconds * random.uniform(0.5, 0.9), self._session_look, session
            )

    def _session_look(self, session: Session) -> None:
        task = asyncio.get_running_loop().create_task(self._session_check(session))
        _looks.add(task)
        task.add_done_callback(_looks.discard)

    async def _session_check(self, session: Session) -> None:
        assert isinstance(self, WebSocketHandler)
        if self.ws_connection is None:
            return
        why = await self._session_manager.why_ended(session)
        if why is None:
            self._session_watch_over(session)
        else:
            self.close(1008, why)
