"""`HeldConnection`: in order, kept, and then released or dropped as a whole."""

from __future__ import annotations

import asyncio

import pytest
from tornado.httputil import HTTPHeaders, ResponseStartLine

from tornado_compas_session.web.held import HeldConnection

OK = ResponseStartLine("HTTP/1.1", 200, "OK")


class Recorder:
    """The real connection: notes what arrives, in order."""

    extra = "its own"

    def __init__(self):
        self.seen = []
        self.written = []

    def _done(self):
        future = asyncio.get_running_loop().create_future()
        self.written.append(future)
        return future

    def write_headers(self, start_line, headers, chunk=None):
        self.seen.append(("headers", start_line.code, chunk, dict(headers)))
        return self._done()

    def write(self, chunk):
        self.seen.append(("write", chunk))
        return self._done()

    def finish(self):
        self.seen.append(("finish",))


def hold(complete=lambda headers: None):
    real = Recorder()
    return real, HeldConnection(real, complete, headers_left=False)


async def test_kept_and_released_in_order():
    """Nothing arrives before, everything after, and later writes pass through."""
    real, held = hold(lambda headers: headers.add("Set-Cookie", "a=1"))
    told = [held.write_headers(OK, HTTPHeaders(), b"one"), held.write(b"two")]
    assert [] == real.seen
    held.release()
    told.append(held.write(b"three"))
    held.finish()

    assert [
        ("headers", 200, b"one", {"Set-Cookie": "a=1"}),
        ("write", b"two"),
        ("write", b"three"),
        ("finish",),
    ] == real.seen
    assert held.headers_left
    assert not any(future.done() for future in told)
    for future in real.written:
        future.set_result(None)
    await asyncio.gather(*told)


async def test_the_end_is_kept_too():
    """A finished response leaves as one piece."""
    real, held = hold()
    held.write_headers(OK, HTTPHeaders())
    held.finish()
    assert [] == real.seen
    held.release()

    assert ["headers", "finish"] == [call[0] for call in real.seen]


async def test_dropped_as_a_whole():
    """Nothing arrives; who waits, or writes more, hears why."""
    real, held = hold()
    told = held.write_headers(OK, HTTPHeaders(), b"secret")
    held.finish()
    error = ValueError("the commit failed")
    held.drop(error)

    assert [] == real.seen
    assert error is told.exception()
    with pytest.raises(ValueError, match="the commit failed"):
        held.write(b"more")
    held.finish()
    assert [] == real.seen


async def test_a_broken_connection_is_heard_of():
    """The future that the handler holds fails as the real one did."""
    real, held = hold()
    told = held.write_headers(OK, HTTPHeaders())
    held.release()
    real.written[0].set_exception(OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        await told


@pytest.mark.parametrize(("length", "chunk"), [("3", b"four"), ("0", b"x")])
async def test_too_long_a_body_goes_to_tornado_at_once(length, chunk):
    """It raises inside of the handler there, as without sessions."""
    real, held = hold()
    held.write_headers(OK, HTTPHeaders({"Content-Length": length}), chunk)

    assert held.broken
    assert "headers" == real.seen[0][0]


async def test_too_short_a_body_goes_to_tornado_at_its_end():
    """As soon as it is known."""
    real, held = hold()
    held.write_headers(OK, HTTPHeaders({"Content-Length": "9"}), b"four")
    assert [] == real.seen
    held.finish()

    assert held.broken
    assert "finish" == real.seen[-1][0]


async def test_everything_else_is_the_real_ones():
    """Attributes that somebody looks for are found."""
    _, held = hold()

    assert "its own" == held.extra


async def test_who_waits_for_the_decision_is_told_once():
    """Released or dropped."""
    for decide in (HeldConnection.release, lambda held: held.drop(ValueError())):
        _, held = hold()
        decisions: list[bool] = []
        held.on_decided = lambda decisions=decisions: decisions.append(True)
        decide(held)
        assert [True] == decisions
