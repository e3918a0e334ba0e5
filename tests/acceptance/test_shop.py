"""The shop in examples/shop, over HTTP, against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import asyncpg
import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest, HTTPResponse
from tornado.websocket import WebSocketClientConnection, websocket_connect

from examples.shop.app import make_app
from examples.shop.chat import ChatSocket
from examples.shop.page import local
from examples.shop.users import TABLES
from tests.factories import Browser, port_of, serve, set_cookies
from tornado_compas_session import PostgresSessionStore

pytestmark = pytest.mark.slow

PASSWORD = "correct horse battery"
PNG = b"\x89PNG\r\n\x1a\n and the rest"


class Visitor(Browser):
    """A browser that follows redirects, and fills in the forms of the shop."""

    async def see(self, path: str, status: int = 200) -> str:
        """The page, after its redirects."""
        response = await self.get(path)
        while response.code == 302:
            response = await self.get(response.headers["Location"])
        assert status == response.code, response.body
        return response.body.decode()

    async def send(self, path: str, **fields: Any) -> HTTPResponse:
        """Posts a form, with the token that the shop's pages have in theirs."""
        body = urlencode({"_xsrf": await self.token(), **fields})
        return await self.post(path, body=body)

    async def token(self) -> str:
        found = re.search(r'name="_xsrf" value="([^"]+)"', await self.see("/"))
        assert found
        return found[1]

    async def sign_in(self, name: str = "ada", **fields: str) -> HTTPResponse:
        return await self.send("/sign-in", name=name, password=PASSWORD, **fields)

    async def chat(self) -> WebSocketClientConnection:
        headers = {"Cookie": self.jar.header()}
        url = f"ws://127.0.0.1:{port_of(self.url)}/chat/socket"
        return await websocket_connect(HTTPRequest(url, headers=headers))


class Shop:
    """A running shop; `ada` has signed up first, and is its administrator."""

    def __init__(self, url: str, db: Any, store: PostgresSessionStore) -> None:
        self.url, self.db, self.store = url, db, store

    def visitor(self) -> Visitor:
        return Visitor(self.url)

    async def signed_up(self, name: str) -> Visitor:
        visitor = self.visitor()
        response = await visitor.send("/sign-up", name=name, password=PASSWORD)
        assert 302 == response.code, response.body
        return visitor

    async def let_time_pass(self) -> None:
        """Every sign-in was an hour ago."""
        await self.db.execute(
            "UPDATE compas_session SET"
            " authenticated_at = authenticated_at - interval '1 hour'"
        )


@asynccontextmanager
async def running(database: str, **options: Any) -> AsyncIterator[Shop]:
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(asyncpg.create_pool(database, min_size=0))
        await db.execute(TABLES)
        store = await PostgresSessionStore.connect(database)
        stack.push_async_callback(store.close)
        app = make_app(store, db, **options)
        app.settings["log_function"] = lambda handler: None
        ChatSocket.last.clear()
        yield Shop(stack.enter_context(serve(app)), db, store)


async def test_a_cart_goes_along_to_the_order(database):
    """Filled by a stranger, kept at sign-in, ordered once by a double click."""
    async with running(database) as shop:
        await shop.signed_up("ada")
        visitor = shop.visitor()
        token = await visitor.token()
        body = urlencode({"_xsrf": token})
        await visitor.post("/add/moons", body=body)
        assert "“Moons” is in your cart." in await visitor.see("/")
        # Of messages at the same moment the last one stays; of the cart, all.
        adding = [visitor.post("/add/moons", body=body) for _ in range(5)]
        await asyncio.gather(*adding, visitor.post("/add/leaf", body=body))
        assert 'value="6"' in await visitor.see("/cart")
        await visitor.send("/cart", moons=2, leaf=1)
        assert "€ 92" in await visitor.see("/cart")

        assert 403 == (await visitor.send("/order")).code
        before = visitor.jar.get()
        response = await visitor.sign_in(next="/cart")
        assert "/cart" == response.headers["Location"]
        assert before != visitor.jar.get()
        assert "€ 92" in await visitor.see("/cart")

        body = urlencode({"_xsrf": await visitor.token()})
        orders = [visitor.post("/order", body=body) for _ in range(2)]
        assert [302, 302] == [r.code for r in await asyncio.gather(*orders)]
        assert "2 × Moons, 1 × Leaf" in await visitor.see("/account")
        assert 1 == await shop.db.fetchval("SELECT count(*) FROM shop_order")
        assert "nothing in it yet" in await visitor.see("/cart")


async def test_a_message_is_shown_once(database):
    """On the page after, and on no other."""
    async with running(database) as shop:
        visitor = await shop.signed_up("ada")

        assert "Hello, ada." in await visitor.see("/")
        assert "Hello, ada." not in await visitor.see("/")


async def test_what_is_refused_at_the_door(database):
    """Wrong passwords, names that are taken, forms of other sites, other targets."""
    async with running(database) as shop:
        await shop.signed_up("ada")
        visitor = shop.visitor()
        wrong = await visitor.send("/sign-in", name="ada", password="wrong horse")
        nobody = await visitor.send("/sign-in", name="<b>", password="wrong horse")
        taken = await visitor.send("/sign-up", name="ada", password=PASSWORD)
        short = await visitor.send("/sign-up", name="eve", password="short")
        form = urlencode({"name": "ada", "password": PASSWORD})
        forged = await visitor.post("/sign-in", body=form)

        assert [403, 403, 409, 400, 403] == [
            response.code for response in (wrong, nobody, taken, short, forged)
        ]
        assert b"&lt;b&gt;" in nobody.body
        assert visitor.jar.get() is None
        stored = await shop.db.fetchval("SELECT password FROM shop_user")
        assert PASSWORD.encode() not in stored
        away = await visitor.sign_in(next="//evil.example")
        assert "/" == away.headers["Location"]


@pytest.mark.parametrize(
    ("target", "goes_to"),
    [
        ("/cart?x=1", "/cart?x=1"),
        ("https://evil.example/", "/"),
        ("//evil.example/", "/"),
        ("/\\evil.example/", "/"),
        ("/\t/evil.example/", "/"),
        ("javascript:alert(1)", "/"),
        ("", "/"),
    ],
)
def test_next_stays_on_the_site(target, goes_to):
    """However a browser would read it."""
    assert goes_to == local(target)


async def test_remember_me(database):
    """Thirty days, or until the browser is closed."""
    async with running(database) as shop:
        await shop.signed_up("ada")
        remembered, forgotten = shop.visitor(), shop.visitor()
        long = set_cookies(await remembered.sign_in(remember="yes"))
        short = set_cookies(await forgotten.sign_in())

        assert "; Max-Age=2592000;" in long[0]
        assert "Max-Age" not in short[0]


async def test_two_devices(database):
    """Each is listed on the other; one ends the other, then all others."""
    async with running(database) as shop:
        laptop = await shop.signed_up("ada")
        await shop.signed_up("eve")
        phone, tablet = shop.visitor(), shop.visitor()
        phone.headers = {"User-Agent": "Mozilla/5.0 (iPhone) Safari/605"}
        await phone.sign_in()
        await tablet.sign_in()
        page = await laptop.see("/devices")
        assert "Safari on iPhone" in page
        assert 3 == page.count("last used")
        [handle] = [
            info.handle
            for info in await shop.store.sessions_of(1)
            if "iPhone" in str(info.user_agent)
        ]
        [others] = await shop.store.sessions_of(2)

        there = "/devices/sign-out-there"
        assert 404 == (await laptop.send(there, handle=others.handle)).code
        assert 302 == (await laptop.send(there, handle=handle)).code
        assert "Sign in" in await phone.see("/account")
        assert "Your devices" in await tablet.see("/account")
        await tablet.send("/devices/sign-out-elsewhere")
        assert "Other devices signed out: 1." in await tablet.see("/devices")
        assert "Sign in" in await laptop.see("/account")


async def test_the_chat_closes_on_sign_out(database):
    """On all devices; a stranger does not get in."""
    async with running(database, websocket_check=0.1) as shop:
        ada, eve = await shop.signed_up("ada"), await shop.signed_up("eve")
        with pytest.raises(HTTPClientError, match="401"):
            await shop.visitor().chat()
        talking, listening = await ada.chat(), await eve.chat()
        await talking.write_message("  <b>Hello  ")
        for socket in (talking, listening):
            heard = json.loads(str(await socket.read_message()))
            assert {"name": "ada", "text": "<b>Hello"} == heard

        await ada.send("/sign-out")
        async with asyncio.timeout(20):
            assert await talking.read_message() is None
        assert 1008 == talking.close_code
        await listening.write_message("Gone?")
        assert "Gone?" in str(await listening.read_message())
        talking.close()
        listening.close()


async def test_what_is_sensitive_asks_again(database):
    """An hour after the sign-in, and not while it is fresh; then other devices end."""
    async with running(database) as shop:
        laptop = await shop.signed_up("ada")
        phone = shop.visitor()
        await phone.sign_in()
        assert "A new password" in await laptop.see("/account/password")
        await shop.let_time_pass()

        asked = await laptop.get("/account/password")
        assert "/confirm?next=%2Faccount%2Fpassword" == asked.headers["Location"]
        refused = await laptop.send("/account/password", password="another horse")
        assert refused.headers["Location"].startswith("/confirm")
        wrong = await laptop.send("/confirm", password="wrong horse")
        assert 403 == wrong.code
        before = laptop.jar.get()
        right = await laptop.send(
            "/confirm", password=PASSWORD, next="/account/password"
        )
        assert "/account/password" == right.headers["Location"]
        assert before != laptop.jar.get()
        await laptop.send("/account/password", password="another horse")
        assert "Other devices signed out: 1." in await laptop.see("/account")
        assert "Sign in" in await phone.see("/account")
        assert 403 == (await phone.sign_in()).code


async def test_an_administrator_acts_as_a_customer_and_comes_back(database):
    """Sees their account, may do nothing sensitive, is on no list of theirs."""
    async with running(database) as shop:
        ada, eve = await shop.signed_up("ada"), await shop.signed_up("eve")
        assert 403 == (await eve.get("/admin")).code
        assert 403 == (await eve.send("/admin", user=1)).code
        before = ada.jar.get()
        assert 400 == (await ada.send("/admin", user="eve")).code
        assert 302 == (await ada.send("/admin", user=2)).code
        assert before != ada.jar.get()

        assert "see the shop as eve does" in await ada.see("/account")
        assert 403 == (await ada.get("/account/password")).code
        assert 403 == (await ada.send("/admin", user=2)).code
        assert 1 == len(await shop.store.sessions_of(2))
        await ada.send("/add/leaf")
        await ada.send("/order")
        assert "ordered by us" in await eve.see("/account")

        await ada.send("/admin/come-back")
        assert "Customers" in await ada.see("/admin")
        assert "as eve does" not in await ada.see("/account")
        await shop.let_time_pass()
        asked = await ada.send("/admin", user=2)
        assert "/confirm?next=%2Fadmin" == asked.headers["Location"]


async def test_a_photo_is_uploaded(database):
    """Streamed, with the token in a header; what is no picture or too large is not."""
    async with running(database) as shop:
        ada = await shop.signed_up("ada")
        token = {"X-XSRFToken": await ada.token()}

        async def put(body: bytes) -> int:
            path = "/account/photo"
            return (await ada.ask(path, "PUT", body=body, headers=token)).code

        assert 204 == await put(PNG)
        photo = await ada.get("/photos/1")
        assert (PNG, "image/png") == (photo.body, photo.headers["Content-Type"])
        assert "A new photo." in await ada.see("/account")
        assert 415 == await put(b"<svg>")
        assert 204 != await put(PNG + bytes(2 * 2**20))
        await ada.send("/sign-out")
        assert 401 == await put(PNG)


async def test_a_browser_without_cookies_is_told(database):
    """The form's own cookie did not come back, and the page says what that means."""
    async with running(database) as shop:
        refused = await shop.visitor().post("/add/leaf", body="_xsrf=lost")

        assert 403 == refused.code
        assert b"Your browser keeps no cookies" in refused.body


async def test_other_answers(database):
    """No page, no such poster, no method of ours; nothing of another site."""
    async with running(database) as shop:
        visitor = shop.visitor()
        assert 404 == (await visitor.get("/nowhere")).code
        assert 404 == (await visitor.send("/add/spoon")).code
        assert 405 == (await visitor.ask("/", "OPTIONS")).code
        policy = (await visitor.get("/")).headers["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert re.search(r"\s(on\w+|style)=", await visitor.see("/")) is None
