"""One request: where it is, what its handler saw, and what left."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from tests.property.program.browser import Cookie
from tests.property.program.site import CURRENT, NAME, Wire, header_lines, lost
from tests.property.program.site import start_line as make_start_line
from tornado_compas_session.testing.jar import Cookie as Told

if TYPE_CHECKING:
    from tests.property.program.simulation import Simulation

PUBLIC = NAME + ".public"
#: No request needs so many calls of the store.
CALLS = 30


class Parked:
    """A request that waits somewhere, and since when."""

    def __init__(self, label: str, since: float) -> None:
        self.label = label
        self.since = since
        self.gate: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def go(self, *, fail: bool = False) -> None:
        if not self.gate.done():
            self.gate.set_result(fail)


class Request:
    """A request of the honest browser or of the attacker."""

    def __init__(
        self,
        world: Simulation,
        number: int,
        kind: str,
        stops: tuple[str, ...],
        process: int,
        cookies: str,
        *,
        honest: bool = True,
        user: str = "vera",
        method: str = "GET",
    ) -> None:
        self.world = world
        self.number = number
        self.kind = kind
        self.stops = set(stops)
        self.process = process
        self.cookies = cookies
        self.honest = honest
        self.user = user if honest else "mallory"
        self.start_line = make_start_line(method, kind, number)
        self.wire = Wire(self)
        self.parked: Parked | None = None
        # ── what happened
        #: Its handler began, with this content; it did its work, and then had that.
        self.content: dict[str, Any] | None = None
        self.after: dict[str, Any] | None = None
        #: All that it was shown, for the body.
        self.shown: list[dict[str, Any]] = []
        #: What it wrote, and what it wrote in vain.
        self.keys: list[str] = []
        self.discarded: list[str] = []
        self._made = 0
        #: Store calls under way; and when the last one of them took effect.
        self.calls: list[str] = []
        self._called = 0
        self.loaded_at = self.effective_at = 0
        self.failed = False
        self.on_finish: list[int] = []
        self.logged: list[int] = []
        #: Its answer is delivered or lost, and what it set was.
        self.done = False
        self.delivered_headers = False
        #: When its headers arrived at the server, and left it.
        self.arrived = self.arrived_at = self.left_at = 0.0
        # ── what the model makes of it (simulation.py)
        self.mixed = 0
        self.lossy = False
        self.overlapped = False
        self.disturbed = False
        self.expects: tuple[str | None, frozenset[str]] | None = None
        #: It may end what was promised; it may change who the visitor is.
        self.ends = self.turns = False
        self.sent: list[Cookie] = []
        #: How many new secrets were made since it was sent, before it was let in.
        self.overtaken = 0
        #: The row that its cookie is of, if it sets one.
        self.row: int | None = None

    def __repr__(self) -> str:
        who = "" if self.honest else "attacker's "
        return f"{who}{self.kind} {self.number}"

    # ── where it waits ───────────────────────────────────────────────────────────

    async def stop(self, label: str) -> bool:
        """Waits here if it is to; True if what follows is to fail."""
        if label not in self.stops or self.world.draining:
            return False
        if label != "commit":  # each of several writes waits
            self.stops.discard(label)
        self.parked = parked = Parked(label, self.world.clock.monotonic())
        self.world.note(f"{self} waits: {label}")
        try:
            return await parked.gate
        finally:
            if self.parked is parked:
                self.parked = None

    def serve(self, app: Any) -> asyncio.Task[None]:
        """Begins it in a context of its own."""
        context = copy_context()
        context.run(CURRENT.set, self)
        return context.run(asyncio.ensure_future, self._serve(app))

    async def _serve(self, app: Any) -> None:
        await self.stop("wire")
        delegate = app().start_request(object(), self.wire)
        self.arrived = self.world.clock.monotonic()
        self.arrived_at = self.world.clock.time()
        prepared = delegate.headers_received(
            self.start_line, header_lines(self.cookies)
        )
        await self.stop("upload")
        if prepared is not None:
            await prepared
        if not self.wire.finished and not self.wire.closed:
            delegate.finish()

    @contextlib.asynccontextmanager
    async def store_call(self, name: str) -> AsyncIterator[None]:
        """Around each call of the store in its course."""
        if self.wire.complete and not self.changes_later:
            self.world.broken(
                "I5", f"{self}: `{name}` begins after its answer is complete"
            )
        self._called += 1
        if self._called > CALLS:
            self.world.broken("I7", f"{self} calls the store without end: `{name}`")
            raise lost()
        self.calls.append(name)
        try:
            loading = self.content is None
            if await self.stop("load" if loading else "commit"):
                self._fails(name, "before it happened")
                raise lost()
            if loading:
                self.loaded_at = self.world.tick()
            yield
            self.effective_at = self.world.tick()
            self.world.note(f"{self}: {name}")
            if await self.stop("reply"):
                self._fails(name, "after it happened")
                raise lost()
        finally:
            self.calls.remove(name)

    def _fails(self, name: str, when: str) -> None:
        self.failed = True
        self.world.note(f"{self}: {name} fails, {when}")

    # ── what its handler tells ───────────────────────────────────────────────────

    def key(self) -> str:
        """A new key of its own."""
        self._made += 1
        start = "k" if self.honest else "evil"
        return f"{start}{self.number}" + ("'" * (self._made - 1))

    def saw(self, content: dict[str, Any]) -> None:
        self.content = content
        self.row = content.get("row")
        self.shown.append(content)
        self.world.note(f"{self} sees {content or 'nothing'}")
        self.world.on_view(self, content)

    def saw_more(self, content: dict[str, Any]) -> None:
        self.shown.append(content)

    def worked(self, content: dict[str, Any]) -> None:
        self.after = content
        self.world.on_worked(self)

    # ── what its connection tells ────────────────────────────────────────────────

    @property
    def told(self) -> list[Told]:
        """The Set-Cookie headers that left."""
        return [Told.parse(text) for text in self.wire.headers.get_list("Set-Cookie")]

    @property
    def told_session(self) -> list[Told]:
        return [told for told in self.told if told.name == NAME]

    @property
    def sets(self) -> bool:
        """Whether a session's cookie is set by its answer."""
        now = self.world.clock.time()
        return any(not told.expired(now) for told in self.told_session)

    @property
    def clears(self) -> bool:
        """Whether the cookie is cleared, and none set."""
        return bool(self.told_session) and not self.sets

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What of sessions was in the answer."""
        with contextlib.suppress(ValueError):
            found = json.loads(self.wire.body)
            if isinstance(found, list):
                return found
        return []

    def headers_left(self) -> None:
        self.left_at = self.world.clock.monotonic()
        self.world.on_headers(self)

    @property
    def changes_later(self) -> bool:
        """Whether it changes the session after the last byte: a HEAD that streams."""
        return self.start_line.method == "HEAD" and self.kind in (
            *("stream", "late", "hurry"),
        )

    def completed(self) -> None:
        if self.calls:
            self.world.broken(
                "I5",
                f"the answer of {self} is complete, and its "
                f"{', '.join(self.calls)} is not",
            )

    def left(self) -> None:
        self.world.on_left(self)
