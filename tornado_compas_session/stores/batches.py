"""
What requests have in common: those of a moment share a statement, reads with reads, and
each kind of writes with its own.

A row that somebody else has locked is left out, and waited for outside of the batch, so
that no request waits for another session's lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from tornado_compas_session.core.jsondata import add_numbers
from tornado_compas_session.core.protocols import Row
from tornado_compas_session.core.types import (
    Identity,
    Incremented,
    Saved,
    SessionChange,
    SessionRecord,
)
from tornado_compas_session.exceptions import (
    HandleTaken,
    SchemaMissing,
    SessionDataError,
    StoreError,
    StoreUnavailable,
)
from tornado_compas_session.stores.batching import Batcher, Each
from tornado_compas_session.stores.database import Database
from tornado_compas_session.stores.onerow import RowWrite, RowWriter
from tornado_compas_session.stores.pools.limits import left
from tornado_compas_session.stores.rows import (
    many,
    new,
    one,
    record_of,
    saved_of,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Shared(Generic[Item, Result]):
    """Requests of one kind, by the handle of their session."""

    #: What ails the store where it fails: "reads", "writes".
    kind = "writes"

    def __init__(self, database: Database, limits: dict[str, Any]) -> None:
        self._database = database
        self.batcher: Batcher[Item, Result] = Batcher(
            self._send,
            join=self._join,
            timeout=database.timeout,
            trouble=database.trouble,
            kind=self.kind,
            **limits,
        )

    def submit(
        self, handle: str, item: Item, deadline: float | None = None
    ) -> Awaitable[Result]:
        """What the statement said of this one."""
        if self._database.is_whole:  # as nearly always: no task, no coroutine
            return self.batcher.submit(handle, item, deadline)
        return self._submit(handle, item, deadline)

    async def _submit(self, handle: str, item: Item, deadline: float | None) -> Result:
        if await self._database.is_distributed(deadline):
            self.batcher.keep_apart(self._database.size)
        return await self.batcher.submit(handle, item, deadline)

    async def _send(self, items: dict[str, Item], seconds: float) -> dict[str, Any]:
        raise NotImplementedError

    def _join(self, first: Item, other: Item) -> Item | None:
        """The two as one; None if the other has to wait for the next batch."""
        return None


class Loads(Shared[str, SessionRecord | None]):
    """Reading; its items are the handles themselves."""

    kind = "reads"

    async def _send(self, items: dict[str, str], seconds: float) -> dict[str, Any]:
        read, handles = self._database.read, list(items)
        if len(handles) == 1:
            rows = await read("load_session", seconds, handle=handles[0])
        else:
            rows = await read("load_sessions", seconds, handles=handles)
        await self._database.check_rows(rows, items)
        return {row[0]: record_of(row) for row in rows}

    def _join(self, first: str, other: str) -> str:
        return first


class Writes(Shared[Item, Result]):
    """
    Writing. The statement for one row is called `name`, and takes what `_values` makes
    of an item; the one for many is called `name` and an "s".
    """

    name: str

    async def _send(self, items: dict[str, Item], seconds: float) -> dict[str, Any]:
        until = asyncio.get_running_loop().time() + seconds
        met = await self._met(items, until)
        for handle, item in items.items():
            row = met.get(handle)
            if row is None:
                met[handle] = self._missing(handle, item, until)
            elif not isinstance(row, Exception):
                met[handle] = self._outcome(row, item)
        return met

    async def _met(self, items: dict[str, Item], until: float) -> dict[str, Any]:
        """The rows that the items met, by handle; or the errors."""
        try:
            rows = await self._written(items, left(until))
        except StoreUnavailable:
            raise  # it may have been applied, so it is not sent again
        except (StoreError, SessionDataError) as error:
            if len(items) == 1 or isinstance(error, SchemaMissing):
                raise
            # One of them is bad, and its neighbours are not: each for itself. Or the
            # table has been distributed meanwhile, which takes no batches.
            self._database.look_again()
            outcomes: dict[str, Any] = {}
            for handle, item in items.items():
                try:
                    outcomes |= await self._met({handle: item}, until)
                except (StoreError, SessionDataError) as own:
                    outcomes[handle] = own
            return outcomes
        await self._database.check_rows(rows, items)
        return {row[0]: row for row in rows}

    async def _written(self, items: dict[str, Item], seconds: float) -> Sequence[Row]:
        ask = self._database.ask
        each = [self._values(item) for item in items.values()]
        if len(each) == 1:
            [handle] = items
            return await ask(self.name, seconds, handle=handle, **each[0])
        return await ask(self.name + "s", seconds, handles=list(items), **many(each))

    def _values(self, item: Item) -> dict[str, Any]:
        """The parameters of the statement for one, but its handle."""
        raise NotImplementedError

    def _outcome(self, row: Row, item: Item) -> Any:
        """What a row that came back says."""
        return saved_of(row)

    def _missing(self, handle: str, item: Item, until: float) -> Any:
        """What it says that none did."""
        raise NotImplementedError


class NewSession(NamedTuple):
    """A session to be made."""

    secret_hash: bytes
    change: SessionChange
    identity: Identity | None


class Creates(Writes[NewSession, Saved]):
    """New sessions; each raises `HandleTaken` for itself."""

    name = "create_session"

    def _values(self, item: NewSession) -> dict[str, Any]:
        return new(*item)

    def _missing(self, handle: str, item: NewSession, until: float) -> HandleTaken:
        return HandleTaken()


class Save(NamedTuple):
    """A change to a session."""

    epoch: int
    change: SessionChange


class Sum(NamedTuple):
    """An addition to a number in a session."""

    epoch: int
    change: SessionChange
    key: str
    #: What each of those who share it adds.
    parts: tuple[str, ...]


Update = TypeVar("Update", Save, Sum)


class Updates(Writes[Update, Result]):
    """Writes to a row that is there, and that somebody else may have locked."""

    def __init__(
        self, database: Database, rows: RowWriter, limits: dict[str, Any]
    ) -> None:
        super().__init__(database, limits)
        self._rows = rows

    def _missing(self, handle: str, item: Update, until: float) -> asyncio.Task[Any]:
        """What waits for a row does so outside of the batch that left it out."""
        work = self._waiting(handle, item, until)
        task = asyncio.get_running_loop().create_task(work)
        self._database.keep(task)
        return task

    async def _waiting(self, handle: str, item: Update, until: float) -> Any:
        write = RowWrite(self.name, handle, until, self._values(item))
        row = await self._rows.waiting(write)
        return None if row is None else self._outcome(row, item)


class Saves(Updates[Save, Saved | None]):
    """Changes; None for who is not there."""

    name = "save_session"

    def _join(self, first: Save, other: Save) -> Save | None:
        return first if first.change.only_renews and first == other else None

    def _values(self, item: Save) -> dict[str, Any]:
        return {"epoch": item.epoch, **one(item.change)}


class Sums(Updates[Sum, Incremented | None]):
    """Additions; those to one number of one session are one, and each has its sum."""

    name = "increment_session"

    def _join(self, first: Sum, other: Sum) -> Sum | None:
        if other != first._replace(parts=other.parts):
            return None
        return first._replace(parts=first.parts + other.parts)

    def _values(self, item: Sum) -> dict[str, Any]:
        by = add_numbers(*item.parts)
        return {"epoch": item.epoch, "key": item.key, "by": by, **one(item.change)}

    def _outcome(self, row: Row, item: Sum) -> Each:
        saved, (text, kind) = saved_of(row), row[4:6]
        if kind != "number":
            error = SessionDataError(
                item.key, f"it holds a {kind}, and no number", "add to"
            )
            return Each([error] * len(item.parts))
        values = []
        for part in reversed(item.parts):
            values.append(Incremented(text, saved))
            text = add_numbers(text, "-" + part if part[0] != "-" else part[1:])
        return Each(reversed(values))
