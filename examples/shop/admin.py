"""An administrator sees the shop as a customer does, and comes back."""

from __future__ import annotations

from tornado.web import HTTPError, authenticated

from examples.shop import users
from examples.shop.page import Page, sensitive


class Admin(Page):
    async def prepare(self) -> None:
        await super().prepare()
        if self.signed_in is not None and not self.signed_in.admin:
            raise HTTPError(403)

    @sensitive
    async def get(self) -> None:
        self.show("admin.html", everybody=await users.everybody(self.db))

    @sensitive
    async def post(self) -> None:
        number = self.get_body_argument("user")
        if not (number.isdecimal() and len(number) < 10):
            raise HTTPError(400)
        customer = await users.by_id(self.db, int(number))
        if customer is None or customer.admin:
            raise HTTPError(404)
        # `user_id` stays: who sits there is no other, and the customer's list of
        # devices shows no stranger. What they may do has changed, so the id does.
        self.session["acting_as"] = customer.id
        self.session.regenerate()
        self.redirect("/account")


class ComeBack(Page):
    @authenticated
    def post(self) -> None:
        self.session.pop("acting_as", None)
        self.redirect("/admin")
