"""
`SessionManager`: sessions without HTTP. Which session a cookie means, what a request's
changes come to, how they are committed, and which cookies follow.

The mixin only translates: request to `load`, response to `plan`, `commit`, `cookies`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import NamedTuple, TypeVar

from tornado_compas_session.cookies.signing import KeyRing, RecentSignatures, Signed
from tornado_compas_session.cookies.text import CookieWriter, cookie_reader
from tornado_compas_session.core.deadlines import Deadlines
from tornado_compas_session.core.ids import handle_of, hash_id, new_id, parse_id
from tornado_compas_session.core.protocols import SessionStore
from tornado_compas_session.core.session import Session
from tornado_compas_session.core.types import (
    RetiredId,
    Saved,
    SessionChange,
    SessionRecord,
)
from tornado_compas_session.exceptions import (
    ResponseAlreadySent,
    SessionDataError,
    SessionError,
    SessionGone,
    SessionIdTaken,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.settings import MAX_MAX_AGE, SessionOptions

logger = logging.getLogger("tornado_compas_session")
T = TypeVar("T")
Reader = tuple[
    Callable[[Iterable[str]], list[str]], Callable[[str], "Presented | None"]
]

#: A signature is good for as long as any cookie; the store decides about the session.
_SIGNATURE_MAX_AGE = MAX_MAX_AGE + 24 * 60 * 60
_ID_TRIES = 3
#: Seconds for which a regeneration is remembered, for the slow requests beside it.
_REGENERATED_KEPT = 60.0

#: What an application may hang on `on_reuse`: called with the `RetiredId`.
ReuseHook = Callable[[RetiredId], Awaitable[object] | None]


class Presented(NamedTuple):
    """A session id that came in a cookie and was verified."""

    id: str
    #: Signed by an older key, or under an older name: sent anew on sight.
    outdated: bool


class Plan(NamedTuple):
    """What a request's end comes to; with no verb, only the end of other sessions."""

    verb: str | None = None
    change: SessionChange = SessionChange()
    doomed: tuple[str, ...] = ()
    #: The `Session._replaced` that the change was made from.
    mark: object = None


class SessionManager:
    """
    Loads, commits and ends the sessions of one application.

    Every call of the store is bounded by the option `timeout`; whatever fails in it
    becomes a `StoreError`, so that no trouble can pass for an anonymous visitor.
    """

    def __init__(
        self,
        options: SessionOptions,
        keys: KeyRing,
        store: SessionStore,
        *,
        on_reuse: ReuseHook | None = None,
        new_id: Callable[[], str] = new_id,
    ) -> None:
        self.options = options
        self.keys = keys
        self.store = store
        self._on_reuse = on_reuse
        self._new_id = new_id
        self._idle = options.idle
        #: Over so many seconds left, no session is due unless its own idle lifetime is
        #: longer: all else only shortens them.
        self._recent = self._idle - min(options.renew or 0, self._idle / 10)
        self._cookie = CookieWriter(options)
        self._public = CookieWriter(options, options.key + ".public", public=True)
        self._old_cookies = [CookieWriter(options, n) for n in options.previous_keys]
        self._log_key = next(iter(keys.versions.values())).encode()
        self._deadlines = Deadlines(options.timeout)
        self._warned: set[str] = set()
        self._refused = 0
        self._refused_logged = -math.inf
        #: Ids that were regenerated here a moment ago, and when.
        self._regenerated: dict[str, float] = {}

    @property
    def keys(self) -> KeyRing:
        """What cookies are signed with; others may be set while requests come in."""
        return self._keys

    @keys.setter
    def keys(self, keys: KeyRing) -> None:
        self._keys = keys
        options = self.options
        self._signatures = RecentSignatures(
            keys, options.key, _SIGNATURE_MAX_AGE, self._presented
        )
        #: For each name: what finds the values of its cookies, and what verifies one.
        own, *former = options.cookie_names
        verify = self._signatures.verify if options.signed else self._unsigned
        self._readers: list[Reader] = [(cookie_reader(own), verify)]
        for name in former:
            self._readers.append((cookie_reader(name), partial(self._former, name)))

    # ── the beginning of a request ───────────────────────────────────────────────

    def find(self, cookie_lines: Iterable[str]) -> Presented | None:
        """The one verified session id in the Cookie headers, if there is just one."""
        for read, verify in self._readers:
            values = read(cookie_lines)
            if not values:
                continue
            verified = [*filter(None, map(verify, values))]
            if verified:
                first = verified[0]
                if len(verified) == 1 or all(p.id == first.id for p in verified):
                    return first
                # Which one is the visitor's cannot be known (RFC 6265bis, 4.2.2).
                self._warn_once(
                    "several",
                    "a request came with several valid session cookies of different "
                    "sessions and is treated as anonymous; are there cookies of two "
                    "domains or paths?",
                )
                return None
            self._log_refused()
        return None

    def _log_refused(self) -> None:
        """At most a line a second, however many a stranger sends."""
        self._refused += 1
        now = time.monotonic()
        if now - self._refused_logged >= 1:
            self._refused_logged = now
            logger.info(
                "%d session cookies refused so far: signature, age or shape",
                self._refused,
            )

    def _unsigned(self, text: str) -> Presented | None:
        return self._presented(Signed(text.encode("latin-1", "replace"), False))

    def _former(self, name: str, text: str) -> Presented | None:
        if self.options.signed:
            signed = self.keys.verify(name, text, _SIGNATURE_MAX_AGE)
            found = signed and self._presented(signed)
        else:
            found = self._unsigned(text)
        return found and found._replace(outdated=True)

    def _presented(self, signed: Signed) -> Presented | None:
        session_id = parse_id(signed.value)
        return None if session_id is None else Presented(session_id, signed.old_key)

    async def load(self, presented: Presented) -> Session:
        """
        The session of a request: that of its cookie if it is live, else a new one.

        An id that the store does not know is never adopted. Raises `StoreError`.
        """
        found = await self._bounded(self.store.load(presented.id))
        if isinstance(found, RetiredId):
            await self._reused(found)
            # Its cookie is not cleared: the browser may hold the new one already.
            return Session(self)
        if found is not None and self._ended(found):
            found = None
        return Session(self, found, presented)

    def _ended(self, record: SessionRecord) -> bool:
        """Over its absolute lifetime, which may have been shortened since."""
        absolute = record.own_absolute
        if absolute is None:
            absolute = self.options.absolute_max_age
        return absolute is not None and record.created + absolute <= record.now

    async def _reused(self, retired: RetiredId) -> None:
        logger.warning(
            "session %s: an id from before its regeneration was used after the grace; "
            "somebody may have stolen it",
            retired.handle[:12],
        )
        if self._on_reuse is not None:
            outcome = self._on_reuse(retired)
            if outcome is not None:
                await outcome

    async def is_live(self, session: Session) -> bool:
        """
        Whether the session of an open WebSocket lives; True while that is not known.

        An id that was regenerated elsewhere is followed during its grace.
        """
        record = session._record
        if record is None:
            return False
        try:
            found = await self._bounded(self.store.load(record.id))
        except StoreError:
            return True
        if not isinstance(found, SessionRecord) or self._ended(found):
            return False
        session._record = record._replace(
            id=found.id, expires=found.expires, now=found.now
        )
        return True

    # ── the end of a request ─────────────────────────────────────────────────────

    def plan(self, session: Session, *, automatic: bool = True) -> Plan | None:
        """
        What there is to save, if anything; decided once, before the response leaves.

        Raises `SessionDataError` for what cannot be kept, and `ResponseAlreadySent` for
        what needs a cookie too late.
        """
        if automatic and not self.options.auto_commit:
            # An end is not kept waiting: its cookie is cleared with this response.
            return self._ends(session) or self._renewal(session)
        if session.untouched:
            return self._renewal(session)
        change = session.change()
        record = session._record
        verb: str | None = None
        if record is None:
            if change.changed:
                verb = "create"
        elif session._regenerate and not self._came_retired(session):
            verb = "regenerate"
        elif not change.only_renews:
            verb = "save"
        if verb is None:
            return self._ends(session) or self._renewal(session)
        if session._sealed and verb != "save":
            raise ResponseAlreadySent(session._sealed)
        if session._insecure and verb != "save":
            self._warn_once(
                "insecure",
                "a session was not saved, because its cookie is Secure and the request "
                "came over plain http; behind a proxy that speaks https, start the "
                "server with xheaders=True (docs/cookies.md)",
            )
            return self._ends(session)
        self._check_size(session, change)
        return Plan(
            verb,
            self._with_lifetime(session, change),
            session._doomed,
            session._replaced,
        )

    def _ends(self, session: Session) -> Plan | None:
        return Plan(doomed=session._doomed) if session._doomed else None

    def _check_size(self, session: Session, change: SessionChange) -> None:
        size, most = session.size(change), self.options.max_data_size
        if size > most:
            raise SessionDataError(
                "all of it", f"{size} bytes of JSON, and max_data_size is {most}"
            )

    def _came_retired(self, session: Session) -> bool:
        """
        Whether the request came with the id from before a regeneration, in its grace.

        It gets the new cookie; regenerating once more would do no good, and log out
        the requests that came with it.
        """
        return (
            session._record is not None
            and session.cookie is not None
            and session.cookie.id != session._record.id
            and not session._fresh
        )

    def _renewal(self, session: Session) -> Plan | None:
        record, every = session._record, self.options.renew
        if record is None or every is None:
            return None
        remaining = record.expires - record.now
        if remaining > self._recent and session._own_idle is None:
            return None  # as with most requests
        idle, absolute = self.lifetime(session)
        full: float = idle
        if absolute is not None:
            full = min(full, record.created + absolute - record.now)
        # A short lifetime is renewed more often, so that use always extends it.
        if remaining > full - min(every, idle / 10):
            return None
        return Plan("save", self._with_lifetime(session, SessionChange()))

    def _with_lifetime(self, session: Session, change: SessionChange) -> SessionChange:
        options = self.options
        renewing = options.renew is not None or session._record is None or change.own
        agent, address = session._client or (None, None)
        return change._replace(
            idle=float(self._default_idle(session)) if renewing else None,
            absolute=options.absolute_max_age,
            user_agent=agent,
            address=address,
        )

    async def commit(self, session: Session, plan: Plan | None) -> None:
        """
        Makes the plan durable, or raises; without one there is nothing to do.

        Raises `StoreError`, or `SessionGone` if another request ended the session whose
        data this one changed; one that only renewed becomes a new session quietly.
        """
        if plan is None:
            return
        saved: Saved | None = None
        if plan.verb == "create":
            saved = await self._with_new_id(
                lambda new: self.store.create(new, plan.change)
            )
            self._log("created", saved)
        elif plan.verb is not None:
            record = session._record
            assert record is not None
            if plan.verb == "regenerate":
                saved = await self._with_new_id(
                    lambda new: self.store.regenerate(
                        record.id, new, plan.change, self.options.regenerate_grace
                    )
                )
                if saved is not None:
                    self._log("regenerated", saved)
                    self._remember_regenerated(record.id)
            if saved is None:
                # Another request has regenerated it first: this is the same session.
                saved = await self._bounded(self.store.save(record.id, plan.change))
            if saved is None:
                session._begin(None)
                if not plan.change.only_renews or plan.verb == "regenerate":
                    raise SessionGone
        if saved is not None:
            session.committed(saved, plan.change, plan.mark)
            session._regenerate = False
            allowed = self.options.max_sessions_per_user
            if allowed is not None:
                await self._bound_user(session, plan, allowed)
        for session_id in plan.doomed:
            await self._bounded(self.store.delete(session_id))
            self._log("destroyed", session_id)
        session._doomed = session._doomed[len(plan.doomed) :]

    async def _with_new_id(self, attempt: Callable[[str], Awaitable[T]]) -> T:
        for _ in range(_ID_TRIES):
            try:
                return await self._bounded(attempt(self._new_id()))
            except SessionIdTaken:
                continue
        raise StoreError(
            f"{_ID_TRIES} random session ids in a row were taken; "
            "is the random number generator broken?"
        )

    async def _bound_user(self, session: Session, plan: Plan, allowed: int) -> None:
        """Ends the longest unused sessions of a user who has too many."""
        if plan.verb == "save" and "user_id" not in plan.change.changed:
            return
        user_id = session.get("user_id")
        revoke_oldest = getattr(self.store, "revoke_oldest", None)
        if user_id is not None and revoke_oldest is not None:
            await self._bounded(revoke_oldest(user_id, allowed=allowed))

    def cookies(self, session: Session) -> list[str]:
        """
        The Set-Cookie headers of a response, for the session as it is committed now.

        A live session's cookie goes out; one that the store says is gone is cleared;
        a cookie that could not be verified is never touched.
        """
        record, presented = session._record, session.cookie
        public = self.options.keep_public_cookie
        if record is not None:
            if session._insecure and presented is None:
                return []
            if record.id in self._regenerated:
                # Another request has regenerated it while this one only read. The old
                # id must not get back into the browser, nor the new one to whoever
                # knew the old one: within the grace, the store tells it.
                return []
            if not (
                self.options.overwrite
                or session._fresh
                or presented is None
                or presented.id != record.id
                or presented.outdated
            ):
                return []
            max_age = self._cookie_max_age(session, record)
            headers = [self._cookie.set(self._value(record), max_age)]
            if public:
                headers.append(self._public.set("truthy", max_age))
            return headers
        if presented is None:
            return []
        headers = [self._cookie.clear()]
        if public:
            headers.append(self._public.clear())
        headers += [cookie.clear() for cookie in self._old_cookies]
        return headers

    def _remember_regenerated(self, session_id: str) -> None:
        now = time.monotonic()
        while self._regenerated:
            first = next(iter(self._regenerated))
            if now - self._regenerated[first] < _REGENERATED_KEPT:
                break
            del self._regenerated[first]
        self._regenerated[session_id] = now

    def _value(self, record: SessionRecord) -> str:
        if self.options.signed:
            return self._signatures.sign(record.id)
        return record.id

    def _cookie_max_age(self, session: Session, record: SessionRecord) -> int | None:
        if self.ends_with_browser(session):
            return None
        idle, absolute = self.lifetime(session)
        if self.options.renew is None:
            remaining = record.expires - record.now
        elif absolute is None:
            # Within `renew` seconds the row lags behind; the cookie starts afresh.
            return idle
        else:
            remaining = min(idle, record.created + absolute - record.now)
        return max(1, math.ceil(remaining - 0.001))

    # ── for the session (its `Keeper`) ───────────────────────────────────────────

    async def save(self, session: Session) -> None:
        """Commits what changed so far; see `Session.save`."""
        if session._locked is not None:
            raise SessionError(
                "inside lock() the session is saved at the end of the block; "
                "leave the call of save() out"
            )
        await self.commit(session, self.plan(session, automatic=False))

    async def reload(self, session: Session) -> None:
        """Takes the session afresh; see `Session.reload`."""
        record = session._record
        found: SessionRecord | RetiredId | None = None
        if record is not None:
            found = await self._bounded(self.store.load(record.id))
        if isinstance(found, SessionRecord) and not self._ended(found):
            session._begin(found)
        else:
            session._begin(None)
            if record is not None:
                raise SessionGone

    def lock(
        self, session: Session, timeout: float | None
    ) -> AbstractAsyncContextManager[None]:
        """Locks the session for the length of the block; see `Session.lock`."""
        return self._lock(session, timeout)

    @asynccontextmanager
    async def _lock(
        self, session: Session, timeout: float | None
    ) -> AsyncIterator[None]:
        if session._locked is not None:
            raise SessionError("lock() is open already; it cannot be nested")
        if session._record is None:
            # Nobody else knows an id of it, so there is nobody to keep out.
            yield
            await self.save(session)
            return
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ended.add_done_callback(lambda future: future.exception())
        pending = session.change()
        seconds = self.options.timeout if timeout is None else timeout
        try:
            async with self.store.lock(session._record.id, seconds) as locked:
                if locked is None:
                    session._begin(None)
                    raise SessionGone
                session._locked = ended
                session.rebase(locked.record, pending)
                try:
                    yield
                    change = session.change()
                    mark = session._replaced
                    saved = None
                    live = session._record is not None
                    if live and not change.only_renews:
                        self._check_size(session, change)
                        change = self._with_lifetime(session, change)
                        saved = await locked.save(change)
                except BaseException:
                    if session._record is not None:
                        session.rebase(locked.record, pending)
                    raise
            if saved is not None:
                session.committed(saved, change, mark)
            ended.set_result(None)
        except Exception as error:
            ended.set_exception(error)
            raise
        finally:
            if not ended.done():
                ended.set_exception(SessionError("the block of lock() was cancelled"))
            session._locked = None

    def lifetime(self, session: Session) -> tuple[int, int | None]:
        """The idle and the absolute lifetime of a session, its own ones first."""
        own, absolute = session._own_idle, session._own_absolute
        idle = self._default_idle(session) if own is None else abs(own)
        return idle, self.options.absolute_max_age if absolute is None else absolute

    def ends_with_browser(self, session: Session) -> bool:
        """Whether the cookie of a session has no lifetime of its own."""
        own = session._own_idle
        return (self.options.max_age if own is None else own) < 0

    def _default_idle(self, session: Session) -> int:
        shorter = self.options.anonymous_max_age
        if shorter is not None and self._anonymous(session):
            return min(shorter, self._idle)
        return self._idle

    def _anonymous(self, session: Session) -> bool:
        if session._data is None:  # not decoded: then it is as it was loaded
            return session._record is None or session._record.authenticated is None
        return session._data.get("user_id") is None

    def handle(self, session: Session) -> str | None:
        """The handle of a session; None if it is new."""
        record = session._record
        return None if record is None else handle_of(hash_id(record.id))

    # ── inside ───────────────────────────────────────────────────────────────────

    async def _bounded(self, work: Awaitable[T]) -> T:
        """
        Awaits the store within the time limit; all that goes wrong is a `StoreError`.
        """
        try:
            return await self._deadlines.run(work)
        except SessionError:
            raise
        except TimeoutError as error:
            raise StoreUnavailable(
                "the session store did not answer within "
                f"{self.options.timeout:g} seconds"
            ) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # A driver's, whose other caller left. It would hang the connection on
            # Tornado 6.5, and is no reason to treat the visitor as anonymous.
            raise StoreUnavailable(
                "the call of the session store was cancelled"
            ) from None
        except Exception as error:
            raise StoreError(
                f"the session store failed: {type(error).__name__}"
            ) from error

    def _log(self, event: str, what: Saved | str) -> None:
        if logger.isEnabledFor(logging.INFO):
            session_id = what if isinstance(what, str) else what.id
            digest = hmac.new(self._log_key, session_id.encode(), "sha256").hexdigest()
            logger.info("session %s %s", digest[:12], event)

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning(message)
