"""
Runs Python blocks one after the other in one namespace: what a page's reader would do.

    python -m tests.docs.run_blocks < blocks.json

The input is a list of `[page, line, code]`. Top-level `await` is allowed. The first
block that raises ends the run with its traceback, which shows the page and its line.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import logging
import sys
from typing import Any

from tornado_compas_session.testing import Browser


async def run(given: list[tuple[str, int, str]]) -> None:
    """Runs them; `Browser` is there for those that check something over HTTP."""
    namespace: dict[str, Any] = {"__name__": "page", "Browser": Browser}
    for page, line, text in given:
        code = compile(
            "\n" * (line - 1) + text,
            page,
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
        outcome = eval(code, namespace)
        if inspect.isawaitable(outcome):
            await outcome


if __name__ == "__main__":
    # What is expected to fail need not be seen.
    logging.disable(logging.ERROR)
    asyncio.run(run(json.load(sys.stdin)))
