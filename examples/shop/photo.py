"""A photo of themselves: sent as it is, with a bar that shows how far it is."""

from __future__ import annotations

from tornado.web import HTTPError, RequestHandler, stream_request_body

from examples.shop.page import Page

LARGEST = 2 * 2**20  # bytes
KINDS = {b"\x89PNG\r\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


def kind_of(photo: bytes) -> str | None:
    """By how it begins, whatever the browser calls it."""
    return next((k for start, k in KINDS.items() if photo.startswith(start)), None)


@stream_request_body
class Upload(Page):
    """The session is loaded before the first byte arrives, and saved after the last."""

    async def prepare(self) -> None:
        self.request.connection.set_max_body_size(LARGEST)  # type: ignore[union-attr]
        await super().prepare()
        self.photo = b""
        if self.current_user is None:
            raise HTTPError(401)

    def data_received(self, chunk: bytes) -> None:
        self.photo += chunk

    async def put(self) -> None:
        if kind_of(self.photo) is None:
            raise HTTPError(415)
        await self.db.execute(
            "UPDATE shop_user SET photo = $1 WHERE id = $2",
            self.photo,
            self.current_user.id,
        )
        self.flash("A new photo.")
        self.set_status(204)


class Photo(RequestHandler):
    """Without `SessionMixin`: a photo is the same for everybody, and costs no query."""

    async def get(self, user_id: str) -> None:
        photo = await self.settings["db"].fetchval(
            "SELECT photo FROM shop_user WHERE id = $1", int(user_id)
        )
        if photo is None:
            raise HTTPError(404)
        self.set_header("Content-Type", str(kind_of(photo)))
        self.set_header("Cache-Control", "no-cache")
        self.write(photo)
