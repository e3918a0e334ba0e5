"""Ports for servers in processes of their own, which somebody has to tell them."""

from __future__ import annotations

import itertools
import secrets
import socket
from collections.abc import Iterator


def _walk() -> Iterator[int]:
    """
    Ports that no system hands out by itself, from anywhere on.

    One that the system has just handed out and taken back can be given to the next who
    asks, before our server is up; tests run side by side, and ask all the time.
    """
    ports = range(10_000, 32_000)
    start = secrets.randbelow(len(ports))
    return itertools.cycle([*ports[start:], *ports[:start]])


_ports = _walk()


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on, and nobody else will be given."""
    return next(port for port in _ports if _free(port))


def neighbouring_ports() -> int:
    """A port of 127.0.0.1 that nothing listens on, and nothing on the next one."""
    while True:
        first, second = free_port(), free_port()
        if second == first + 1:
            return first


def _free(port: int) -> bool:
    with socket.socket() as listener:
        # As servers do; else one that has just stopped would count as running.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
