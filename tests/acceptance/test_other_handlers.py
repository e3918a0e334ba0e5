"""The mixin in front of handlers that other people wrote, with habits of their own."""

from __future__ import annotations

import json

import pytest
from tornado.escape import json_encode
from tornado.web import HTTPError, RequestHandler, StaticFileHandler, authenticated

from tests.factories import (
    NAME,
    Browser,
    TroubledStore,
    make_app,
    serve,
    set_cookies,
)
from tornado_compas_session import SessionMixin, get_app


@pytest.fixture
def store():
    return TroubledStore()


@pytest.fixture
def start(io_loop, store):
    opened = []

    def start(*routes, tornado=None, **options):
        tornado = {"login_url": "/login", **(tornado or {})}
        served = serve(make_app(list(routes), store, tornado=tornado, **options))
        opened.append(served)
        return Browser(served.__enter__())

    yield start
    for served in opened:
        served.__exit__(None, None, None)


class SignIn(SessionMixin, RequestHandler):
    def post(self):
        self.session["user_id"] = "anna"


async def told(response):
    return json.loads(response.body)


# -- current_user ----------------------------------------------------------------------


class TheirBase(RequestHandler):
    """As bokeh's: nobody is signed in, until `prepare` finds out who is."""

    async def prepare(self):
        self.current_user = None

    def get_current_user(self):
        return "default_user"


class InFront(SessionMixin, TheirBase):
    @authenticated
    def get(self):
        self.write({"user": self.current_user})


class Before(SessionMixin, RequestHandler):
    async def prepare(self):
        self.current_user = None
        await super().prepare()

    get_current_user = TheirBase.get_current_user
    get = InFront.get


class InInitialize(SessionMixin, RequestHandler):
    def initialize(self):
        self.current_user = None

    get = InFront.get


@pytest.mark.parametrize("handler", [InFront, Before, InInitialize])
async def test_a_sign_in_check_is_not_bypassed(start, handler):
    """`current_user = None` that was set is not thrown away by the load."""
    browser = start(("/", handler), ("/sign-in", SignIn))
    await browser.post("/sign-in")

    response = await browser.get("/")

    assert 302 == response.code
    assert response.headers["Location"].startswith("/login")


class Sets(SessionMixin, RequestHandler):
    """Has its own idea of who the visitor is."""

    async def get(self, what):
        self.current_user = {"name": "Anna"}
        if what == "regenerate":
            self.session.regenerate()
        elif what == "user_id":
            self.session["user_id"] = "bela"
        elif what == "replace":
            self.session = {"user_id": "bela"}
        elif what == "destroy":
            self.session = None
        elif what == "save":
            self.session["user_id"] = "bela"
            await self.session.save()
        elif what == "lock":
            async with self.session.lock():
                self.session["user_id"] = "bela"
        self.write({"user": self.current_user})


@pytest.mark.parametrize(
    "what", ["regenerate", "user_id", "replace", "destroy", "save", "lock"]
)
async def test_what_the_handler_has_set_stays(start, what):
    """As an object, and not the id that the session has."""
    browser = start(("/sign-in", SignIn), ("/(.*)", Sets))
    await browser.post("/sign-in")

    assert {"user": {"name": "Anna"}} == await told(await browser.get(f"/{what}"))


class Computed(SessionMixin, RequestHandler):
    def get(self):
        before = self.current_user
        self.session["user_id"] = "bela"
        self.write({"before": before, "after": self.current_user})


async def test_what_was_computed_is_so_anew(start):
    """What `get_current_user` said of the visitor from before is forgotten."""
    browser = start(("/", Computed), ("/sign-in", SignIn))
    await browser.post("/sign-in")

    assert {"before": "anna", "after": "bela"} == await told(await browser.get("/"))


class TokenBase(RequestHandler):
    """As jupyter_server's and flower's: it knows by itself who is there."""

    def get_current_user(self):
        return self.request.headers.get("X-Token")


class ByToken(SessionMixin, TokenBase):
    def get(self):
        self.session["seen"] = True
        self.write({"user": self.current_user})


class BySession(SessionMixin, RequestHandler):
    get = ByToken.get


class PlainToken(TokenBase):
    def get(self):
        self.write({"user": self.current_user})


async def test_their_own_get_current_user_wins(start):
    """The mixin fills in only where the handler's classes have none of their own."""
    browser = start(("/", ByToken), ("/plain", BySession), ("/sign-in", SignIn))
    await browser.post("/sign-in")

    for token in ("theirs", None):
        headers = {"X-Token": token} if token else {}
        assert {"user": token} == await told(await browser.get("/", headers=headers))
    assert {"user": "anna"} == await told(await browser.get("/plain"))


async def test_their_own_wins_in_get_app_as_well(io_loop, store):
    """Where the mixin is put in front of handlers that do not name it."""
    app = get_app([("/", PlainToken), ("/sign-in", SignIn)], store=store)
    with serve(app) as url:
        browser = Browser(url)
        await browser.post("/sign-in")
        response = await browser.get("/", headers={"X-Token": "theirs"})

    assert {"user": "theirs"} == await told(response)


# -- prepare and initialize ------------------------------------------------------------


class Uses(SessionMixin, RequestHandler):
    def get(self):
        self.session["n"] = 1


class WithoutSuper(Uses):
    def prepare(self):
        """As if there were no other."""


class AsyncWithoutSuper(Uses):
    async def prepare(self):
        """As if there were no other."""


class ReturnsIt(Uses):
    async def prepare(self):
        return super().prepare()  # a coroutine that nobody awaits


class DropsIt(Uses):
    def prepare(self):
        super().prepare()  # type: ignore[unused-coroutine]


class Initialize(Uses):
    def initialize(self):
        self.session["n"] = 1


class Options(Uses):
    def options(self):
        self.session["n"] = 1


NOT_AWAITED = "does not await what ours returned"
NOT_CALLED = "does not call ours"


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (WithoutSuper, NOT_CALLED),
        (AsyncWithoutSuper, NOT_CALLED),
        (ReturnsIt, NOT_AWAITED),
        (DropsIt, NOT_AWAITED),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_the_mistake_with_prepare_is_named(start, caplog, handler, reason):
    """Which of the two it was, of which handler, and the line to write."""
    response = await start(("/", handler)).get("/")

    assert 500 == response.code
    assert f"SessionNotLoaded: {handler.__name__}: " in caplog.text
    assert reason in caplog.text
    assert ({NOT_CALLED, NOT_AWAITED} - {reason}).pop() not in caplog.text
    assert "`await super().prepare()`" in caplog.text


async def test_the_session_in_initialize_is_named(start, caplog):
    """A 500, where Tornado closes the connection; the log says where it begins."""
    response = await start(("/", Initialize)).get("/")

    assert 500 == response.code
    assert "initialize() runs before the session is loaded" in caplog.text
    assert "prepare() does not" not in caplog.text


async def test_the_session_of_options_is_named(start, caplog):
    """It does no session work, so there is none."""
    assert 500 == (await start(("/", Options)).ask("/", "OPTIONS")).code
    assert "OPTIONS requests do no session work" in caplog.text


# -- StaticFileHandler -----------------------------------------------------------------


class WithSessions(SessionMixin, RequestHandler):
    """The base of all handlers of an application."""

    def set_default_headers(self):
        self.set_header("X-Own", "yes")


async def test_static_files_behind_a_base_with_the_mixin(
    start, store, tmp_path, caplog
):
    """
    Such a class can be made, serves its files, and may look at the session. It sends no
    cookie, because caches keep what it serves; a line in the log says so.
    """

    class Files(WithSessions, StaticFileHandler):
        pass

    class PrivateFiles(WithSessions, StaticFileHandler):
        async def prepare(self):
            await super().prepare()
            if self.session.get("user_id") != "anna":
                raise HTTPError(403)

    class CountedFiles(WithSessions, StaticFileHandler):
        async def prepare(self):
            await super().prepare()
            self.session["downloads"] = 1

    (tmp_path / "file.txt").write_text("here")
    where = {"path": str(tmp_path)}
    browser = start(
        ("/files/(.*)", Files, where),
        ("/private/(.*)", PrivateFiles, where),
        ("/counted/(.*)", CountedFiles, where),
        ("/sign-in", SignIn),
        renew=0,
    )
    for folder, code in (("files", 200), ("private", 403), ("counted", 200)):
        response = await browser.get(f"/{folder}/file.txt?v=1")
        assert (code, []) == (response.code, set_cookies(response))
    assert "a StaticFileHandler sends no session cookie" in caplog.text
    assert 0 == len(store)

    await browser.post("/sign-in")
    for folder in ("files", "private", "counted"):
        response = await browser.get(f"/{folder}/file.txt?v=1")
        assert (200, b"here", []) == (
            response.code,
            response.body,
            set_cookies(response),
        )


# -- write_error -----------------------------------------------------------------------


class Reads(SessionMixin, RequestHandler):
    """Reads of the error what flower and others read of Tornado's own."""

    async def get(self, what):
        if what == "data":
            self.session["n"] = {1}
        elif what == "late":
            self.session["n"] = float("nan")
            await self.session.save()
        elif what == "http":
            raise HTTPError(418, "for the log", reason="Short and stout")
        else:
            self.session["n"] = 1

    def write_error(self, status_code, exc_info=None, **kwargs):
        error = exc_info[1]
        message = error.log_message
        if message and getattr(error, "args", None) and isinstance(error, HTTPError):
            message = message % error.args
        self.finish({"status": status_code, "reason": error.reason, "said": message})


@pytest.mark.parametrize(
    ("what", "status", "said"),
    [
        ("data", 500, "the session cannot keep n: a set"),
        ("late", 500, "the session cannot keep n"),
        ("create", 503, "no route to the host of the database"),
        ("http", 418, "for the log"),
    ],
)
async def test_our_errors_can_be_read_as_tornados_are(start, store, what, status, said):
    """`log_message` and `reason`, which no handler expects to be missing."""
    store.failing = what

    response = await start(("/(.*)", Reads)).get(f"/{what}")

    assert status == response.code
    answer = await told(response)
    assert status == answer["status"]
    assert answer["said"].startswith(said)
    assert ("Short and stout" if what == "http" else None) == answer["reason"]


# -- the session as a dict -------------------------------------------------------------


class Writes(SessionMixin, RequestHandler):
    def get(self, how):
        if how == "write":
            self.write(self.session)
        elif how == "finish":
            self.finish(self.session)
        elif how == "json_encode":
            self.write(json_encode(self.session))
        elif how == "dumps":
            self.write(json.dumps({"session": self.session})[12:-1])
        elif how == "union":
            self.write({"n": 0} | self.session)
        elif how == "copy":
            copied = self.session.copy()
            copied["more"] = 1
            self.write({key: copied[key] for key in reversed(self.session)})

    def post(self, how):
        self.session |= {"n": [1, {"deep": None}]}


@pytest.mark.parametrize(
    "how", ["write", "finish", "json_encode", "dumps", "union", "copy"]
)
async def test_a_session_is_written_as_a_dict_is(start, store, how):
    """Whatever takes a dict takes it, and it is not changed by that."""
    browser = start(("/(.*)", Writes))
    await browser.post("/start")

    response = await browser.get(f"/{how}")

    assert {"n": [1, {"deep": None}]} == await told(response)
    assert [NAME] == browser.jar.names()
    assert "save" not in store.calls
