"""Ports for an example that listens on two."""

from __future__ import annotations

import socket


def neighbouring_ports() -> int:
    """A port of 127.0.0.1 that nothing listens on, and nothing on the next one."""
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no two ports side by side are free")
