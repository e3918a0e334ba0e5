"""
Plays a schedule, keeps the books of what must be true, and says what is not.

The books are those of the design's own model (who must be signed in, what must be
there, which requests are "mixed" with the end of a session and prove nothing); the
excuses are listed in `test_program.py`.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.property.program.browser import Cookie, Jar
from tests.property.program.clock import Clock, settle
from tests.property.program.requests import PUBLIC, Parked, Request
from tests.property.program.schedule import (
    Attack,
    Copy,
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
from tests.property.program.site import DOMAIN, GRACE, MAX_AGE, NAME, STATUS, Site

VICTIMS = ("vera", "victor")
LOGINS = ("login", "signin")
#: After these, nothing that was is promised any more.
ENDS = ("logout", "fill", "clear", "forget")
#: So much earlier than the row the cookie may end: an hour, and one more where an
#: answer with a renewed one was lost.
EARLIER = 2 * 3600.0 + 31.0


class Broken(AssertionError):
    """An invariant does not hold; the trace that led there is the message."""

    def __init__(self, invariant: str, what: str, trace: list[str]) -> None:
        self.invariant = invariant
        self.what = what
        super().__init__("\n  ".join([f"{invariant}: {what}", *trace]))


class Simulation:
    """One browser, perhaps an attacker, and two processes on one store."""

    def __init__(
        self,
        clock: Clock,
        stores: list[Any],
        options: dict[str, Any],
        *,
        move_store: Any = None,
    ) -> None:
        self.clock = clock
        self.store = stores[0]
        self._move_store = move_store
        self.requests: dict[int, Request] = {}
        self.site = Site(clock, stores, self._on_reuse, self.requests, **options)
        self.public = bool(options.get("keep_public_cookie"))
        self.jar = Jar()
        self.draining = False
        self.trace: list[str] = []
        self.lines: list[logging.LogRecord] = []
        self._broken: Broken | None = None
        self._ticks = 0
        self._tasks: list[asyncio.Task[None]] = []
        # ── what must be true
        #: Who must be signed in, and which keys must be there, by the next view.
        self.signed_in: str | None = None
        self.there: set[str] = set()
        self.last_user: str | None = None
        #: Two sign-ins were under way at once, and something of then still is.
        self.twinned = False
        #: When a period of a visitor ended, and which rows have.
        self.ended: dict[int, int] = {}
        self.ended_rows: dict[int | None, int] = {}
        self.turned: dict[int | None, float] = {}
        self.began: dict[int, int] = {}
        self.discarded: set[str] = set()
        self.last_use = 0.0
        self.last_use_sure = False
        #: An answer was lost or a call failed, and until then nobody can know of it.
        self.uncertain_until = 0.0
        #: Rows at the last quiet moment, and whether all since was one by one.
        self.rows = 0
        self.one_by_one = True
        # ── the attacker
        self.attacked = False
        self.known: list[Cookie] = []
        self.known_periods: set[int] = set()
        self.dos_excused = self.overlapped = False
        self.evil: dict[str, Request] = {}

    # ── for the trace ────────────────────────────────────────────────────────────

    def note(self, line: str) -> None:
        self.trace.append(line)

    def tick(self) -> int:
        self._ticks += 1
        return self._ticks

    def broken(self, invariant: str, what: str) -> None:
        """Keeps it: who calls may stand within code that catches everything."""
        if self._broken is None:
            self.note(f"=> {invariant}: {what}")
            self._broken = Broken(invariant, what, self.trace[:])

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken

    # ── playing ──────────────────────────────────────────────────────────────────

    async def play(self, schedule: list[Step]) -> None:
        """Raises `Broken` if an invariant does not hold."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._uncaught)
        with self._listening():
            try:
                for step in schedule:
                    await self._step(step)
                await self._end()
            finally:
                self.draining = True
                await self._abandon()

    async def _step(self, step: Step) -> None:
        match step:
            case Send():
                await self._send(step)
            case Attack():
                await self._attack(step)
            case Go(which):
                if parked := self._parked():
                    request = parked[which % len(parked)]
                    await self._go(request)
            case Lose(which):
                if answers := self._parked("answer"):
                    await self._lose(answers[which % len(answers)])
            case Fail(which):
                if calls := self._parked("load", "commit", "reply"):
                    request = calls[which % len(calls)]
                    assert request.parked is not None
                    request.parked.go(fail=True)
                    await self.settle()
            case Wait(seconds):
                await self._wait(seconds)
            case Deploy(process, domain, keys):
                self.site.deploy(process, domain=domain, keys=keys)
                form = "domain" if self.site.domain[process] else "host-only"
                newer = ", newer key" if self.site.rotated[process] else ""
                self.note(f"process {process} starts anew: {form}{newer}")
            case Revoke():
                await self._revoke()
            case Plant(domain):
                await self._plant(domain)
            case Copy():
                self._copy()
            case _:
                raise TypeError(step)
        self._check()

    def _parked(self, *labels: str) -> list[Request]:
        return [
            request
            for request in self.requests.values()
            if request.parked is not None
            and (not labels or request.parked.label in labels)
        ]

    async def _go(self, request: Request) -> None:
        parked = request.parked
        assert parked is not None
        self.note(f"{request} goes on from: {parked.label}")
        if parked.label == "answer":
            request.parked = None
            self._deliver(request)
        else:
            parked.go()
        await self.settle()

    async def settle(self) -> None:
        """Until everybody waits; answers that nobody holds up arrive."""
        while True:
            await self._idle()
            for request in self.requests.values():
                wire = request.wire
                if request.done:
                    continue
                if wire.finished or wire.closed:
                    if request.parked is not None:
                        continue
                    if "answer" in request.stops and not self.draining:
                        request.stops.discard("answer")
                        request.parked = Parked("answer", self.clock.monotonic())
                        self.note(f"{request} waits: answer ({wire.status})")
                    else:
                        self._deliver(request)
                        break
                elif wire.status is not None and not request.delivered_headers:
                    self._take_headers(request)
                    break
            else:
                return

    async def _idle(self) -> None:
        await settle()
        while self.clock.real and (
            busy := [
                r
                for r in self.requests.values()
                if r.calls and r.parked is None and not r.wire.closed
            ]
        ):
            # A real database is at work.
            await asyncio.sleep(0.0005)
            await settle()
            del busy

    # ── the browser ──────────────────────────────────────────────────────────────

    @property
    def in_flight(self) -> list[Request]:
        return [r for r in self.requests.values() if r.honest and not r.done]

    def _writing(self) -> bool:
        return any(request.kind != "read" for request in self.in_flight)

    def _void(self, *, but: Request | None = None) -> None:
        """Nothing is promised any more, and what is under way proves nothing."""
        self.signed_in = None
        self.there.clear()
        for request in self.in_flight:
            if request is not but:
                request.mixed = max(1, request.mixed)
                request.expects = None
                request.disturbed = True

    async def _send(self, step: Send) -> None:
        others = self.in_flight
        if self.store is None and step.kind != "read" and self._writing():
            return  # without a store, the last answer wins: that is no fault
        request = self._request(
            step.kind,
            step.stops,
            step.process,
            self.jar.header(),
            user=step.user,
            method=step.method,
        )
        login = step.kind in LOGINS
        switches = login and self.last_user not in (None, step.user)
        ends = step.kind in ENDS or switches
        turns = ends or (login and self.signed_in != step.user)
        if login:
            self.last_user = step.user
        request.sent = self.jar.named(NAME)
        request.overtaken = sum(bool(r.wire.status and r.sets) for r in others)
        if others:
            self.overlapped = True
            self.one_by_one = False
            for other in (*others, request):
                other.overlapped = True
        if ends:
            self._void(but=request)
        request.mixed = int(
            (ends and not switches) or any(other.ends for other in others)
        )
        if switches and any(other.kind in (*LOGINS, *ENDS) for other in others):
            request.mixed = 1
        if login and any(other.kind in LOGINS for other in others):
            self.twinned = True
        if step.kind == "replace":
            self.there.clear()
            for other in others:
                other.lossy = True
                other.expects = None
        request.lossy = any(other.kind == "replace" for other in others)
        for other in others:
            if turns:
                other.disturbed, other.expects = True, None
            if other.turns or (turns and other.wire.status and other.sets):
                # It may come with the id before, which is not enough to sign in.
                request.disturbed = True
        request.ends, request.turns = ends, turns
        if not request.disturbed and not request.lossy and step.kind != "replace":
            request.expects = self.signed_in, frozenset(self.there)
        with_ = ", ".join(
            f"{c.domain or 'host'}:{c.origin}" for c in self.jar.named(NAME)
        )
        self.note(
            f"{request} is sent to process {step.process}, with {with_ or 'no cookie'}"
        )
        await self._begin(request)

    def _request(self, kind: str, *args: Any, **kwargs: Any) -> Request:
        number = len(self.requests) + 1
        request = Request(self, number, kind, *args, **kwargs)
        self.requests[number] = request
        return request

    async def _begin(self, request: Request) -> None:
        process = request.process

        def app() -> Any:
            return self.site.processes[process]

        self._tasks.append(request.serve(app))
        await self.settle()

    # ── what requests tell ───────────────────────────────────────────────────────

    def on_view(self, request: Request, content: dict[str, Any]) -> None:
        """Its handler begins, with this session."""
        period = content.get("period")
        ended = self.ended.get(period) if period is not None else None
        if ended is not None and request.loaded_at > ended:
            self.broken("I6", f"{request} sees a session that was ended before")
        row = content.get("row")
        if (
            row is not None
            and self.ended_rows.get(row, self._ticks) < request.loaded_at
        ):
            del self.ended_rows[row]  # whoever ended it came too late
        if not request.honest:
            return
        for key in self.discarded & content.keys():
            self.broken("I3", f"{request} sees {key}, of a request that failed")
        for key in content.keys() & self.evil.keys():
            begun = self.began.get(period) if period is not None else None
            if (
                content.get("user_id") in VICTIMS
                and period not in self.known_periods
                and begun is not None
                and self.evil[key].effective_at > begun
            ):
                self.broken(
                    "I2", f"the attacker wrote {key} into the signed-in session"
                )
        if request.expects is None or (self.attacked and self.dos_excused):
            return
        now = self.clock.time()
        if self.store is None and any(c.ends and c.ends <= now for c in request.sent):
            return  # it was under way for days, and what it carries has expired
        if self.attacked and self.overlapped:
            return
        user, keys = request.expects
        seen = content.get("user_id")
        if user is not None and seen != user:
            who = "by the attacker" if self.attacked else "without having asked for it"
            self.broken("I1", f"{user} is signed out {who}: {request} sees {seen}")
        if self.attacked or self.twinned:
            return
        if missing := keys - content.keys():
            self.broken("I3", f"{request} does not see {sorted(missing)}")

    def on_worked(self, request: Request) -> None:
        if request.honest:
            self.discarded.update(request.discarded)
            before, after = request.content or {}, request.after or {}
            row = before.get("row")
            if row is not None and row != after.get("row"):
                self.ended_rows[row] = self.tick()
        else:
            for key in request.keys:
                self.evil[key] = request

    def on_headers(self, request: Request) -> None:
        """Its headers leave: what it committed is known now."""
        before = request.content or {}
        after = before if request.after is None else request.after
        ok = request.wire.status in (200, 204, STATUS.get(request.kind))
        if not ok:
            return
        self.note(
            f"{request} answers {request.wire.status}"
            + (", sets a cookie" if request.sets else "")
            + (", clears the cookie" if request.clears else "")
        )
        if after.get("period") != before.get("period"):
            if after.get("period") is not None:
                self.began[after["period"]] = request.effective_at
            signed_in = before.get("user_id") is not None
            if before.get("period") is not None and (
                request.kind in ("logout", "fill") or signed_in
            ):
                self.ended.setdefault(before["period"], self.tick())
        if request.kind in ("logout", "fill") and before:
            self.ended_rows[before.get("row")] = self.tick()
        if not request.honest:
            return
        if request.sets:
            # Whatever else happens, from here on only answers under way are late.
            self.turned[request.row] = self.clock.monotonic()
            for other in self.in_flight:
                if other is request:
                    continue
                if other.turns:  # its sign-in has not the current secret any more
                    other.disturbed = True
                if other.content is None:
                    other.overtaken += 1
                    if other.overtaken > 1:
                        other.expects, other.disturbed = None, True
        creates = request.sets and not before
        if creates and self._strange_sign_in(request):
            self.twinned = True
        if creates and not self._strange_sign_in(request):
            rest = [other for other in self.in_flight if other is not request]
            if rest:
                request.mixed = 2
                for other in rest:
                    left = other.wire.status is not None and other.sets
                    other.mixed = 2 if left else max(1, other.mixed)
                    other.expects = None
                    other.disturbed = True
            if request.cookies != self.jar.header():
                request.mixed = 2
                self._void(but=request)

    def _strange_sign_in(self, request: Request) -> bool:
        """
        Whether it is a sign-in whose session was another one's by then ("same" in the
        design): it gets a session of its own, and that must do.
        """
        if request.kind not in LOGINS:
            return False
        return any(
            cookie.origin.row in self.turned
            and cookie.origin.row not in self.ended_rows
            and request.arrived - self.turned[cookie.origin.row] < GRACE - 0.1
            for cookie in request.sent
        )

    def on_left(self, request: Request) -> None:
        """All of its answer has left, or its connection is cut."""

    # ── answers ──────────────────────────────────────────────────────────────────

    def _take_headers(self, request: Request) -> None:
        """The browser sees the headers: its jar changes."""
        if request.delivered_headers:
            return
        request.delivered_headers = True
        if not request.honest:
            return
        now = self.clock.time()
        if request.sets:
            row_dead = request.row in self.ended_rows
            if request.mixed == 2 or row_dead:
                self._void(but=request)
                if request.mixed == 2:
                    # The browser has two sessions, and answers of both may be under
                    # way: each may put its own back.
                    for other in self.in_flight:
                        other.mixed = 2
                request.mixed = 2
        elif request.clears and request.kind not in ENDS:
            self._cleared(request)
        if request.kind == "forget" and request.sets and request.wire.status == 200:
            self.broken("I1", f"{request} sets the cookie that the handler cleared")
        if request.sets:
            self.last_use_sure = True
        for told in request.told:
            self.jar.take(told, now, origin=request)
        if self.public:
            self._check_public(request)

    def _cleared(self, request: Request) -> None:
        """Its load found nothing, a second ago at most: excused, if it was so."""
        sent = request.cookies
        if all(f"{NAME}={c.value}" in sent for c in self.jar.named(NAME)):
            return
        if request.left_at - request.arrived <= 1.0:
            self._void(but=request)

    def _deliver(self, request: Request) -> None:
        """All of its answer arrives."""
        wire = request.wire
        self._take_headers(request)
        request.done = True
        self._check_watcher(request)
        status = wire.status
        expected = STATUS.get(request.kind, 200)
        if wire.closed and not wire.finished:
            self.note(f"{request} is cut off")
            if not self.lines:
                self.broken("I7", f"{request} was cut off without a line in the log")
            self._unknown(request)
            return
        self.note(f"the answer of {request} arrives: {status}")
        if status == 500 and expected != 500:
            self.broken("I7", f"{request} got a 500")
        if not request.honest:
            self._attacker_gets(request)
            return
        if status != expected:
            if status == 503 and not request.failed:
                # The model lets calls fail; a time limit is one that it moved over.
                request.failed = True
            if status == 503:
                self._unknown(request)
            self._check_refusal(request)
            self._quiet()
            return
        # A failure discards all that it did, and is no use of the session.
        if request.content and self.store is not None and expected < 500:
            self.last_use = max(self.last_use, request.arrived_at)
            if request.arrived > self.uncertain_until:
                self.last_use_sure = True  # a cookie that was lost is made anew
        elif request.sets:
            self.last_use = request.arrived_at
        if not request.mixed:
            if request.kind in LOGINS:
                self.signed_in = request.user
            if not request.lossy:
                self.there.update(request.keys)
        self._quiet()

    def _check_refusal(self, request: Request) -> None:
        """A 409 or a 503 must have a reason."""
        excused = (
            request.failed
            or request.disturbed
            or self.attacked
            or request.arrived <= self.uncertain_until
            or request.mixed
        )
        if not excused:
            self.broken("I7", f"{request} got a {request.wire.status} without a reason")

    def _unknown(self, request: Request) -> None:
        """Nobody can know whether it happened, and its cookie is lost if it did."""
        self._uncertain()
        if request.kind in (*LOGINS, *ENDS) or not request.content:
            self._void(but=request)

    def _uncertain(self) -> None:
        """While the answer, and a request sent before it, might still be under way."""
        self.one_by_one = False
        self.last_use_sure = False
        self.uncertain_until = self.clock.monotonic() + 2 * GRACE

    async def _lose(self, request: Request) -> None:
        """Its answer never arrives."""
        request.parked = None
        request.done = True
        self.note(f"the answer of {request} is lost")
        self._check_watcher(request)
        self._uncertain()
        if request.honest and request.told_session:
            creates = request.sets and not request.content
            if request.kind in LOGINS or creates:
                self._void(but=request)
        self._quiet()
        await self.settle()

    def _check_watcher(self, request: Request) -> None:
        """Log and `on_finish` heard, once, the status that the client gets."""
        wire = request.wire
        for what, heard in (
            ("on_finish", request.on_finish),
            ("log_function", request.logged),
        ):
            if len(heard) != 1:
                self.broken("I8", f"{what} of {request} ran {len(heard)} times")
            elif wire.finished and heard != [wire.status]:
                self.broken(
                    "I8",
                    f"{what} of {request} heard {heard[0]}, the client {wire.status}",
                )

    def _check_public(self, request: Request) -> None:
        """The public cookie goes exactly with the session's."""
        now = self.clock.time()

        def seen(name: str) -> list[Any]:
            return sorted(
                (t.domain, t.expired(now), t.attributes.get("max-age"))
                for t in request.told
                if t.name == name
            )

        if request.kind != "forget" and seen(NAME) != seen(PUBLIC):
            self.broken("I9", f"the public cookie of {request} goes another way")

    # ── quiet moments ────────────────────────────────────────────────────────────

    def _quiet(self) -> None:
        if self.in_flight:
            return
        self._count_soon = True
        if self.twinned:
            self.twinned = False
            self.there.clear()

    _count_soon = False

    async def _count(self) -> None:
        """At most one live session for the browser."""
        if not self._count_soon or self.in_flight or self.attacked:
            return
        self._count_soon = False
        if self.store is None:
            return
        rows = int((await self.store.stats())["live"])
        if self.one_by_one and rows > max(1, self.rows):
            self.broken("I4", f"{rows} live sessions, and the browser needs one")
        self.rows, self.one_by_one = rows, True

    # ── time ─────────────────────────────────────────────────────────────────────

    async def _wait(self, seconds: float) -> None:
        """Time passes. What would be on the wire for the grace arrives before."""
        on_the_wire = "wire", "answer", "reply"
        while True:
            now = self.clock.monotonic()
            late = [
                request
                for request in self._parked(*on_the_wire)
                if request.parked and now + seconds - request.parked.since >= GRACE
            ]
            if not late:
                break
            await self._go(late[0])
            self._check()
        self.note(f"{seconds:g} s pass")
        self.clock.moved += seconds
        if self._move_store is not None:
            await self._move_store(seconds)
        ended = self.jar.drop_ended(self.clock.time())
        idle = self.clock.time() - self.last_use
        if self.jar.named(NAME) and idle >= MAX_AGE - EARLIER:
            self.note("the session may have expired")
            self._void()
            self.one_by_one = False
        left = self.jar.named(NAME)
        if not left and any(cookie.name == NAME for cookie in ended):
            if self.signed_in and self.last_use_sure and idle < MAX_AGE - EARLIER:
                self.broken("I1", f"the cookie ended {idle:g} s after its use")
            self.note("the cookie has ended")
            self._void()
            self.one_by_one = False
        await self.settle()

    # ── what else happens ────────────────────────────────────────────────────────

    async def _revoke(self) -> None:
        if self.store is None:
            return
        self.note("all sessions of the user are ended")
        for user in VICTIMS:
            await self.store.revoke_user(user)
        for request in self.requests.values():
            self.ended_rows[request.row] = self.tick()
        self._void()

    def _on_reuse(self, retired: Any) -> None:
        self.note("on_reuse")
        if not self.attacked:
            self.broken("I1", "the alarm is raised against the honest browser")

    # ── the attacker ─────────────────────────────────────────────────────────────

    async def _attack(self, step: Attack) -> None:
        self.attacked = True
        cookies = ""
        if step.known is not None and self.known:
            cookie = self.known[step.known % len(self.known)]
            cookies = f"{NAME}={cookie.value}"
            with_ = f"the id of {cookie.origin}"
        else:
            with_ = "no id"
        request = self._request(
            step.kind, step.stops, step.process, cookies, honest=False
        )
        self.note(f"{request} is sent with {with_}")
        await self._begin(request)

    def _attacker_gets(self, request: Request) -> None:
        now = self.clock.time()
        for told in request.told_session:
            if not told.expired(now):
                self.known.append(Cookie(NAME, None, told.value, None, request))
        for content in request.bodies:
            user, period = content.get("user_id"), content.get("period")
            if user in VICTIMS and period not in self.known_periods:
                self.broken("I2", f"{request} sees the signed-in session of {user}")

    def _copy(self) -> None:
        self.attacked = True
        for cookie in self.jar.named(NAME):
            self.known.append(cookie)
            after = getattr(cookie.origin, "after", None) or {}
            if after.get("user_id") in VICTIMS:
                self.known_periods.add(after["period"])
                self.dos_excused = True
            self.note(f"the attacker copies the cookie of {cookie.origin}")

    async def _plant(self, domain: bool) -> None:
        self.attacked = True
        mine = [c for c in self.known if not c.origin.honest]
        if not mine:
            await self._step(Attack("write"))
            mine = [c for c in self.known if not c.origin.honest]
        if not mine:
            return
        cookie = mine[-1]
        form = DOMAIN if domain else None
        self.note(f"the attacker plants the id of {cookie.origin} ({form or 'host'})")
        self.jar.plant(Cookie(NAME, form, cookie.value, None, cookie.origin))
        if domain and not all(self.site.domain):
            self.dos_excused = True
        self._void()

    # ── the end ──────────────────────────────────────────────────────────────────

    async def _end(self) -> None:
        """Everything arrives; then the browser and the attacker look once more."""
        self.draining = True
        while parked := self._parked():
            await self._go(parked[0])
            self._check()
        for seconds in (0.0, GRACE + 2):
            if seconds:
                await self._wait(seconds)
            for request in self.requests.values():
                if not request.done and seconds:
                    self.broken("I7", f"{request} has no answer")
            await self._count()
            self._check()
            await self._step(Send("read"))
            await self._step(Send("read", process=1))
            for known in range(len(self.known)):
                await self._step(Attack("read", known=known))

    async def _abandon(self) -> None:
        """Nothing of this goes on."""
        for request in self.requests.values():
            if request.parked is not None:
                request.parked.gate.cancel()
        await settle()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if not self.clock.real:
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _uncaught(self, loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if "never retrieved" not in context["message"]:  # whenever it is collected
            self.broken("I7", f"nobody caught: {error or context['message']}")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """What is logged is kept, and not shown."""
        keeper = _Keeper(self)
        loggers = [
            logging.getLogger(name)
            for name in ("tornado", "tornado_compas_session", "asyncio")
        ]
        before = [logger.propagate for logger in loggers]
        for logger in loggers:
            logger.propagate = False
            logger.addHandler(keeper)
        try:
            yield
        finally:
            for logger, propagate in zip(loggers, before, strict=True):
                logger.removeHandler(keeper)
                logger.propagate = propagate


class _Keeper(logging.Handler):
    def __init__(self, simulation: Simulation) -> None:
        super().__init__(logging.WARNING)
        self._simulation = simulation

    def emit(self, record: logging.LogRecord) -> None:
        self._simulation.lines.append(record)
        line = f"log: {record.getMessage()}"
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            where = traceback.extract_tb(error.__traceback__)[-1:]
            line += f" ({error!r} at {where})"
        self._simulation.note(line)
