"""What they buy. Each poster in the cart is a key of the session of its own."""

from __future__ import annotations

import json

from tornado.web import HTTPError, authenticated

from examples.shop.page import Page, cart_of
from examples.shop.posters import POSTERS


class Posters(Page):
    def get(self) -> None:
        self.show("posters.html", posters=POSTERS.values())


class Add(Page):
    async def post(self, key: str) -> None:
        if key not in POSTERS:
            raise HTTPError(404)
        # Added in the store: of two clicks at the same moment, both count.
        await self.session.increment(f"cart.{key}")
        self.flash(f"“{POSTERS[key].title}” is in your cart.")
        self.redirect("/")


class Cart(Page):
    def get(self) -> None:
        lines = [(POSTERS[key], count) for key, count in cart_of(self).items()]
        total = sum(poster.price * count for poster, count in lines)
        self.show("cart.html", lines=lines, total=total)

    def post(self) -> None:
        """Takes the numbers of the form. An ordinary write: only what differs."""
        for key, before in cart_of(self).items():
            text = self.get_body_argument(key, str(before))
            count = min(int(text), 99) if text.isdecimal() else before
            if count:
                self.session[f"cart.{key}"] = count
            else:
                del self.session[f"cart.{key}"]
        self.redirect("/cart")


class Order(Page):
    @authenticated
    def get(self) -> None:
        self.redirect("/cart")  # after a sign-in on the way to the order

    @authenticated
    async def post(self) -> None:
        assert self.signed_in is not None
        # A double click orders once: the second waits, and finds the cart empty.
        async with self.session.lock():
            cart = cart_of(self)
            for key in cart:
                del self.session[f"cart.{key}"]
            if cart:
                await self.db.execute(
                    "INSERT INTO shop_order (user_id, placed_by, cart)"
                    " VALUES ($1, $2, $3)",
                    self.current_user.id,
                    self.signed_in.id,
                    json.dumps(cart),
                )
        self.flash("Thank you. It is on its way." if cart else "The cart is empty.")
        self.redirect("/account")
