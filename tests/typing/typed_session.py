"""A handler with a typed view of its session, as docs/handlers.md has it; not run."""

from __future__ import annotations

from typing import NotRequired, TypedDict, assert_type

from tornado.web import RequestHandler

from tornado_compas_session import Session, SessionMixin


class Item(TypedDict):
    name: str
    count: int


class ShopSession(TypedDict):
    user_id: NotRequired[int]
    cart: NotRequired[list[Item]]


class ShopHandler(SessionMixin, RequestHandler):
    @property
    def shop(self) -> ShopSession:
        return self.session.typed(ShopSession)


class CartHandler(ShopHandler):
    def post(self) -> None:
        cart = self.shop.setdefault("cart", [])
        cart.append({"name": "tea", "count": 1})
        assert_type(self.shop.get("user_id"), int | None)
        assert_type(self.session, Session)
        self.write({"items": sum(item["count"] for item in cart)})

    async def put(self) -> None:
        async with self.session.lock(timeout=1):
            self.shop["cart"] = []
        if "user_id" in self.shop:
            del self.shop["user_id"]
        self.session = {"cart": []}
        self.session = None
