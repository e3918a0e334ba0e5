"""
The rules of the design, each with what it takes to leave it out, and a schedule that
tells the program without it from the one with it.

The schedules are the shortest traces that the search found, or those of the design. A
patch takes a rule out where it is decided, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.property.program.schedule import (
    Attack,
    Deploy,
    Fail,
    Go,
    Lose,
    Plant,
    Revoke,
    Send,
    Step,
    Wait,
)
from tests.property.program.site import NAME
from tornado_compas_session import MemorySessionStore
from tornado_compas_session.core import life as life_module
from tornado_compas_session.core.arrival import CookieJarReader, Doorkeeper
from tornado_compas_session.core.commit import Committer
from tornado_compas_session.core.departure import Departures
from tornado_compas_session.core.life import Life
from tornado_compas_session.core.lifetimes import Lifetimes
from tornado_compas_session.core.manager import SessionManager
from tornado_compas_session.core.plan import Planner
from tornado_compas_session.web.response import HeldResponseMixin

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Control:
    """A rule, and how it is missed."""

    rule: str
    without: Patch
    schedule: tuple[Step, ...]
    #: The invariant that breaks.
    breaks: str
    options: dict[str, Any] = field(default_factory=dict)


# ── who may write ────────────────────────────────────────────────────────────────────


def without_epoch(patch: pytest.MonkeyPatch) -> None:
    """A write goes by the handle alone."""
    unlocked = MemorySessionStore._unlocked

    async def any_epoch(self: Any, handle: str, epoch: int) -> Any:
        row = self._live(handle)
        return None if row is None else await unlocked(self, handle, row.record.epoch)

    patch.setattr(MemorySessionStore, "_unlocked", any_epoch)


def without_current_secret(patch: pytest.MonkeyPatch) -> None:
    """A sign-in that comes too late for the current secret is merged as a write."""
    overtaken, identity = Committer._overtaken, Planner._identity

    async def merged(self: Any, session: Any, step: Any, secret: Any) -> None:
        await overtaken(self, session, step._replace(identity=None), secret)

    def plain(self: Any, session: Any, difference: Any) -> Any:
        if session.life.current:
            return identity(self, session, difference)
        return self._step("save", session, difference)

    patch.setattr(Committer, "_overtaken", merged)
    patch.setattr(Planner, "_identity", plain)


def without_new_secret_for_a_new_user(patch: pytest.MonkeyPatch) -> None:
    """Setting `user_id` is a write like any other."""
    patch.setattr(Planner, "_changes_identity", lambda *args: False)


def with_former_secret_of_another_user(patch: pytest.MonkeyPatch) -> None:
    """The former secret is honoured for the grace whoever has signed in."""
    turn = MemorySessionStore._turn

    def kept(self: Any, row: Any, secret: Any, change: Any) -> Any:
        former = row.record.secret_hash
        turned = turn(self, row, secret, change)
        return turned._replace(record=turned.record._replace(former_hash=former))

    patch.setattr(MemorySessionStore, "_turn", kept)


# ── who comes in ─────────────────────────────────────────────────────────────────────


def without_former_secret(patch: pytest.MonkeyPatch) -> None:
    """Only the current secret opens a session."""
    patch.setattr(Doorkeeper, "_is_former", lambda *args: False)


def without_untilused(patch: pytest.MonkeyPatch) -> None:
    """The former secret ends after the grace, whether the new one was shown or not."""
    former = Doorkeeper._is_former

    def timed(self: Any, record: Any, secret_hash: bytes, waited: float) -> bool:
        shown = record.turned if record.shown is None else record.shown
        return former(self, record._replace(shown=shown), secret_hash, waited)

    patch.setattr(Doorkeeper, "_is_former", timed)


def without_a_lost_answer(patch: pytest.MonkeyPatch) -> None:
    """Signing in needs a secret that nobody has, where the answer with it was lost."""
    patch.setattr(Doorkeeper, "_is_lost", lambda *args: False)


def without_older(patch: pytest.MonkeyPatch) -> None:
    """An id that is older than the former one is an alarm at once."""
    former, fresh = Doorkeeper._is_former, Doorkeeper._is_fresh

    def is_former(self: Any, *args: Any) -> bool:
        patch.setattr(Doorkeeper, "_is_fresh", fresh)
        try:
            return former(self, *args)
        finally:
            patch.setattr(Doorkeeper, "_is_fresh", lambda *args: False)

    patch.setattr(Doorkeeper, "_is_former", is_former)
    patch.setattr(Doorkeeper, "_is_fresh", lambda *args: False)


def without_the_time_at_the_door(patch: pytest.MonkeyPatch) -> None:
    """The grace counts when the body is there, not when the request came."""
    fresh = Doorkeeper._is_fresh
    patch.setattr(
        Doorkeeper, "_is_fresh", lambda self, record, waited: fresh(self, record, 0.0)
    )


def with_alarm_for_what_was_never_shown(patch: pytest.MonkeyPatch) -> None:
    """A former id is an alarm, even if nobody has the new one."""
    alarm = Doorkeeper._alarm

    async def loud(self: Any, record: Any, *args: Any) -> None:
        await alarm(self, record._replace(shown=record.turned), *args)

    patch.setattr(Doorkeeper, "_alarm", loud)


def without_twins(patch: pytest.MonkeyPatch) -> None:
    """A cookie that is set leaves those of its name that are in the way."""
    patch.setattr(Departures, "_clear_twins", lambda *args: [])


def without_several(patch: pytest.MonkeyPatch) -> None:
    """Several cookies of the name are no cookie."""
    find = CookieJarReader.find

    def one(self: Any, lines: Any) -> Any:
        found = find(self, lines)
        return found if len({p.secret_hash for p in found}) == 1 else ()

    patch.setattr(CookieJarReader, "find", one)


def without_sameuser(patch: pytest.MonkeyPatch) -> None:
    """Several sessions are none, even if all are of one user."""

    def choose(self: Any, opened: Any) -> Any:
        found = list(opened.values())
        return found[0] if len(found) == 1 else None

    patch.setattr(Doorkeeper, "_choose", choose)


# ── which cookies leave ──────────────────────────────────────────────────────────────


def without_once(patch: pytest.MonkeyPatch) -> None:
    """A response sends the cookie again that it came with, as the code once did."""
    cookies = SessionManager.cookies

    def again(self: Any, session: Any, **kwargs: Any) -> list[str]:
        found = cookies(self, session, **kwargs)
        page = session._handler and session._handler()
        if found or session.is_new or page is None:
            return found
        own = page.request.headers["Cookie"].partition("=")[2].partition(";")[0]
        return [f"{NAME}={own}; Max-Age=86400; Path=/"]

    patch.setattr(SessionManager, "cookies", again)


def without_a_second_ago(patch: pytest.MonkeyPatch) -> None:
    """A cookie is cleared however long ago its session was found gone."""
    patch.setattr(life_module, "_GONE_FRESH", 1e9)


def without_renewal_of_the_cookie(patch: pytest.MonkeyPatch) -> None:
    """The row lives by its use, and the cookie does not."""
    patch.setattr(Lifetimes, "cookie_is_due", lambda *args: False)


def without_renewal_of_the_row(patch: pytest.MonkeyPatch) -> None:
    """Nor does the row."""
    patch.setattr(Lifetimes, "row_is_due", lambda *args: False)
    patch.setattr(Lifetimes, "cookie_is_due", lambda *args: False)


def without_public_cookie(patch: pytest.MonkeyPatch) -> None:
    """A public cookie that does not follow when its session's is set."""
    told = Departures.set
    patch.setattr(
        Departures,
        "set",
        lambda *args: [text for text in told(*args) if ".public=t" not in text],
    )


def without_the_handlers_own(patch: pytest.MonkeyPatch) -> None:
    """A cookie that the handler clears itself is set again."""
    patch.setattr(Life, "no_cookie", lambda *args: None)


# ── what waits for the commit ────────────────────────────────────────────────────────


def without_the_loop(patch: pytest.MonkeyPatch) -> None:
    """What changes while a write is under way is not written."""

    async def once(
        self: Any, session: Any, *, automatic: bool, begun: Any = None
    ) -> None:
        step = begun.step if begun else session.planned
        step = step or self._planner.next(session, automatic=automatic)
        session.planned = None
        if step is not None:
            await self._write(session, step, begun)

    patch.setattr(Committer, "all", once)


def without_the_last_byte(patch: pytest.MonkeyPatch) -> None:
    """Only `finish()` ends a response, not the last byte of an explicit flush."""
    before = HeldResponseMixin._session_before_end
    patch.setattr(
        HeldResponseMixin,
        "_session_before_end",
        lambda self: self._session_ending and before(self),
    )


def without_muted_watchers(patch: pytest.MonkeyPatch) -> None:
    """The access log hears of a response when it is finished, not when it leaves."""
    mute = HeldResponseMixin._session_mute

    def loud(self: Any) -> None:
        log = self._log
        mute(self)
        self._log = log

    patch.setattr(HeldResponseMixin, "_session_mute", loud)


CONTROLS = (
    Control(
        "epoch",
        without_epoch,
        (Plant(), Attack("write", ("pre",), known=0), Send("login"), Go()),
        "I2",
    ),
    Control(
        "cas",
        without_current_secret,
        (Plant(), Send("login", ("pre",)), Attack("regen", known=0), Go()),
        "I2",
    ),
    Control(
        "a new user is a new secret",
        without_new_secret_for_a_new_user,
        (Plant(), Send("signin")),
        "I2",
    ),
    Control(
        "the former secret is of no use once the user has changed",
        with_former_secret_of_another_user,
        (Plant(), Send("login")),
        "I2",
    ),
    Control(
        "the former secret is good for requests under way",
        without_former_secret,
        (Send("write"), Send("read", ("wire",)), Send("regen"), Go()),
        "I3",
    ),
    Control(
        "untilused",
        without_untilused,
        (Send("write"), Send("regen", ("answer",)), Lose(), Wait(6)),
        "I3",
    ),
    Control(
        "a lost answer",
        without_a_lost_answer,
        (
            *(Send("write"), Wait(4000), Send("read", ("answer",)), Lose()),
            *(Wait(40), Send("login")),
        ),
        "I7",
    ),
    Control(
        "older",
        without_older,
        (
            *(Send("write"), Send("read", ("wire",)), Send("regen"), Send("regen")),
            *(Send("read"), Go()),
        ),
        "I1",
    ),
    Control(
        "the grace counts at the door",
        without_the_time_at_the_door,
        (
            *(Send("write"), Send("read", ("upload",)), Send("regen"), Send("read")),
            *(Wait(6), Go()),
        ),
        "I1",
    ),
    Control(
        "no alarm for what was never shown",
        with_alarm_for_what_was_never_shown,
        (Send("write"), Send("login", ("answer",)), Lose(), Wait(6)),
        "I1",
    ),
    Control(
        "several cookies",
        without_several,
        (Deploy(0, True), Send("login"), Wait(4000), Send("read", process=1)),
        "I1",
    ),
    Control(
        "twins",
        without_twins,
        (
            *(Send("write", ("pre",)), Send("write", ("wire",)), Go()),
            *(Deploy(0, True), Go(), Send("write")),
        ),
        "I3",
    ),
    Control(
        "sameuser",
        without_sameuser,
        (
            *(Send("write"), Send("login", ("wire",)), Send("login", ("upload",))),
            *(Deploy(0, True), Go(), Go()),
        ),
        "I1",
    ),
    Control(
        "once",
        without_once,
        (Send("write"), Send("write", ("answer",)), Send("login"), Go()),
        "I1",
    ),
    Control(
        "a second ago",
        without_a_second_ago,
        (
            *(Send("login"), Revoke(), Send("read", ("pre",)), Wait(1.5)),
            *(Send("login"), Send("write"), Go()),
        ),
        "I3",
    ),
    Control(
        "the cookie is renewed",
        without_renewal_of_the_cookie,
        (Send("login"), Wait(259200), Send("read"), Wait(259200)),
        "I1",
    ),
    Control(
        "the row is renewed",
        without_renewal_of_the_row,
        (Send("login"), Wait(259200), Send("read"), Wait(259200)),
        "I1",
    ),
    Control(
        "the public cookie",
        without_public_cookie,
        (Send("write"),),
        "I9",
        {"keep_public_cookie": True},
    ),
    Control(
        "the handler's own cookie wins",
        without_the_handlers_own,
        (Send("write"), Wait(4000), Send("forget")),
        "I1",
    ),
    Control(
        "one loop commits",
        without_the_loop,
        (Send("write"), Send("hurry")),
        "I3",
    ),
    Control(
        "the last byte waits",
        without_the_last_byte,
        (Send("write"), Send("length")),
        "I5",
    ),
    Control(
        "watchers hear what leaves",
        without_muted_watchers,
        (Send("write"), Send("write", ("commit",)), Fail()),
        "I8",
    ),
)
