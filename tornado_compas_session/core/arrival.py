"""
Which session a request's cookies mean.

A cookie is verified before anything is asked of the store. Then the row says whether
the secret in it is the current one, the one before, or of no use any more.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from tornado_compas_session.browsers import MAX_MAX_AGE
from tornado_compas_session.cookies.signing import KeyRing, RecentSignatures, Signed
from tornado_compas_session.cookies.text import cookie_reader
from tornado_compas_session.core.events import Events
from tornado_compas_session.core.ids import hash_secret, parse_id
from tornado_compas_session.core.session import Session
from tornado_compas_session.core.types import RetiredId, SessionRecord, user_of
from tornado_compas_session.settings import SessionOptions

logger = logging.getLogger("tornado_compas_session")

#: A signature is good for as long as any cookie; the store decides about the session.
_SIGNATURE_MAX_AGE = MAX_MAX_AGE + 24 * 60 * 60
#: The alarm rings once in so many seconds for each session.
_ALARM_PAUSE = 60.0

#: What an application may hang on `on_reuse`: called with the `RetiredId`.
ReuseHook = Callable[[RetiredId], Awaitable[object] | None]


class Presented(NamedTuple):
    """A session id that came in a cookie and was verified."""

    handle: str
    secret_hash: bytes
    #: Signed by an older key, or under an older name: sent anew with a new secret.
    outdated: bool


def opens(shown: Presented, record: SessionRecord) -> bool:
    """Whether what the browser has shown is the row's current secret."""
    return hmac.compare_digest(shown.secret_hash, record.secret_hash)


Reader = tuple[Callable[[Iterable[str]], list[str]], Callable[[str], Presented | None]]


class CookieJarReader:
    """Finds the session ids in Cookie headers, and verifies them."""

    #: Hears what happens, if somebody wants to know.
    tell: Events | None = None

    def __init__(self, options: SessionOptions, keys: KeyRing) -> None:
        self.options = options
        self.signatures = RecentSignatures(
            keys, options.key, _SIGNATURE_MAX_AGE, _presented
        )
        self._keys = keys
        #: For each name: what finds the values of its cookies, and what verifies one.
        own, *former = options.cookie_names
        verify = self.signatures.verify if options.signed else _unsigned
        self._readers: list[Reader] = [(cookie_reader(own), verify)]
        for name in former:
            self._readers.append((cookie_reader(name), partial(self._former, name)))
        self._refused = 0
        self._refused_logged = -math.inf

    def find(self, cookie_lines: Iterable[str]) -> tuple[Presented, ...]:
        """
        The verified session ids in the Cookie headers, under the first name that has
        some: nearly always one or none.
        """
        for read, verify in self._readers:
            values = read(cookie_lines)
            if not values:
                continue
            verified = [presented for value in values if (presented := verify(value))]
            if verified:
                return tuple(verified)
            self._log_refused()
        return ()

    def _log_refused(self) -> None:
        """At most a line a second, however many a stranger sends."""
        self._refused += 1
        if self.tell is not None:
            self.tell("session.refused", reason="cookie", handle=None)
        now = time.monotonic()
        if now - self._refused_logged >= 1:
            self._refused_logged = now
            logger.info(
                "%d session cookies refused so far: signature, age or shape",
                self._refused,
            )

    def _former(self, name: str, text: str) -> Presented | None:
        if self.options.signed:
            signed = self._keys.verify(name, text, _SIGNATURE_MAX_AGE)
            found = signed and _presented(signed)
        else:
            found = _unsigned(text)
        return found and found._replace(outdated=True)


def _presented(signed: Signed) -> Presented | None:
    parsed = parse_id(signed.value)
    if parsed is None:
        return None
    handle, secret = parsed
    return Presented(handle, hash_secret(secret), signed.old_key)


def _unsigned(text: str) -> Presented | None:
    return _presented(Signed(text.encode("latin-1", "replace"), False))


class Doorkeeper:
    """Lets a request in to the session that its cookies open, if one does."""

    #: Hears what happens, if somebody wants to know.
    tell: Events | None = None

    def __init__(self, options: SessionOptions, on_reuse: ReuseHook | None) -> None:
        self.options = options
        self._on_reuse = on_reuse
        self._warned_of_several = False
        #: When the alarm last rang, for each session, the longest ago first.
        self._alarmed: dict[str, float] = {}

    async def admit(
        self,
        session: Session,
        presented: Sequence[Presented],
        records: Mapping[str, SessionRecord | None],
        waited: float,
    ) -> None:
        """
        Starts the session with the row that the cookies open.

        `waited` is how many seconds ago the request began to come in: the grace of a
        former secret counts at the door, not after an upload.
        """
        session.life.came_with(len(presented))
        opened: dict[str, tuple[SessionRecord, Presented]] = {}
        strangers: list[SessionRecord] = []
        for each in presented:
            record = records[each.handle]
            if record is None:
                continue
            if opens(each, record):
                opened[each.handle] = record, each
            elif self._is_former(record, each.secret_hash, waited):
                opened.setdefault(each.handle, (record, each))
            else:
                strangers.append(record)
        chosen = self._choose(opened)
        if chosen is not None:
            record, each = chosen
            session.start(record)
            self.let_in(session, record, each, waited)
        elif opened:
            return
        for record in strangers:
            if record.handle in opened:
                continue  # it came along with the id that is good
            if self._is_fresh(record, waited):
                if chosen is None:
                    session.life.found_strange(user_of(record))
            else:
                await self._alarm(record)
        if not opened and not strangers:
            session.life.found_nothing(waited)

    def let_in(
        self, session: Session, record: SessionRecord, shown: Presented, waited: float
    ) -> None:
        """The session is of this row, which was opened by what was shown."""
        session.life.found(
            record,
            shown.secret_hash,
            outdated=shown.outdated,
            supersedes=self._is_lost(record, waited),
        )

    def _choose(
        self,
        opened: Mapping[str, tuple[SessionRecord, Presented]],
    ) -> tuple[SessionRecord, Presented] | None:
        """
        The one session that is the visitor's, of those that their cookies open.

        Of several of one user the newest. Of several visitors' none: which of them is
        this one's cannot be known (RFC 6265bis, section 4.2.2).
        """
        found = list(opened.values())
        if len(found) < 2:
            return found[0] if found else None
        users = {user_of(record) for record, _ in found}
        if len(users) == 1 and users != {None}:
            return max(found, key=lambda pair: pair[0].created)
        if not self._warned_of_several:
            self._warned_of_several = True
            logger.warning(
                "a request came with several valid session cookies of different "
                "sessions and is treated as anonymous; are there cookies of two "
                "domains or paths?"
            )
        return None

    def _is_former(
        self, record: SessionRecord, secret_hash: bytes, waited: float
    ) -> bool:
        """
        Whether it is the secret before this one, and still honoured: until the browser
        has shown the new one, and for the grace after that.
        """
        former = record.former_hash
        if former is None or not hmac.compare_digest(secret_hash, former):
            return False
        return record.shown is None or self._is_fresh(record, waited)

    def _is_lost(self, record: SessionRecord, waited: float) -> bool:
        """
        Whether the answer with the current secret must have been lost: nobody has shown
        it, and no answer, nor a request sent before it came, is under way so long.

        Without this nobody could sign in to the session any more, nor renew its cookie:
        both need the current secret, and nobody has it.
        """
        since = record.turned + 2 * self.options.regenerate_grace
        return record.shown is None and record.now - waited >= since

    def _is_fresh(self, record: SessionRecord, waited: float) -> bool:
        since = record.turned if record.shown is None else record.shown
        return record.now - waited < since + self.options.regenerate_grace

    async def _alarm(self, record: SessionRecord) -> None:
        """
        An id from before was used after its grace: somebody may have copied it.

        Not where the new one was never shown (its answer may have been lost), nor where
        ids are not signed: then anybody can make one up.
        """
        if record.shown is None or not self.options.signed:
            return
        now = time.monotonic()
        while self._alarmed:
            first, rang = next(iter(self._alarmed.items()))
            if now - rang < _ALARM_PAUSE:
                break
            del self._alarmed[first]
        if record.handle in self._alarmed:
            return
        self._alarmed[record.handle] = now
        logger.warning(
            "session %s: an id from before its regeneration was used after the grace; "
            "somebody may have copied it",
            record.handle,
        )
        if self.tell is not None:
            self.tell("session.reused", handle=record.handle)
        if self._on_reuse is None:
            return
        try:
            outcome = self._on_reuse(RetiredId(record.handle, user_of(record)))
            if outcome is not None:
                await _for_a_while(outcome, self.options.timeout)
        except Exception:
            logger.exception("on_reuse failed")


async def _for_a_while(work: Awaitable[object], seconds: float) -> None:
    """Waits for it, so long at the most; it goes on, and what it meets is logged."""
    task = asyncio.ensure_future(work)
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)
    task.add_done_callback(_log_failure)
    await asyncio.wait({task}, timeout=seconds)


def _log_failure(task: asyncio.Future[object]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("on_reuse failed", exc_info=error)


#: The loop holds its tasks weakly.
_under_way: set[asyncio.Future[object]] = set()
