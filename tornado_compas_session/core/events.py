"""What happens, told to whoever asked for it: `session_settings(on_event=…)`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

logger = logging.getLogger("tornado_compas_session")

#: Of an application, for `on_event`: called with a name, and what belongs to it.
EventHook = Callable[[str, Mapping[str, Any]], object]


class Events:
    """Calls the hook, and lets nothing of it break a request."""

    def __init__(self, hook: EventHook) -> None:
        self._hook = hook
        self._failed = False

    def __call__(self, name: str, **info: Any) -> None:
        """Tells one event. What the hook raises is logged, the first time."""
        try:
            self._hook(name, info)
        except Exception:
            if not self._failed:
                self._failed = True
                logger.exception("on_event failed; further failures are not logged")
