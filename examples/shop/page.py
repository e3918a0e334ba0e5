"""What each page knows of its visitor, and how it looks when something is wrong."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlencode

from tornado.web import HTTPError, RequestHandler, authenticated

from examples.shop import users
from examples.shop.posters import POSTERS
from examples.shop.users import User
from tornado_compas_session import SessionMixin

FRESH = 600  # seconds after a sign-in for which nothing sensitive asks for it again


class Page(SessionMixin, RequestHandler):
    """
    A page of the shop.

    `signed_in` is who sits there. `current_user` is whose shop they see: their own, or
    a customer's, where an administrator looks at it (admin.py).
    """

    SUPPORTED_METHODS = ("GET", "HEAD", "POST", "PUT")
    signed_in: User | None = None

    async def prepare(self) -> None:
        await super().prepare()
        self.signed_in = await users.by_id(self.db, self.session.get("user_id"))
        customer = await users.by_id(self.db, self.session.get("acting_as"))
        self.current_user = customer or self.signed_in

    @property
    def db(self) -> Any:
        """The shop's own pool, beside that of the sessions."""
        return self.settings["db"]

    def flash(self, text: str) -> None:
        """
        Says something on the next page, once.

        Of two tabs at the same moment one says it for both: a word more or less is no
        loss. What must not be lost has a key of its own, or is counted, or locked.
        """
        self.session.setdefault("flash", []).append(text)

    def show(self, template: str, **values: Any) -> None:
        values["messages"] = self.session.pop("flash", [])
        values["pieces"] = sum(cart_of(self).values())
        self.set_header("Cache-Control", "no-store")
        self.render(template, **values)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Without the session: it may be what is wrong."""
        self.current_user = self.signed_in = None
        blocked = status_code == 403 and "Cookie" not in self.request.headers
        self.render(
            "error.html", status=status_code, blocked=blocked, messages=[], pieces=0
        )


def cart_of(page: Page) -> dict[str, int]:
    """How many of which poster: each is a key of the session of its own."""
    counts = {key: page.session.get(f"cart.{key}", 0) for key in POSTERS}
    return {key: count for key, count in counts.items() if count}


def local(target: str) -> str:
    """The target of a redirect, if it is a path of this site; else the front page."""
    # To a browser `//evil.example` and `/\evil.example` are other sites.
    return target if re.fullmatch(r"/(?![/\\])[!-~]*", target) else "/"


P = TypeVar("P", bound=Page)


def sensitive(
    method: Callable[[P], Awaitable[None]],
) -> Callable[[P], Awaitable[None] | None]:
    """Like Tornado's `authenticated`, and asks for the password again after a while."""

    @functools.wraps(method)
    def wrapper(page: P) -> Awaitable[None] | None:
        if "acting_as" in page.session:
            raise HTTPError(403, "an administrator acts as a customer")
        if page.session.is_fresh(FRESH):
            return method(page)
        page.redirect("/confirm?" + urlencode({"next": page.request.path}))
        return None

    return authenticated(wrapper)


class NotFound(Page):
    async def prepare(self) -> None:
        raise HTTPError(404)
