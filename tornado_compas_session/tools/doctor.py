"""
`doctor`: why is my session not kept?

Looks at the environment and the options, at the database (`doctor_database.py`), and
with a URL at a running server, as a browser would (`doctor_browser.py`). Changes
nothing but what a visit changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from tornado_compas_session.browsers import is_public_suffix
from tornado_compas_session.cookies.signing import KeyRing
from tornado_compas_session.exceptions import SettingsError
from tornado_compas_session.settings import Environment, SessionOptions, is_production
from tornado_compas_session.testing.jar import domain_matches, is_address
from tornado_compas_session.tools.doctor_browser import visit
from tornado_compas_session.tools.doctor_database import examine
from tornado_compas_session.tools.findings import Finding, found, good


async def diagnose(
    environ: Mapping[str, str],
    *,
    database_url: str | None = None,
    url: str | None = None,
    method: str = "GET",
    options: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """
    Everything that can be found out, problems and good news, in the order of a request.

    `options` are those that the application passes to `session_settings()`. Never
    raises for what is wrong: that is what the findings are for.
    """
    environment, findings = _environment(environ)
    key = None
    try:
        resolved = SessionOptions.build(environment, has_store=True, **(options or {}))
    except SettingsError as error:
        findings += [found("options", what=what) for what in error.problems]
    else:
        key = resolved.key
        findings += _cookie(environment, resolved, urlsplit(url or ""))
    if database_url:
        findings += [finding async for finding in examine(database_url, clock)]
    else:
        findings.append(found("no-database"))
    if url:
        origins = environment.cors_origins
        findings += [finding async for finding in visit(url, method, key, origins)]
    return findings


def _environment(environ: Mapping[str, str]) -> tuple[Environment, list[Finding]]:
    """The environment; where it is wrong, one that is right stands in for the rest."""
    try:
        environment = Environment.from_env(environ)
        KeyRing(environment.keys)
    except SettingsError as error:
        name = environ.get("APP_NAME", "").strip() or "app"
        return Environment(name, ("",), is_production(environ)), [
            found("keys" if "APP_KEYS" in what else "environment", what=what)
            for what in error.problems
        ]
    mode = "production" if environment.production else "development"
    count = len(environment.keys)
    findings = [
        good("environment", f"{mode}, {count} {'key' if count == 1 else 'keys'}")
    ]
    if not environ.get("APP_KEYS", "").strip():
        findings.insert(0, found("development-key"))
    return environment, findings


def _cookie(
    environment: Environment, options: SessionOptions, server: SplitResult
) -> Iterator[Finding]:
    """What the cookie is, and what options, environment and URL say of each other."""
    domain, same_site = options.domain, options.same_site
    attributes = [
        f"SameSite={same_site}",
        "Secure" if options.secure else "",
        f"Domain={domain}" if domain else "",
        f"Path={options.path}",
    ]
    yield good("cookie", f"{options.key}: {'; '.join(filter(None, attributes))}")
    host = server.hostname or ""
    if domain and (is_public_suffix(domain) or is_address(domain)):
        yield found("cookie-domain", domain=domain)
    if domain and host and not domain_matches(host, domain):
        yield found("domain-mismatch", domain=domain, host=host)
    if options.secure and server.scheme == "http":
        yield found("secure-over-http")
    site = domain or host
    for origin in environment.cors_origins:
        page = urlsplit(origin).hostname or ""
        together = domain_matches(page, site) or domain_matches(site, page)
        if site and same_site != "None" and not together:
            yield found("cross-site", origin=origin, site=site, same_site=same_site)
        if environment.production and origin.startswith("http://"):
            yield found("http-origin", origin=origin)
