"""
What measures an application, in a process of its own because it patches Tornado: three
requests, and what was recorded of each.

    python -m tests.apps.watched opentelemetry DSN [unheld]

Prints as JSON, for each request, the status that the client got and its seconds, and
the statuses that were recorded, with their seconds. `unheld` is the control: who
watches is told inside of `finish()`, as Tornado does it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import asyncpg
from tornado.web import Application, RequestHandler

from tests.factories import Browser, serve
from tornado_compas_session import (
    PostgresSessionStore,
    SessionMixin,
    session_settings,
)
from tornado_compas_session.web.failed import FailedResponseMixin

#: How long at least the second request waits for its row, which somebody has locked.
LOCKED = 0.3

#: What was recorded so far, each time a status and seconds.
Recorded = Callable[[], list[tuple[Any, float]]]


class Counter(SessionMixin, RequestHandler):
    def post(self) -> None:
        self.session["n"] = self.session.get("n", 0) + 1
        self.write("counted")


def opentelemetry() -> tuple[type[Application], Recorded]:
    from opentelemetry.instrumentation.tornado import TornadoInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
        InMemorySpanExporter,
    )
    from opentelemetry.trace import SpanKind

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    TornadoInstrumentor().instrument(tracer_provider=provider)

    def recorded() -> list[tuple[Any, float]]:
        found = []
        for span in spans.get_finished_spans():
            if span.kind is SpanKind.SERVER:
                assert span.attributes and span.start_time and span.end_time
                seconds = (span.end_time - span.start_time) / 1e9
                found.append((span.attributes["http.status_code"], seconds))
        return found

    return Application, recorded


def ddtrace() -> tuple[type[Application], Recorded]:
    import ddtrace
    from ddtrace.trace import TraceFilter, tracer

    found: list[tuple[Any, float]] = []

    class Keep(TraceFilter):
        """Keeps what would go to Datadog's agent, which is not there."""

        def process_trace(self, trace: Any) -> None:
            for span in trace:
                if span.name == "tornado.request":
                    status = int(span.get_tag("http.status_code"))
                    found.append((status, span.duration))

    tracer.configure(trace_processors=[Keep()])
    ddtrace.patch(tornado=True)

    return Application, lambda: found


def tornado_prometheus() -> tuple[type[Application], Recorded]:
    from prometheus_client import REGISTRY
    from tornado_prometheus import PrometheusMixIn

    found: list[tuple[Any, float]] = []
    before = {"2xx": 0.0, "5xx": 0.0, "seconds": 0.0}

    class Measured(PrometheusMixIn, Application):  # type: ignore[misc]
        def observe_request(self, handler: Any) -> None:
            super().observe_request(handler)
            # It sums; the difference is this request.
            labels = {"handler": "Counter", "method": "POST"}
            value = REGISTRY.get_sample_value
            name = "tornado_http_request"
            now = {
                status: value(f"{name}s_total", {**labels, "status": status}) or 0.0
                for status in ("2xx", "5xx")
            }
            now["seconds"] = value(f"{name}_duration_seconds_sum", labels) or 0.0
            [status] = [key for key in ("2xx", "5xx") if now[key] > before[key]]
            found.append((status, now["seconds"] - before["seconds"]))
            before.update(now)

    return Measured, lambda: found


def told_at_once(self: FailedResponseMixin) -> None:
    """In place of `_session_mute`: nobody waits for what leaves."""
    theirs = self.on_finish
    self._session_tell = lambda: None  # type: ignore[method-assign]
    if not self._session_muted:
        self._session_muted = True

        def on_finish() -> None:
            theirs()
            self._session_begin()

        self.on_finish = on_finish  # type: ignore[method-assign]
        self._log = self._log  # type: ignore[method-assign]  # to be deleted later


async def ask(dsn: str, kind: type[Application], recorded: Recorded) -> list[Any]:
    store = await PostgresSessionStore.connect(dsn)
    other = await asyncpg.connect(dsn)
    app = kind([("/", Counter)], **session_settings(store))
    found = []

    async def post(browser: Browser) -> None:
        before = len(recorded())
        response = await browser.post()
        async with asyncio.timeout(10):
            while len(recorded()) == before:  # who watches is told after the client
                await asyncio.sleep(0.01)
        found.append([response.code, response.request_time, recorded()[before:]])

    with serve(app) as url:
        browser = Browser(url)
        await post(browser)

        async with other.transaction():
            await other.execute("SELECT FROM compas_session FOR UPDATE")
            asking = asyncio.create_task(post(browser))
            await asyncio.sleep(2 * LOCKED)  # in it, the way to the server
        await asking

        await other.execute("ALTER TABLE compas_session RENAME TO away")
        await post(Browser(url))
    await other.close()
    await store.close()
    return found


if __name__ == "__main__":
    if sys.argv[3:] == ["unheld"]:
        FailedResponseMixin._session_mute = told_at_once  # type: ignore[method-assign]
    measured, recorded = globals()[sys.argv[1]]()
    json.dump(asyncio.run(ask(sys.argv[2], measured, recorded)), sys.stdout)
