"""The routes and the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tornado.web import Application

from examples.shop import accounts, admin, cart, chat, devices, photo
from examples.shop.page import NotFound
from tornado_compas_session import PostgresSessionStore, get_app

HERE = Path(__file__).parent
HEADERS = {
    # Nothing runs or is shown that is not the shop's own.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    "Referrer-Policy": "same-origin",
    "Server": None,
    "X-Content-Type-Options": "nosniff",
}
XSRF: dict[str, Any] = {
    "xsrf_cookies": True,
    "xsrf_cookie_kwargs": {"samesite": "Lax", "httponly": True, "expires_days": 6},
}
ROUTES: list[Any] = [
    ("/", cart.Posters),
    (r"/add/(\w+)", cart.Add),
    ("/cart", cart.Cart),
    ("/order", cart.Order),
    ("/sign-up", accounts.SignUp),
    ("/sign-in", accounts.SignIn),
    ("/sign-out", accounts.SignOut),
    ("/confirm", accounts.Confirm),
    ("/account", accounts.Account),
    ("/account/password", accounts.ChangePassword),
    ("/account/photo", photo.Upload),
    (r"/photos/(\d{1,18})", photo.Photo),
    ("/devices", devices.Devices),
    ("/devices/sign-out-there", devices.SignOutThere),
    ("/devices/sign-out-elsewhere", devices.SignOutElsewhere),
    ("/admin", admin.Admin),
    ("/admin/come-back", admin.ComeBack),
    ("/chat", chat.Chat),
    ("/chat/socket", chat.ChatSocket),
]


def make_app(store: PostgresSessionStore, db: Any, **options: Any) -> Application:
    """The shop: its sessions in `store`, its own tables in the pool `db`."""
    app = get_app(
        ROUTES,
        store=store,
        headers=HEADERS,
        # It has pages, and no API: its own errors, and no other origins.
        cors=False,
        errors=False,
        not_found=False,
        default_handler_class=NotFound,
        record_client=True,  # so that "your devices" can tell them apart
        max_sessions_per_user=20,
        **{"websocket_check": 5, **options},
        login_url="/sign-in",
        template_path=str(HERE / "templates"),
        static_path=str(HERE / "static"),
        websocket_max_message_size=4096,
        **XSRF,
    )
    app.settings.update(store=store, db=db)
    return app
