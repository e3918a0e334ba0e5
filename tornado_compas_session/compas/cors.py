"""Cross-origin requests: the origins in CORS_URL are allowed, and no others."""

from __future__ import annotations

import asyncio
import logging

import tornado
from tornado.web import HTTPError, RequestHandler

from tornado_compas_session.origins import Origins
from tornado_compas_session.settings import ORIGINS
from tornado_compas_session.web.caching import vary

logger = logging.getLogger("tornado_compas_session")

_NOBODY = Origins()


class CorsMixin(RequestHandler):
    """
    Lets scripts of the listed origins use the handler, with credentials.

    The list is the application's setting `compas_session_origins`, which
    `session_settings()` fills from CORS_URL; an origin that is not on it gets no
    `Access-Control` header. A preflight is answered before anything else: no session,
    no query, no cookie. The headers survive errors. A WebSocket accepts its own origin
    and those on the list.
    """

    #: Request headers that scripts may set, beside those that are always allowed.
    cors_allow_headers: tuple[str, ...] = (
        "content-type",
        "x-request-id",
        "x-requested-with",
        "x-xsrftoken",
    )
    #: Response headers that scripts may read, beside those that are always exposed.
    cors_expose_headers: tuple[str, ...] = ("retry-after", "x-request-id")
    #: Seconds for which a browser may remember a preflight; Chromium stops at 7200.
    cors_max_age = 7200

    def cors_allow_methods(self) -> list[str]:
        """The methods that this handler implements."""
        unimplemented = RequestHandler._unimplemented_method
        return [
            method
            for method in self.SUPPORTED_METHODS
            if getattr(type(self), method.lower()) is not unimplemented
        ]

    def set_default_headers(self) -> None:
        """Allows the one origin that asks, if it is listed."""
        # Here and not in prepare(): Tornado calls this again before an error page.
        super().set_default_headers()
        origin = self.request.headers.get("Origin", "")
        if self._cors_origins.allows(origin):
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Allow-Credentials", "true")
            exposed = ", ".join(self.cors_expose_headers)
            self.set_header("Access-Control-Expose-Headers", exposed)

    async def prepare(self) -> None:
        """Answers a preflight and ends the request; anything else goes on."""
        asked = self.request.headers
        if (
            self.request.method == "OPTIONS"
            and "Origin" in asked
            and "Access-Control-Request-Method" in asked
        ):
            self._answer_preflight()
            return
        if tornado.version_info < (6, 6):
            self._refuse_forgery()
        result = super().prepare()
        if result is not None:
            await result

    def flush(self, include_footers: bool = False) -> asyncio.Future[None]:
        """Adds `Origin` to the handler's `Vary`, whatever it has set there."""
        if not self._headers_written:
            vary(self._headers, "Origin")
        return super().flush(include_footers)

    def check_origin(self, origin: str) -> bool:
        """For a WebSocket: its own origin and the listed ones are welcome."""
        if self._cors_origins.allows(origin):
            return True
        return bool(super().check_origin(origin))  # type: ignore[misc]

    def check_trusted_origin(self, origin: str) -> bool:
        """For Tornado's `cross_origin_protection`: the same list."""
        if self._cors_origins.allows(origin):
            return True
        inherited = getattr(super(), "check_trusted_origin", None)
        return bool(inherited and inherited(origin))

    def _refuse_forgery(self) -> None:
        """Does for older Tornados what `cross_origin_protection` is from 6.6 on."""
        if not self.settings.get("cross_origin_protection"):
            return
        if self.request.method in ("GET", "HEAD", "OPTIONS"):
            return
        origin = self.request.headers.get("Origin", "")
        site = self.request.headers.get("Sec-Fetch-Site")
        if site is None:  # not a browser, or one from before that
            own = f"//{self.request.host.lower()}"
            site = "" if origin and not origin.lower().endswith(own) else "none"
        if site in ("same-origin", "none"):
            return
        if not (origin and self.check_trusted_origin(origin)):
            raise HTTPError(403, "origin %r is not allowed", origin)

    @property
    def _cors_origins(self) -> Origins:
        origins: Origins = self.settings.get(ORIGINS, _NOBODY)
        return origins

    def _answer_preflight(self) -> None:
        self.set_status(204)
        methods = self.cors_allow_methods()
        names = [name.lower() for name in self.cors_allow_headers]
        if refusal := self._refusal(methods, names):
            for header in [h for h in self._headers if h.startswith("Access-Control-")]:
                self.clear_header(header)
            # The browser's console names the origin at best; a developer wants more.
            level = logging.WARNING if self._cors_origins.development else logging.DEBUG
            logger.log(level, "CORS preflight refused: %s", refusal)
        else:
            self.set_header("Access-Control-Allow-Methods", ", ".join(methods))
            self.set_header("Access-Control-Allow-Headers", ", ".join(names))
            self.set_header("Access-Control-Max-Age", str(self.cors_max_age))
        self.finish()

    def _refusal(self, methods: list[str], names: list[str]) -> str | None:
        """Why this preflight is refused; None if it is not."""
        asked = self.request.headers
        origin, method = asked["Origin"], asked["Access-Control-Request-Method"]
        if not self._cors_origins.allows(origin):
            return f"origin {origin!r} is not in CORS_URL"
        # The rest need no permission (Fetch, "CORS-safelisted method").
        if method not in {*methods, "GET", "HEAD", "POST"}:
            return f"method {method!r} is not among {methods}"
        wanted = asked.get("Access-Control-Request-Headers", "").lower().split(",")
        refused = {name.strip() for name in wanted} - {"", *names}
        return f"headers {sorted(refused)} are not among {names}" if refused else None
