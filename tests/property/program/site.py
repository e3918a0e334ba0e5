"""
The program under test: handlers, applications that share a store ("processes"), and
the two ends between which they stand: a connection that notes what leaves, and a store
whose calls complete when they are told to.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tornado import httputil
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from tests.property.program.browser import HOST
from tests.property.program.clock import Clock, wear
from tornado_compas_session import SessionMixin, StoreUnavailable, session_settings

if TYPE_CHECKING:
    from tests.property.program.requests import Request

NAME = "counter.sess"
DOMAIN = "example.com"
KEYS = "a-key-for-the-tests-and-nothing-else", "another-key-for-tests-that-is-newer"
GRACE = 5.0
TIMEOUT = 5.0
MAX_AGE = 6 * 86400

#: The request in whose course something is done.
CURRENT: ContextVar[Request | None] = ContextVar("CURRENT", default=None)


# ── what leaves ──────────────────────────────────────────────────────────────────────


class Wire(httputil.HTTPConnection):
    """The connection of one request: notes what leaves, and when it is complete."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.context = SimpleNamespace(
            remote_ip="192.0.2.1", protocol="https", address=("192.0.2.1", 1)
        )
        self.status: int | None = None
        self.headers = httputil.HTTPHeaders()
        self.body = b""
        self.finished = False
        self.closed = False
        #: Whether the client has all of the answer.
        self.complete = False
        self.on_close: Callable[[], None] | None = None

    def write_headers(
        self,
        start_line: Any,
        headers: httputil.HTTPHeaders,
        chunk: bytes | None = None,
    ) -> asyncio.Future[None]:
        assert self.status is None, "two answers to one request"
        self.status = start_line.code
        self.headers = headers.copy()
        self.body += chunk or b""
        self.request.headers_left()
        return self._look()

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        assert self.status is not None
        self.body += chunk
        return self._look()

    def finish(self) -> None:
        assert not self.finished, "an answer ends once"
        self.finished = True
        self._look()

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        self.on_close = callback

    def close(self) -> None:
        self.closed = True
        self.request.left()

    def detach(self) -> Any:
        raise NotImplementedError

    @property
    def _request_start_line(self) -> httputil.RequestStartLine:
        return self.request.start_line

    def _look(self) -> asyncio.Future[None]:
        length = self.headers.get("Content-Length")
        complete = (
            self.finished
            or self.status in (204, 304)
            or self.request.start_line.method == "HEAD"
            or (length is not None and len(self.body) >= int(length))
        )
        if complete and not self.complete:
            self.complete = True
            self.request.completed()
        if self.finished:
            self.request.left()
        told = asyncio.get_running_loop().create_future()
        told.set_result(None)
        return told


# ── the store ────────────────────────────────────────────────────────────────────────


def gated(store: Any) -> Any:
    """
    The store, with every call of a request asking the request before it begins, and
    telling it when it has ended; calls of nobody's request pass.
    """
    if store is None:
        return None
    members: dict[str, Any] = {}
    for name in dir(type(store)):
        if name.startswith("_"):
            continue
        member = getattr(store, name)
        plain = inspect.unwrap(member) if callable(member) else member
        if inspect.iscoroutinefunction(plain):
            members[name] = _gated_call(name, member)
        elif name in ("load", "create", "save", "increment"):
            members[name] = _gated_future(name, member)
        elif inspect.isasyncgenfunction(plain):
            members[name] = _gated_block(name, member)
    members["__getattr__"] = lambda self, name: getattr(store, name)
    return type("Gated", (), members)()


def _gated_call(name: str, member: Callable[..., Awaitable[Any]]) -> Any:
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = CURRENT.get()
        if request is None:
            return await member(*args, **kwargs)
        async with request.store_call(name):
            return await member(*args, **kwargs)

    return call


def _gated_future(name: str, member: Callable[..., Awaitable[Any]]) -> Any:
    """Of what returns a future, which the library takes another way than the rest."""
    gated = _gated_call(name, member)

    def call(self: Any, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        if CURRENT.get() is None:
            return member(*args, **kwargs)
        told = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(gated(self, *args, **kwargs))

        def tell(task: asyncio.Future[Any]) -> None:
            if told.done():
                return
            if task.cancelled():
                told.cancel()
            elif error := task.exception():
                told.set_exception(error)
            else:
                told.set_result(task.result())

        task.add_done_callback(tell)
        told.add_done_callback(lambda told: told.cancelled() and task.cancel())
        return told

    return call


def _gated_block(name: str, member: Any) -> Any:
    @asynccontextmanager
    async def block(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = CURRENT.get()
        if request is None:
            async with member(*args, **kwargs) as inner:
                yield inner
            return
        async with request.store_call(name), member(*args, **kwargs) as inner:
            yield inner

    return block


def lost() -> StoreUnavailable:
    """A store that cannot be reached, or whose reply is lost."""
    return StoreUnavailable("the model lets this call fail")


# ── the handlers ─────────────────────────────────────────────────────────────────────

#: Sees the session after the pauses before, does its work, and may pause again.
Work = Callable[["Page", "Request"], Awaitable[None] | None]
WORK: dict[str, Work] = {}


class Page(SessionMixin, RequestHandler):
    """Does what the path says, and answers with what it saw."""

    @property
    def mine(self) -> Request:
        return request_of(self)

    async def get(self, kind: str, number: str) -> None:
        request = self.mine
        request.saw(dict(self.session))
        await request.stop("pre")
        try:
            outcome = WORK[kind](self, request)
            if outcome is not None:
                await outcome
        finally:
            request.worked(dict(self.session))
        await request.stop("post")
        if not self._finished and not self._headers_written and self._status_code < 204:
            self.write(json.dumps(request.shown))

    head = get

    def on_finish(self) -> None:
        super().on_finish()
        self.mine.on_finish.append(self.get_status())

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.finish(f"error {status_code}")


class PlainPage(Page):
    """The same without `async`: nothing is awaited."""

    def get(self, kind: str, number: str) -> None:  # type: ignore[override]
        self.mine.saw(dict(self.session))
        try:
            WORK[kind](self, self.mine)
        finally:
            self.mine.worked(dict(self.session))

    head = get  # type: ignore[assignment]


@stream_request_body
class UploadPage(Page):
    """Reads the body while it comes, so that its session is loaded before that."""

    def data_received(self, chunk: bytes) -> None:
        pass


def request_of(page: RequestHandler) -> Request:
    """By its number, which is in the path."""
    requests: dict[int, Request] = page.settings["model_requests"]
    return requests[int(page.request.path.rpartition("/")[2])]


def work(function: Work) -> Work:
    WORK[function.__name__.removeprefix("do_")] = function
    return function


def begin(page: Page, request: Request) -> None:
    """Marks a new session: which row it is, and since when it is whose."""
    if "row" not in page.session:
        page.session["row"] = page.session["period"] = request.row = request.number


def put(page: Page, request: Request) -> None:
    """Writes a key of this request's own; starts a session if there is none."""
    begin(page, request)
    key = request.key()
    page.session[key] = request.number
    request.keys.append(key)


def become(page: Page, request: Request, user: str) -> None:
    begin(page, request)
    if page.session.get("user_id") != user:
        page.session["user_id"] = user
        page.session["period"] = request.number


@work
def do_read(page: Page, request: Request) -> None:
    pass


@work
def do_write(page: Page, request: Request) -> None:
    put(page, request)


@work
def do_login(page: Page, request: Request) -> None:
    """As the docs of many frameworks have it: a new id, then the user."""
    page.session.regenerate()
    become(page, request, request.user)
    put(page, request)


@work
def do_signin(page: Page, request: Request) -> None:
    """Who the visitor is, and nothing else."""
    become(page, request, request.user)
    put(page, request)


@work
def do_regen(page: Page, request: Request) -> None:
    page.session.regenerate()


@work
def do_logout(page: Page, request: Request) -> None:
    page.session = None


@work
def do_fill(page: Page, request: Request) -> None:
    """Ends the session and begins another one."""
    page.session = None
    put(page, request)


@work
def do_clear(page: Page, request: Request) -> None:
    """A sign-out that keeps the session, empty."""
    session = page.session
    if session.is_new:
        return
    if session.get("user_id") is None:
        row, period = session.get("row"), session.get("period")
    else:  # another visitor, and perhaps another row
        row = period = request.row = request.number
    session.clear()
    session.update(row=row, period=period)


@work
def do_replace(page: Page, request: Request) -> None:
    """The whole content anew, for the same visitor."""
    marks = "user_id", "row", "period"
    page.session = {k: page.session[k] for k in marks if k in page.session}
    put(page, request)


@work
def do_forget(page: Page, request: Request) -> None:
    """The visitor's own way to be forgotten by the browser, beside a change."""
    if not page.session.is_new:
        put(page, request)
        request.keys.clear()
    for domain in (None, DOMAIN):
        page.clear_all_cookies(domain=domain)


@work
async def do_lock(page: Page, request: Request) -> None:
    async with page.session.lock():
        put(page, request)


@work
async def do_save(page: Page, request: Request) -> None:
    """Commits in the middle, and goes on."""
    put(page, request)
    await page.session.save()
    await request.stop("mid")
    put(page, request)


@work
async def do_add(page: Page, request: Request) -> None:
    increment = getattr(page.session, "increment", None)
    if increment is None or page.session.is_new:
        put(page, request)
        return
    key = request.key()
    assert await increment(key) == 1
    request.keys.append(key)


@work
async def do_stream(page: Page, request: Request) -> None:
    """Changes data after the headers have left."""
    new = page.session.is_new
    if new:
        put(page, request)
    page.write("first")
    await page.flush()
    await request.stop("mid")
    put(page, request)
    page.write("last")


@work
async def do_length(page: Page, request: Request) -> None:
    """All bytes that the Content-Length promises, by an explicit flush."""
    put(page, request)
    page.set_header("Content-Length", "5")
    page.write("whole")
    await page.flush()
    await request.stop("mid")


@work
def do_nothing(page: Page, request: Request) -> None:
    """A 204, which is complete with its headers."""
    put(page, request)
    page.set_status(204)


@work
async def do_nothing_flushed(page: Page, request: Request) -> None:
    put(page, request)
    page.set_status(204)
    await page.flush()
    await request.stop("mid")


@work
def do_late(page: Page, request: Request) -> None:
    """Changes data after a flush that nobody waits for."""
    if page.session.is_new:
        put(page, request)
    page.write("first")
    page.flush()
    put(page, request)
    page.write("last")


@work
def do_hurry(page: Page, request: Request) -> None:
    """The same, where the headers need a new cookie first."""
    page.session.regenerate()
    begin(page, request)
    page.write("first")
    page.flush()
    if not page.session.is_new:
        put(page, request)
    page.write("last")


@work
def do_bad(page: Page, request: Request) -> None:
    """A 4xx saves."""
    put(page, request)
    raise HTTPError(400)


@work
def do_fail(page: Page, request: Request) -> None:
    """A 5xx discards."""
    put(page, request)
    request.discarded, request.keys = request.keys, []
    raise HTTPError(500)


@work
async def do_relock(page: Page, request: Request) -> None:
    """Looks again at the session, by the two ways that there are."""
    if page.session.is_new:
        return
    await page.session.reload()
    request.saw_more(dict(page.session))
    async with page.session.lock():
        request.saw_more(dict(page.session))


#: Which kinds are sent by which class, and how.
PLAIN = {"late", "hurry"}
UPLOADS = {"upload"}
WORK["upload"] = do_write
#: The kinds whose answer has another status than 200 if all goes well.
STATUS = {"nothing": 204, "nothing_flushed": 204, "bad": 400, "fail": 500}


# ── the processes ────────────────────────────────────────────────────────────────────


class Site:
    """Two processes of one application, deployed by itself each."""

    def __init__(
        self,
        clock: Clock,
        stores: list[Any],
        on_reuse: Callable[[Any], Any],
        requests: dict[int, Request],
        **options: Any,
    ) -> None:
        self._clock = clock
        self._stores = [gated(store) for store in stores]
        self._on_reuse = on_reuse
        self._requests = requests
        self._options = options
        self.domain = [False, False]
        self.rotated = [False, False]
        self.processes = [self._start(0), self._start(1)]

    def deploy(self, process: int, *, domain: bool = False, keys: bool = False) -> None:
        """Starts a process anew; the requests of the one before end in peace."""
        self.domain[process] ^= domain
        self.rotated[process] ^= keys
        self.processes[process] = self._start(process)

    def _start(self, process: int) -> Application:
        first, second = KEYS
        keys = [second, first] if self.rotated[process] else [first, second]
        environ = {"APP_NAME": "counter", "APP_KEYS": ",".join(keys)}
        if self.domain[process]:
            environ["COOKIE_URL"] = "https://" + DOMAIN
        settings = session_settings(
            store=self._stores[process % len(self._stores)],
            environ=environ,
            on_reuse=self._on_reuse,
            regenerate_grace=GRACE,
            timeout=TIMEOUT,
            **self._options,
        )
        wear(self._clock, settings)
        routes = [
            (rf"/({'|'.join(PLAIN)})/(\d+)", PlainPage),
            (rf"/({'|'.join(UPLOADS)})/(\d+)", UploadPage),
            (r"/(\w+)/(\d+)", Page),
        ]
        return Application(
            routes,
            log_function=lambda page: request_of(page).logged.append(page.get_status()),
            model_requests=self._requests,
            **settings,
        )


def start_line(method: str, kind: str, number: int) -> httputil.RequestStartLine:
    return httputil.RequestStartLine(method, f"/{kind}/{number}", "HTTP/1.1")


def header_lines(cookies: str) -> httputil.HTTPHeaders:
    headers = httputil.HTTPHeaders({"Host": HOST, "Content-Length": "0"})
    if cookies:
        headers["Cookie"] = cookies
    return headers
