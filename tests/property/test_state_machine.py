"""
Random operations on sessions, by several browsers at once, against a small model: both
stores give the same answers as it does.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.factories import load_session, make_manager
from tornado_compas_session import MemorySessionStore, PostgresSessionStore, SessionGone
from tornado_compas_session.core.manager import SessionManager
from tornado_compas_session.core.session import Session

KEYS = st.sampled_from(["a", "b", "ü", "with space"])
USERS = st.sampled_from(["anna", "ben", "7", 7, None])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.text(max_size=3).filter(lambda text: "\0" not in text and text.isprintable())
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["x", "y"]), inner, max_size=2)
    ),
    max_leaves=4,
)
CONTENTS = st.builds(
    lambda content, user: content if user == "nobody" else {**content, "user_id": user},
    st.dictionaries(KEYS, VALUES, max_size=3),
    st.just("nobody") | USERS,
)
COUNT = "count"


@dataclass
class Row:
    """A live session."""

    content: dict[str, Any]
    #: How often it got a new secret, and how often who the visitor is has changed.
    secret: int = 0
    epoch: int = 0
    #: Whether the secret before this one still opens it.
    former: bool = False

    @property
    def user(self) -> str | None:
        return user_of(self.content)


def user_of(content: dict[str, Any]) -> str | None:
    user = content.get("user_id")
    return None if user is None else str(user)


class Request:
    """One request under way: the session, and what the model thinks of it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        #: The row that it found, under which epoch, and with which secret.
        self.number: int | None = None
        self.epoch = 0
        self.secret = 0
        self.current = False
        #: The row is there, and not for this visitor: who it belongs to.
        self.strange = False
        self.owner: str | None = None
        self.found_gone = False
        self.before: dict[str, Any] = {}
        self.content: dict[str, Any] = {}
        self.replaced = False
        self.regenerated = False
        self.ended: tuple[int, int] | None = None

    def found(self, number: int, row: Row, secret: int) -> None:
        self.number, self.epoch, self.secret = number, row.epoch, secret
        self.current = row.secret == secret
        self.before = copy.deepcopy(row.content)
        self.content = copy.deepcopy(row.content)

    def forget(self) -> None:
        """From now on its session is a new one."""
        self.number = None
        self.before, self.content = {}, {}
        self.replaced = self.regenerated = False

    @property
    def changed(self) -> set[str]:
        """The keys that differ."""
        return {
            key
            for key in (*self.before, *self.content)
            if self.replaced or _text(self.before, key) != _text(self.content, key)
        }

    @property
    def changes_identity(self) -> bool:
        return user_of(self.before) != user_of(self.content)


def _text(content: dict[str, Any], key: str) -> str | None:
    # 1 == True in Python, and not in JSON.
    return repr(content[key]) if key in content else None


class Model:
    """What a request should see, and what should be stored after it."""

    def __init__(self) -> None:
        self.live: dict[int, Row] = {}
        self.numbers = itertools.count()

    def open(self, request: Request, number: int | None, secret: int) -> None:
        """A request comes with this secret of this session."""
        row = None if number is None else self.live.get(number)
        if number is None or row is None:
            request.found_gone = number is not None
        elif row.secret == secret or (row.former and row.secret == secret + 1):
            request.found(number, row, secret)
        else:
            request.strange, request.owner = True, row.user

    def row_of(self, request: Request) -> Row | None:
        """The row, if it is still that of the request's visitor."""
        row = None if request.number is None else self.live.get(request.number)
        return row if row is not None and row.epoch == request.epoch else None

    def commit(self, request: Request) -> str:
        """The outcome of a request's end: what a cookie tells of, or `gone`."""
        outcome = "nothing"
        if request.ended is not None and self.end(*request.ended):
            outcome = "ended"
        if request.number is None:
            return self.create(request) if request.content else outcome
        row = self.row_of(request)
        user = user_of(request.content)
        if request.changes_identity:
            if request.current and row is not None and row.secret == request.secret:
                self.merge(row, request)
                row.secret, row.epoch, row.former = row.secret + 1, row.epoch + 1, False
                return "new secret"
            if user is None and (row is not None or not request.current):
                # The session is ended with the sign-out, and the rest begins anew.
                done = self.end(request.number, request.epoch)
                request.number = None
                if request.content:
                    return self.create(request)
                return "ended" if done else "nothing"
            there = self.live.get(request.number)
            if user is None or there is None or there.user != user:
                return "gone"
            if not request.current:
                return "gone"
            return self.create(request)  # a double click on "sign in"
        if row is None:
            touched = request.changed or request.replaced
            regenerates = request.regenerated and request.current
            return "gone" if touched or regenerates else "nothing"
        self.merge(row, request)
        if request.regenerated and request.current and row.secret == request.secret:
            row.secret, row.former = row.secret + 1, True
            return "new secret"
        return "nothing"

    def create(self, request: Request) -> str:
        user = user_of(request.content)
        if request.strange and (user is None or user != request.owner):
            return "gone"
        request.number = next(self.numbers)
        self.live[request.number] = Row(copy.deepcopy(request.content))
        return "new secret"

    def end(self, number: int, epoch: int) -> bool:
        row = self.live.get(number)
        if row is None or row.epoch != epoch:
            return False
        del self.live[number]
        return True

    def merge(self, row: Row, request: Request) -> None:
        """By key."""
        if request.replaced:
            row.content.clear()
        for key in request.changed:
            if key in request.content:
                row.content[key] = copy.deepcopy(request.content[key])
            else:
                row.content.pop(key, None)


class Sessions(RuleBasedStateMachine):
    """Browsers open requests, change their sessions, and end them in any order."""

    requests = Bundle("requests")
    loop: asyncio.AbstractEventLoop
    make_store: Any
    store: Any

    def __init__(self) -> None:
        super().__init__()
        self.store = self.make_store()
        self.manager: SessionManager = make_manager(self.store, regenerate_grace=300)
        self.model = Model()
        #: The cookie of each browser, the number of its session, and of its secret.
        self.cookies: dict[int, tuple[str, int, int]] = {}

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @rule(target=requests, browser=st.integers(0, 2))
    def open(self, browser: int) -> Any:
        """A request comes in; the session is what was last stored."""
        cookie, number, secret = self.cookies.get(browser, ("", None, 0))
        session = self.run(load_session(self.manager, [cookie] if cookie else []))
        request = Request(session)
        self.model.open(request, number, secret)
        assert (request.number is None) == session.is_new
        assert request.content == dict(session)
        return browser, request

    @rule(opened=requests, key=KEYS, value=VALUES)
    def put(self, opened: Any, key: str, value: Any) -> None:
        _, request = opened
        request.session[key] = copy.deepcopy(value)
        request.content[key] = value

    @rule(opened=requests, user=USERS)
    def sign_in(self, opened: Any, user: Any) -> None:
        _, request = opened
        request.session["user_id"] = user
        request.content["user_id"] = user

    @rule(opened=requests, key=KEYS | st.just("user_id"))
    def drop(self, opened: Any, key: str) -> None:
        _, request = opened
        assert request.content.pop(key, None) == request.session.pop(key, None)

    @rule(opened=requests, key=KEYS, value=LEAVES)
    def nest(self, opened: Any, key: str, value: Any) -> None:
        """A change deep inside of a value."""
        _, request = opened
        for content in (request.session, request.content):
            inner = content.get(key)
            if isinstance(inner, list):
                inner.append(value)
            elif isinstance(inner, dict):
                inner["x"] = value

    @rule(opened=requests, content=CONTENTS)
    def replace(self, opened: Any, content: dict[str, Any]) -> None:
        _, request = opened
        request.session.replace(copy.deepcopy(content))
        request.content, request.replaced = content, request.number is not None

    @rule(opened=requests)
    def destroy(self, opened: Any) -> None:
        _, request = opened
        request.session.destroy()
        if request.number is not None:
            request.ended = request.number, request.epoch
        request.forget()

    @rule(opened=requests)
    def regenerate(self, opened: Any) -> None:
        _, request = opened
        request.session.regenerate()
        request.regenerated = request.number is not None

    @rule(opened=requests, by=st.integers(-3, 3))
    def increment(self, opened: Any, by: int) -> None:
        """It is in the store at once, whatever becomes of the request."""
        _, request = opened
        if request.replaced:
            return  # which would be saved before
        work = request.session.increment(COUNT, by)
        if request.number is None and not request.strange:
            request.content[COUNT] = request.content.get(COUNT, 0) + by
            assert request.content[COUNT] == self.run(work)
            return
        row = self.model.row_of(request)
        if row is None:
            with pytest.raises(SessionGone):
                self.run(work)
            if request.number is not None:
                request.forget()
                request.strange, request.owner = True, None
            return
        row.content[COUNT] = row.content.get(COUNT, 0) + by
        request.before[COUNT] = request.content[COUNT] = row.content[COUNT]
        assert row.content[COUNT] == self.run(work)

    @rule(opened=consumes(requests))
    def close(self, opened: Any) -> None:
        """The request ends: its changes are merged, or its session is gone."""
        browser, request = opened
        session = request.session
        assert request.content == dict(session)
        expected = self.model.commit(request)
        try:
            self.run(self.manager.commit(session))
        except SessionGone:
            assert expected == "gone"
            assert session.is_new
            return
        assert expected != "gone"
        cookies = self.manager.cookies(session)
        assert (expected == "new secret") == (session.life.secret is not None)
        if expected == "new secret":
            assert request.number is not None
            row = self.model.live[request.number]
            cookie = cookies[0].partition(";")[0]
            self.cookies[browser] = cookie, request.number, row.secret
        elif cookies:  # cleared
            assert expected == "ended" or request.found_gone
            self.cookies.pop(browser, None)
        else:
            assert expected != "ended"

    @invariant()
    def as_many_as_there_are(self) -> None:
        """No session is left over, and none is missing."""
        assert len(self.model.live) == self.run(self.store.stats())["live"]


def check(
    machine: type[Sessions], examples: int, steps: int, phases: Any = tuple(Phase)
) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.slow
def test_the_memory_store_is_like_the_model(loop, long, record_property):
    """No difference, however the operations come."""
    examples, steps = (2000, 60) if long else (60, 30)

    class InMemory(Sessions):
        make_store = staticmethod(MemorySessionStore)

    InMemory.loop = loop
    check(InMemory, examples, steps)
    record_property("differences", f"0 in {examples} examples of {steps} steps")


@pytest.mark.slow
def test_postgresql_is_like_the_model(loop, database, long, record_property):
    """No difference on the real store."""
    examples, steps = (500, 60) if long else (25, 30)
    store = loop.run_until_complete(PostgresSessionStore.connect(database))

    def emptied() -> Any:
        loop.run_until_complete(store.revoke_all())
        return store

    class InPostgres(Sessions):
        make_store = staticmethod(emptied)

    InPostgres.loop = loop
    check(InPostgres, examples, steps)
    loop.run_until_complete(store.close())
    record_property("differences", f"0 in {examples} examples of {steps} steps")


@pytest.mark.slow
def test_control_a_store_that_forgets_is_found(loop):
    """A store that saves the whole document is told from the model."""

    class WholeDocument(MemorySessionStore):
        async def save(self, handle, epoch, change, **options):
            if change.changed:
                change = change._replace(replace=True)
            return await super().save(handle, epoch, change, **options)

    class Wrong(Sessions):
        make_store = staticmethod(WholeDocument)

    Wrong.loop = loop
    with pytest.raises(AssertionError):
        # It ends with the first difference; 500 examples have once not had one.
        check(Wrong, 5_000, 30, [Phase.generate])
