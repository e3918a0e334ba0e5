"""
A cancellation, asked of libpq itself.

psycopg2's `cancel()`, and that of psycopg on a libpq older than 17, hold all of Python
until the server answers, which a frozen one does not.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from contextlib import suppress
from functools import cache


@cache
def libpq_of(extension: str) -> ctypes.CDLL | None:
    """
    The libpq that an extension module is linked with; None where it is inside of the
    module, as in psycopg2's wheel for Windows.
    """
    try:
        libpq = ctypes.CDLL(extension)
        libpq.PQgetCancel.argtypes = libpq.PQfreeCancel.argtypes = [ctypes.c_void_p]
        libpq.PQgetCancel.restype = ctypes.c_void_p
        libpq.PQcancel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    except (AttributeError, OSError):
        return None
    return libpq


async def cancel(libpq: ctypes.CDLL | None, connection: int) -> None:
    """
    Asks the server to end what runs on the connection, a `PGconn *`.

    In a thread, for libpq waits for the server; and in one of its own, which keeps
    neither the executor's workers nor the end of the process waiting.
    """
    if libpq is None:
        return
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    request = libpq.PQgetCancel(connection)

    def ask() -> None:
        libpq.PQcancel(request, ctypes.create_string_buffer(256), 256)
        libpq.PQfreeCancel(request)
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=ask, name="cancel", daemon=True).start()
    await done.wait()
