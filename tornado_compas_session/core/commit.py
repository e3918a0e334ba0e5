"""
The one loop that commits: take what is pending, write it, take what has come meanwhile,
until nothing is left.

It serves the end of a request, `save()`, the handshake of a WebSocket and the end of a
block of `lock()`. What there is to do is decided in `Planner.next` (plan.py).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

from tornado_compas_session.core.change import NOTHING, Ledger
from tornado_compas_session.core.events import Events
from tornado_compas_session.core.guard import Guard
from tornado_compas_session.core.ids import hash_secret, new_handle, new_secret
from tornado_compas_session.core.plan import Planner, Step
from tornado_compas_session.core.protocols import Locked, SessionStore
from tornado_compas_session.core.session import Session
from tornado_compas_session.core.types import NewSecret, Saved, SessionRecord, user_of
from tornado_compas_session.exceptions import (
    HandleTaken,
    SessionError,
    SessionGone,
    StoreError,
    StoreUnavailable,
)

logger = logging.getLogger("tornado_compas_session")

_HANDLE_TRIES = 3

#: What is called when a commit is over: with what it met, or None.
Done = Callable[[Exception | None], None]
# What the loop runs it holds weakly; these are held until they end.
_under_way: set[asyncio.Task[None]] = set()


class Begun(NamedTuple):
    """A save that is under way, and the ledger that it is of."""

    step: Step
    ledger: Ledger
    work: Awaitable[Saved | None]


class Committer:
    """Writes what is planned of a session, and tells the session what became of it."""

    #: Hears what happens, if somebody wants to know.
    tell: Events | None = None

    def __init__(
        self,
        planner: Planner,
        store: SessionStore,
        guard: Guard,
        *,
        draw_handle: Callable[[], str] = new_handle,
        draw_secret: Callable[[], str] = new_secret,
    ) -> None:
        self._planner = planner
        self._store = store
        self._guard = guard
        self._draw_handle = draw_handle
        self._draw_secret = draw_secret

    def begin(
        self, session: Session, done: Done, context: contextvars.Context | None
    ) -> None:
        """
        Commits, and then calls `done` in this context, with what it met or None.

        One save, as most commits are, takes no task: what follows is called back.
        """
        step, record, begun = session.planned, session.life.record, None
        if (
            step is not None
            and step.verb == "save"
            and record is not None
            and self.tell is None
            and not session.is_busy
        ):
            session.planned = None
            deadline = self._guard.deadline
            begun = Begun(
                step,
                session.ledger,
                self._store.save(
                    record.handle, record.epoch, step.change, deadline=deadline
                ),
            )
            if type(begun.work) is asyncio.Future:
                session.saving = begun.work
                begun.work.add_done_callback(
                    partial(self._saved, session, done, begun, context), context=context
                )
                return
        self._in_task(session, done, begun, context)

    def _saved(
        self,
        session: Session,
        done: Done,
        begun: Begun,
        context: contextvars.Context | None,
        work: asyncio.Future[Saved | None],
    ) -> None:
        session.saving = None
        failed = work.cancelled() or work.exception() is not None
        saved = None if failed else work.result()
        if saved is None:
            self._in_task(session, done, begun, context)
            return
        try:
            self.done(session, begun.step, begun.ledger, saved, None)
            session.planned = self._planner.next(session, automatic=True)
            over = session.planned is None
        except Exception:  # which the task meets as well
            over = False
        if over:
            done(None)
        else:
            self._in_task(session, done, None, context)

    def _in_task(
        self,
        session: Session,
        done: Done,
        begun: Begun | None,
        context: contextvars.Context | None,
    ) -> None:
        task = asyncio.get_running_loop().create_task(
            self._to_the_end(session, done, begun), context=context
        )
        _under_way.add(task)
        task.add_done_callback(_under_way.discard)

    async def _to_the_end(
        self, session: Session, done: Done, begun: Begun | None
    ) -> None:
        try:
            await self.commit(session, automatic=True, begun=begun)
        except asyncio.CancelledError:
            done(StoreUnavailable("the save was cancelled"))
            raise
        except Exception as error:
            done(error)
        else:
            done(None)

    async def commit(
        self, session: Session, *, automatic: bool, begun: Begun | None = None
    ) -> None:
        """Writes until nothing is left, once it is this commit's turn; see `all`."""
        async with session.turn():
            if session.block_error is not None:
                raise SessionError(
                    "the response was finished inside of lock(), and the block failed "
                    "then"
                ) from session.block_error
            await self.all(session, automatic=automatic, begun=begun)

    def told(self, tell: Events) -> None:
        """Tells of each commit, and what else happens, from now on."""
        commit = self.commit

        async def commit_told(session: Session, **how: Any) -> None:
            began, outcome, life = time.monotonic(), "saved", session.life
            record = life.record or life.doomed
            try:
                await commit(session, **how)
            except BaseException as error:
                outcome = type(error).__name__
                raise
            finally:
                seconds = time.monotonic() - began
                record = record or life.record
                handle = None if record is None else record.handle
                if outcome == "SessionGone":
                    tell("session.refused", reason="gone", handle=handle)
                tell("session.commit", handle=handle, outcome=outcome, seconds=seconds)

        # In its place, so that it costs nothing where nobody wants to know.
        self.tell, self.commit = tell, commit_told  # type: ignore[method-assign]

    async def all(
        self, session: Session, *, automatic: bool, begun: Begun | None = None
    ) -> None:
        """
        Writes until nothing is left; to be called by one at a time for each session.

        Raises what `next` does, and `StoreError`: then the write may have happened.
        """
        try:
            if begun is not None:
                await self._write(session, begun.step, begun)
            step = session.planned or self._planner.next(session, automatic=automatic)
            while step is not None:
                session.planned = None
                await self._write(session, step)
                step = self._planner.next(session, automatic=automatic)
        except SessionGone:
            session.start(None)  # who has been told need not be told again
            raise

    async def _write(
        self, session: Session, step: Step, begun: Begun | None = None
    ) -> None:
        store, guard, life = self._store, self._guard, session.life
        ledger = session.ledger if begun is None else begun.ledger
        if step.verb == "delete":
            doomed = life.doomed
            assert doomed is not None
            done = await guard(
                store.delete(doomed.handle, doomed.epoch, deadline=guard.deadline)
            )
            self._ended(session, doomed, done=done)
            return
        if step.verb == "create":
            await self._create(session, step)
            return
        record = life.record
        assert record is not None
        secret = None
        if step.verb == "regenerate":
            secret = self._secret(session, step)
            saved = await guard(
                store.regenerate(
                    record.handle,
                    record.epoch,
                    secret,
                    step.change,
                    deadline=guard.deadline,
                )
            )
        else:
            saved = await guard(
                begun.work
                if begun is not None
                else store.save(
                    record.handle, record.epoch, step.change, deadline=guard.deadline
                )
            )
        if saved is not None:
            self.done(session, step, ledger, saved, secret)
        elif life.record is None:
            return  # it was ended meanwhile
        elif secret is not None:
            await self._overtaken(session, step, secret)
        else:
            self._lost(session, step)

    async def _create(self, session: Session, step: Step) -> None:
        store, guard, life = self._store, self._guard, session.life
        ledger = session.ledger
        for _ in range(_HANDLE_TRIES):
            handle, secret = life.draw(self._draw_handle, self._draw_secret)
            new = hash_secret(secret)
            try:
                saved = await guard(
                    store.create(
                        handle,
                        new,
                        step.change,
                        step.identity,
                        deadline=guard.deadline,
                    )
                )
            except HandleTaken:
                found = await guard(store.load(handle, deadline=guard.deadline))
                if found is not None and found.secret_hash == new:
                    self._made_before(session, ledger, found)
                    return
                if session.ledger is not ledger:
                    return  # it was ended meanwhile
                life.redraw()
                continue
            life.created(SessionRecord.made(handle, new, step.change, saved))
            self._written(session, step, ledger)
            self._happened("created", handle)
            return
        raise StoreError(
            f"{_HANDLE_TRIES} random handles in a row were taken; "
            "is the random number generator broken?"
        )

    async def _overtaken(self, session: Session, step: Step, secret: NewSecret) -> None:
        """The row has not the secret that it had: another request was first."""
        life, record, ledger = session.life, session.life.record, session.ledger
        assert record is not None
        row = await self._guard(
            self._store.load(record.handle, deadline=self._guard.deadline)
        )
        user = None if step.identity is None else step.identity.user_id
        if row is not None and row.secret_hash == secret.new:
            self._made_before(session, ledger, row)
        elif life.record is None:
            return  # it was ended meanwhile
        elif row is not None and row.epoch == record.epoch and user is None:
            # What there is to write is merged by a plain save; a sign-out ends the row.
            life.seen(row)
        elif row is not None and user is not None and user_of(row) == user:
            # A double click on "sign in": the second gets a session of its own.
            life.unbound()
            session.ledger = Ledger(None)
            session.ledger.untouched = False
        else:
            self._lost(session, step)

    def _made_before(
        self, session: Session, ledger: Ledger, row: SessionRecord
    ) -> None:
        """
        The row has the new secret by a try whose reply was lost, and with it what there
        was to write then; the rest follows.
        """
        session.life.created(row)
        if session.ledger is ledger:
            ledger.reread(row.data)

    def _lost(self, session: Session, step: Step) -> None:
        session.life.lost()
        told = step.signed_in is not None or step.identity is not None
        if told or not step.change.only_renews:
            session.start(None)
            raise SessionGone
        if session.untouched:
            session.start(None)
        # Else what was changed meanwhile is what `next` raises for.

    def _secret(self, session: Session, step: Step) -> NewSecret:
        record = session.life.record
        assert record is not None
        _, secret = session.life.draw(lambda: record.handle, self._draw_secret)
        return NewSecret(
            record.secret_hash,
            hash_secret(secret),
            step.identity,
            step.signed_in,
            session.life.superseding,
        )

    # ── inside of lock() ─────────────────────────────────────────────────────────

    async def locked(
        self, session: Session, locked: Locked
    ) -> Callable[[], None] | None:
        """
        Writes the next step to the locked row; what it returns is to be called once
        that is committed.
        """
        step, ledger = self._planner.next(session, automatic=False), session.ledger
        if step is None or step.verb == "create":
            return None  # what follows an end is created after the block
        if step.verb == "delete":
            doomed = session.life.doomed
            assert doomed is not None
            await locked.delete()
            return lambda: self._ended(session, doomed, done=True)
        secret = None
        if step.verb == "regenerate":
            secret = self._secret(session, step)
            saved = await locked.regenerate(secret, step.change)
        else:
            saved = await locked.save(step.change)
        return lambda: self.done(session, step, ledger, saved, secret)

    # ── done ─────────────────────────────────────────────────────────────────────

    def done(
        self,
        session: Session,
        step: Step,
        ledger: Ledger,
        saved: Saved,
        secret: NewSecret | None,
    ) -> None:
        """The write is committed; `ledger` is the one that it was of."""
        life = session.life
        if secret is None:
            life.saved(saved)
            if self.tell is not None and step.change.only_renews and life.record:
                self.tell("session.renewed", handle=life.record.handle)
        else:
            life.regenerated(saved, secret)
            if life.record is not None:
                renewed = "renewed" if step.renews_cookie else "regenerated"
                self._happened(renewed, life.record.handle)
        self._written(session, step, ledger)

    def _written(self, session: Session, step: Step, ledger: Ledger) -> None:
        change = step.change
        if session.ledger is not ledger:
            return  # it was ended meanwhile
        if step.difference is not NOTHING:
            identity = step.identity
            user = ledger.user if identity is None else identity.user_id
            ledger.written(step.difference, user)
        if change.own:
            session.life.owns(change.own_idle, change.own_absolute)
            if (session.own_idle, session.own_absolute) == (
                change.own_idle,
                change.own_absolute,
            ):
                session.own_set = False

    def _ended(self, session: Session, doomed: SessionRecord, *, done: bool) -> None:
        session.life.ended(done=done)
        if done:
            self._happened("destroyed", doomed.handle)

    def _happened(self, what: str, handle: str) -> None:
        logger.info("session %s %s", handle, what)
        if self.tell is not None:
            self.tell("session." + what, handle=handle)
