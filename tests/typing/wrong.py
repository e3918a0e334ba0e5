"""What a typed session must not let pass: each marked line is an error; not run."""

from __future__ import annotations

from tests.typing.typed_session import ShopHandler


class WrongHandler(ShopHandler):
    def get(self) -> None:
        self.shop["user_id"] = "7"  # error: typeddict-item
        self.shop["kart"] = []  # error: typeddict-unknown-key
        self.shop["cart"] = [{"name": "tea"}]  # error: typeddict-item
        count: str = self.shop["cart"][0]["count"]  # error: assignment
        self.write(count)
        self.session = 7  # error: assignment
        self.session[7] = "seven"  # error: index
        self.session.max_age = []  # error: assignment
