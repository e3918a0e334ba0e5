"""Who comes in: sign-up, sign-in, sign-out, and asking for the password once more."""

from __future__ import annotations

import json
from datetime import timedelta

from tornado.web import authenticated

from examples.shop import users
from examples.shop.page import Page, cart_of, local, sensitive
from examples.shop.posters import POSTERS
from examples.shop.users import User

SHORTEST = 8  # characters of a password


class AccountPage(Page):
    def sign_in(self, user: User, *, remember: bool) -> None:
        """The session is this user's from now on, under a new id; the cart stays."""
        kept = {f"cart.{poster}": count for poster, count in cart_of(self).items()}
        # All else is left behind: somebody may have planted it.
        self.session = {**kept, "user_id": user.id}
        self.session.regenerate()  # for a user who signs in again: dates the sign-in
        self.session.max_age = timedelta(days=30) if remember else "session"
        self.flash(f"Hello, {user.name}.")
        self.redirect(local(self.get_body_argument("next", "/")))

    def password(self) -> str:
        return self.get_body_argument("password", strip=False)

    def form(self, template: str, problem: str = "", status: int = 200) -> None:
        """The form; again, with what was typed, where something was wrong."""
        self.set_status(status)
        name = self.get_argument("name", "")
        target = local(self.get_argument("next", "/"))
        self.show(template, problem=problem, name=name, target=target)


class SignIn(AccountPage):
    def get(self) -> None:
        self.form("sign_in.html")

    async def post(self) -> None:
        name = self.get_body_argument("name")
        user = await users.with_password(self.db, name, self.password())
        if user is None:
            self.form("sign_in.html", "No user has this name and this password.", 403)
        else:
            self.sign_in(user, remember=self.get_body_argument("remember", "") == "yes")


class SignUp(AccountPage):
    def get(self) -> None:
        self.form("sign_up.html")

    async def post(self) -> None:
        name = self.get_body_argument("name")
        if not 0 < len(name) <= 40:
            self.form("sign_up.html", "A name has 1 to 40 characters.", 400)
        elif len(self.password()) < SHORTEST:
            self.form("sign_up.html", f"At least {SHORTEST} characters, please.", 400)
        elif user := await users.add(self.db, name, self.password()):
            self.sign_in(user, remember=False)
        else:
            self.form("sign_up.html", "Somebody has this name already.", 409)


class SignOut(Page):
    def post(self) -> None:
        self.session = None  # row and cookie are gone; open chats close
        self.redirect("/")


class Confirm(AccountPage):
    """Asks for the password once more: what is sensitive wants a fresh sign-in."""

    @authenticated
    def get(self) -> None:
        self.form("confirm.html")

    @authenticated
    async def post(self) -> None:
        assert self.signed_in is not None
        user = await users.with_password(self.db, self.signed_in.name, self.password())
        if user is None:
            self.form("confirm.html", "That is not your password.", 403)
        else:
            self.session.regenerate()  # a new id, and `auth_time` is now
            self.redirect(local(self.get_body_argument("next", "/")))


class Account(Page):
    @authenticated
    async def get(self) -> None:
        orders = await self.db.fetch(
            "SELECT cart::text, placed_at, placed_by <> user_id AS by_us"
            " FROM shop_order WHERE user_id = $1 ORDER BY placed_at DESC LIMIT 20",
            self.current_user.id,
        )
        self.show(
            "account.html",
            orders=[(in_words(cart), *rest) for cart, *rest in orders],
            since=self.session.auth_time,
        )


def in_words(cart: str) -> str:
    counts = json.loads(cart)
    return ", ".join(
        f"{counts[key]} × {poster.title}"
        for key, poster in POSTERS.items()
        if key in counts
    )


class ChangePassword(AccountPage):
    @sensitive
    async def get(self) -> None:
        self.form("password.html")

    @sensitive
    async def post(self) -> None:
        assert self.signed_in is not None
        if len(self.password()) < SHORTEST:
            self.form("password.html", f"At least {SHORTEST} characters, please.", 400)
            return
        await users.set_password(self.db, self.signed_in, self.password())
        # Whoever knew the old one is out.
        ended = await self.session.end_others()
        self.session.regenerate()
        self.flash(f"A new password. Other devices signed out: {ended}.")
        self.redirect("/account")
