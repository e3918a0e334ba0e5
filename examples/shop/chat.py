"""A chat for those who are signed in; it closes when they sign out, wherever."""

from __future__ import annotations

import json
from collections import deque
from typing import ClassVar

from tornado.web import HTTPError, authenticated
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from examples.shop import users
from examples.shop.page import Page
from tornado_compas_session import SessionMixin


class Chat(Page):
    @authenticated
    def get(self) -> None:
        self.show("chat.html")


class ChatSocket(SessionMixin, WebSocketHandler):
    """
    One of those who chat. All of them are in this process; where there are several, the
    words go from one to the other by PostgreSQL's LISTEN and NOTIFY.
    """

    present: ClassVar[set[ChatSocket]] = set()
    last: ClassVar[deque[str]] = deque(maxlen=30)

    async def prepare(self) -> None:
        await super().prepare()
        # Who sits there, not whom they act as: nobody speaks in another's name.
        user = await users.by_id(self.settings["db"], self.session.get("user_id"))
        if user is None:
            raise HTTPError(401)
        self.name = user.name

    def open(self, *args: str, **kwargs: str) -> None:
        self.present.add(self)
        for line in self.last:
            self.write_message(line)

    def on_message(self, message: str | bytes) -> None:
        if isinstance(message, str) and (text := message.strip()[:500]):
            line = json.dumps({"name": self.name, "text": text})
            self.last.append(line)
            for socket in list(self.present):
                try:
                    socket.write_message(line)
                except WebSocketClosedError:
                    self.present.discard(socket)

    def on_close(self) -> None:
        self.present.discard(self)
