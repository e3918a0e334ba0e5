"""
Random operations on sessions, by several browsers at once, against a small model: both
stores give the same answers as it does.
"""

from __future__ import annotations

import asyncio
import copy
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

KEYS = st.sampled_from(["a", "b", "user_id", "ü", "with space"])
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
CONTENTS = st.dictionaries(KEYS, VALUES, max_size=3)


class Model:
    """What a request should see, and what should be stored after it."""

    def __init__(self) -> None:
        #: The live sessions, by a number of ours.
        self.live: dict[int, dict[str, Any]] = {}
        #: How often each was regenerated. The id before is honoured, older ones not.
        self.moves: dict[int, int] = {}

    def commit(self, request: Request) -> str:
        """The outcome of a request's end; merges by key."""
        number, ended = request.number, request.ended
        if ended is not None and self.moves[ended] - request.moves <= 1:
            self.live.pop(ended, None)
        if number is None:
            return "created" if request.content else "nothing"
        behind = self.moves[number] - request.moves
        stored = self.live.get(number) if behind <= 1 else None
        if not request.changed:
            return "saved" if stored is not None else "nothing"
        if stored is None:
            return "gone"
        if request.replaced:
            stored.clear()
        for key in request.changed:
            if key in request.content:
                stored[key] = copy.deepcopy(request.content[key])
            elif key != "*":
                stored.pop(key, None)
        if request.regenerated and not behind:
            self.moves[number] += 1
        return "saved"


class Request:
    """One request under way: the session, and what the model thinks of it."""

    def __init__(self, session: Session, number: int | None, content: Any) -> None:
        self.session = session
        self.number = number
        self.moves = 0
        self.before = copy.deepcopy(content)
        self.content = copy.deepcopy(content)
        self.replaced = False
        self.regenerated = False
        self.ended: int | None = None

    @property
    def changed(self) -> set[str]:
        """The keys that differ, and `*` for what changes the session as such."""
        keys = {
            key
            for key in (*self.before, *self.content)
            if _text(self.before, key) != _text(self.content, key)
        }
        if self.replaced:
            keys |= {"*", *self.content}
        return keys | ({"*"} if self.regenerated else set())


def _text(content: dict[str, Any], key: str) -> str | None:
    # 1 == True in Python, and not in JSON.
    return repr(content[key]) if key in content else None


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
        self.numbers = iter(range(10**6))
        #: The cookie of each browser, and the number of its session.
        self.cookies: dict[int, tuple[str, int]] = {}

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @rule(target=requests, browser=st.integers(0, 2))
    def open(self, browser: int) -> Any:
        """A request comes in; the session is what was last stored."""
        cookie, number = self.cookies.get(browser, ("", None))
        session = self.run(load_session(self.manager, [cookie] if cookie else []))
        stored = self.model.live.get(number) if number is not None else None
        assert (stored is None) == session.is_new
        assert (stored or {}) == dict(session)
        request = Request(session, None if stored is None else number, stored or {})
        request.moves = 0 if number is None else self.model.moves[number]
        return browser, request

    @rule(opened=requests, key=KEYS, value=VALUES)
    def put(self, opened: Any, key: str, value: Any) -> None:
        _, request = opened
        request.session[key] = copy.deepcopy(value)
        request.content[key] = value

    @rule(opened=requests, key=KEYS)
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
        request.content, request.replaced = content, True

    @rule(opened=requests)
    def destroy(self, opened: Any) -> None:
        _, request = opened
        request.session.destroy()
        if request.number is not None:
            request.ended = request.number
        request.number, request.before, request.content = None, {}, {}
        request.replaced = request.regenerated = False

    @rule(opened=requests)
    def regenerate(self, opened: Any) -> None:
        _, request = opened
        request.session.regenerate()
        request.regenerated = request.number is not None

    @rule(opened=consumes(requests))
    def close(self, opened: Any) -> None:
        """The request ends: its changes are merged, or its session is gone."""
        browser, request = opened
        session = request.session
        expected = self.model.commit(request)
        assert request.content == dict(session)
        moved = request.regenerated and expected == "saved"
        before = session._record.id if session._record else None
        try:
            plan = self.manager.plan(session)
            self.run(self.manager.commit(session, plan))
        except SessionGone:
            assert expected == "gone"
            assert session.is_new
            return
        assert expected != "gone"
        record = session._record
        if expected == "created":
            number = next(self.numbers)
            self.model.live[number] = copy.deepcopy(request.content)
            self.model.moves[number] = 0
            request.number = number
        if record is None or request.number is None:
            return  # a dead cookie may stay: its session does not come back
        if moved:
            assert record.id != before
        cookies = self.manager.cookies(session)
        if cookies:
            self.cookies[browser] = (cookies[0].partition(";")[0], request.number)
        else:  # it only read, while another request regenerated the session
            assert not request.changed
            assert request.moves < self.model.moves[request.number]

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
        async def save(self, session_id, change):
            if change.changed:
                change = change._replace(replace=True)
            return await super().save(session_id, change)

    class Wrong(Sessions):
        make_store = staticmethod(WholeDocument)

    Wrong.loop = loop
    with pytest.raises(AssertionError):
        # It ends with the first difference; 500 examples have once not had one.
        check(Wrong, 5_000, 30, [Phase.generate])
