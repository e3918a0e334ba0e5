"""`HeldConnection`: in order, kept, and then released or dropped as a whole."""

from __future__ import annotations

import asyncio

import pytest
from tornado.httputil import HTTPHeaders, RequestStartLine, ResponseStartLine

from tornado_compas_session.web.held import HeldConnection

OK = ResponseStartLine("HTTP/1.1", 200, "OK")


class Recorder:
    """The real connection: notes what arrives, in order."""

    extra = "its own"

    def __init__(self):
        self.seen = []
        self.written = []

    method = "GET"

    @property
    def _request_start_line(self):
        return RequestStartLine(self.method, "/", "HTTP/1.1")

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
    return real, HeldConnection(real, complete, lambda: False, holding=True)


def let_pass(*waits, method="GET", complete=lambda headers: None):
    """One whose handler has said that nothing needs to wait but, perhaps, the end."""
    real, asked = Recorder(), list(waits)
    real.method = method
    held = HeldConnection(real, complete, lambda: asked.pop(0), holding=False)
    return real, held, asked


def calls(real):
    return [call[0] for call in real.seen]


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

    assert "its own" == held.face.extra


async def test_who_waits_for_the_decision_is_told_once():
    """Released or dropped."""
    for decide in (HeldConnection.release, lambda held: held.drop(ValueError())):
        _, held = hold()
        decisions: list[bool] = []
        held.on_decided = lambda decisions=decisions: decisions.append(True)
        decide(held)
        assert [True] == decisions


# -- where only the end waits ----------------------------------------------------------


async def test_what_passes_passes_at_once():
    """Headers with the cookies of now, and each part of the body; the end is asked."""
    real, held, asked = let_pass(
        False, complete=lambda headers: headers.add("Set-Cookie", "a=1")
    )
    held.write_headers(OK, HTTPHeaders(), b"one")
    held.write(b"two")
    assert [
        ("headers", 200, b"one", {"Set-Cookie": "a=1"}),
        ("write", b"two"),
    ] == real.seen
    assert held.headers_left
    assert [False] == asked
    held.finish()

    assert ["headers", "write", "finish"] == calls(real)
    assert [] == asked


async def test_the_end_of_what_passed_is_held():
    """Until the commit is known: released, or the connection is cut."""
    real, held, _ = let_pass(True)
    held.write_headers(OK, HTTPHeaders())
    held.write(b"one")
    held.finish()
    assert ["headers", "write"] == calls(real)
    held.release()

    assert ["headers", "write", "finish"] == calls(real)


async def test_the_last_byte_of_a_content_length_is_the_end():
    """A client that has all of the body believes that it is done."""
    real, held, _ = let_pass(True)
    held.write_headers(OK, HTTPHeaders({"Content-Length": "7"}), b"one")
    held.write(b"two")
    assert ["headers", "write"] == calls(real)
    held.write(b"!")
    held.finish()
    assert ["headers", "write"] == calls(real)
    held.release()

    assert ["headers", "write", "write", "finish"] == calls(real)


async def test_headers_with_all_of_the_body_are_the_end():
    """The one call of a short answer."""
    real, held, _ = let_pass(True)
    held.write_headers(OK, HTTPHeaders({"Content-Length": "3"}), b"one")
    assert [] == real.seen
    held.release()

    assert ["headers"] == calls(real)


@pytest.mark.parametrize(
    ("method", "code"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 304)]
)
async def test_headers_of_an_answer_without_a_body_are_the_end(method, code):
    """Whatever their Content-Length says."""
    real, held, _ = let_pass(True, method=method)
    line = ResponseStartLine("HTTP/1.1", code, "")
    held.write_headers(line, HTTPHeaders({"Content-Length": "9"}))
    assert [] == real.seen
    held.finish()
    held.release()

    assert ["headers", "finish"] == calls(real)
    assert not held.broken


async def test_an_empty_body_is_no_end_before_it_ends():
    """Content-Length: 0 with no chunk: `finish` is the end."""
    real, held, _ = let_pass(True)
    held.write_headers(OK, HTTPHeaders({"Content-Length": "0"}))
    assert ["headers"] == calls(real)
    held.finish()
    assert ["headers"] == calls(real)
    held.release()

    assert ["headers", "finish"] == calls(real)


async def test_an_end_that_is_dropped():
    """The client sees that something is missing: neither the last part nor the end."""
    real, held, _ = let_pass(True)
    held.write_headers(OK, HTTPHeaders({"Content-Length": "6"}), b"one")
    told = held.write(b"two")
    error = ValueError("the commit failed")
    held.drop(error)
    held.finish()

    assert ["headers"] == calls(real)
    assert error is told.exception()


async def test_too_long_a_body_passes_to_tornado():
    """Its own error is raised in the handler; nobody asks for an end."""
    real, held, asked = let_pass(True)
    held.write_headers(OK, HTTPHeaders({"Content-Length": "3"}))
    held.write(b"four")

    assert held.broken
    assert ["headers", "write"] == calls(real)
    held.finish()
    assert ["headers", "write", "finish"] == calls(real)
    assert [True] == asked


async def test_nothing_keeps_the_handler():
    """Once it is decided there is no circle of handler and connection."""
    for decide in (HeldConnection.release, lambda held: held.drop(ValueError())):
        _, held = hold()
        held.write_headers(OK, HTTPHeaders())
        decide(held)
        held.forget()
        assert held._complete_headers is None
        assert held._before_end is None
        assert not held._kept
