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
from urllib.parse import urlsplit

from tornado_compas_session.browsers import is_public_suffix
from tornado_compas_session.cookies.signing import KeyRing
from tornado_compas_session.exceptions import SettingsError
from tornado_compas_session.settings import Environment, SessionOptions
from tornado_compas_session.testing.jar import domain_matches, is_address
from tornado_compas_session.tools.doctor_browser import visit
from tornado_compas_session.tools.doctor_database import examine
from tornado_compas_session.tools.findings import Finding, advice, good, problem

_KEY = "k" * 43


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
    findings: list[Finding] = []
    environment = _environment(environ, findings)
    resolved = _options(environment, dict(options or {}), findings)
    if resolved is not None:
        findings += _together(environment, resolved, url)
    if database_url:
        findings += await examine(database_url, clock)
    else:
        findings.append(
            advice(
                "no-database",
                "DATABASE_URL is not set, so the database was not looked at",
                "most sessions that are not kept fail there",
                "set DATABASE_URL to what the application connects to",
            )
        )
    if url:
        findings += await visit(
            url, method, resolved.key if resolved else None, environment.cors_origins
        )
    return findings


def _environment(environ: Mapping[str, str], findings: list[Finding]) -> Environment:
    """The environment; where it is wrong, one that is right stands in for the rest."""
    mode = (environ.get("APP_ENV") or environ.get("NODE_ENV") or "").strip().lower()
    development = mode == "development"
    try:
        # A missing key is a finding here, and needs no line in the log as well.
        given = dict(environ)
        if development and not given.get("APP_KEYS", "").strip():
            given["APP_KEYS"] = _KEY
            findings.append(
                advice(
                    "development-key",
                    "APP_KEYS is not set; in development a key is derived from "
                    "APP_NAME",
                    "anybody can guess it and sign cookies; and a server with another "
                    "APP_NAME refuses the cookies of this one",
                    "fine on your own machine; elsewhere set APP_KEYS "
                    "(tornado-compas-session keygen) and not APP_ENV=development",
                )
            )
        environment = Environment.from_env(given)
        KeyRing(environment.keys)
    except SettingsError as error:
        findings += [
            problem(
                "keys" if "APP_KEYS" in text else "environment",
                text,
                "the server does not start with this"
                + (
                    ", or signs with keys that others do not have"
                    if "APP_KEYS" in text
                    else ""
                ),
                "mend the variable; all processes need the same value "
                '(see "Environment and keys" in the documentation)',
            )
            for text in error.problems
        ]
        return Environment(
            environ.get("APP_NAME", "").strip() or "app", (_KEY,), not development
        )
    count = len(environment.keys)
    findings.append(
        good(
            "environment",
            f"{'production' if environment.production else 'development'}, "
            f"{count} {'key' if count == 1 else 'keys'}",
        )
    )
    return environment


def _options(
    environment: Environment, options: dict[str, Any], findings: list[Finding]
) -> SessionOptions | None:
    try:
        resolved = SessionOptions.build(environment, has_store=True, **options)
    except SettingsError as error:
        findings += [
            problem(
                "options",
                text,
                "the server does not start with this, or browsers drop the cookie",
                'change the option (see "Options" in the documentation)',
            )
            for text in error.problems
        ]
        return None
    attributes = [
        f"SameSite={resolved.same_site}",
        *(["Secure"] if resolved.secure else []),
        *([f"Domain={resolved.domain}"] if resolved.domain else []),
        f"Path={resolved.path}",
    ]
    findings.append(good("cookie", f"{resolved.key}: {'; '.join(attributes)}"))
    return resolved


def _together(
    environment: Environment, options: SessionOptions, url: str | None
) -> Iterator[Finding]:
    """What options, environment and URL say about each other."""
    domain = options.domain
    if domain and (is_public_suffix(domain) or is_address(domain)):
        yield problem(
            "cookie-domain",
            f"the cookie's domain is {domain}",
            "browsers drop cookies for a domain under which strangers have names, like "
            "com or co.uk, and keep those for an address only without a domain",
            "set COOKIE_URL to the domain that your hosts share, like example.com, or "
            "leave it out",
        )
    if url:
        host, scheme = urlsplit(url).hostname or "", urlsplit(url).scheme
        if domain and not domain_matches(host, domain):
            yield problem(
                "domain-mismatch",
                f"the cookie is for {domain}, and the server is {host}",
                "a browser drops a cookie for a domain that the server is not in",
                "set COOKIE_URL (or the option domain) to a domain that the server is "
                "in, or leave it out",
            )
        if options.secure and scheme == "http":
            yield problem(
                "secure-over-http",
                "the cookie is Secure, and the server is asked over plain http",
                "browsers drop it, so no session is begun over http at all",
                "use https; behind a proxy that speaks it, start Tornado with "
                "xheaders=True and let the proxy send X-Forwarded-Proto; on your own "
                "machine set APP_ENV=development",
            )
    api = domain or (url and urlsplit(url).hostname)
    if api and options.same_site != "None":
        for origin in environment.cors_origins:
            host = urlsplit(origin).hostname or ""
            if not domain_matches(host, api) and not domain_matches(api, host):
                yield problem(
                    "cross-site",
                    f"CORS_URL lists {origin}, and the cookie is for {api} with "
                    f"SameSite={options.same_site}",
                    "to a browser these are two sites: it neither sends nor keeps the "
                    "cookie when a page of the one asks the other",
                    "put both under one domain and set COOKIE_URL to it (best), or "
                    'pass same_site="none", which browsers are about to stop '
                    '(see "SameSite" in the documentation)',
                )
    for origin in environment.cors_origins:
        if environment.production and origin.startswith("http://"):
            yield advice(
                "http-origin",
                f"CORS_URL lists {origin}, without https",
                "a page over http is another site than its own https twin, and its "
                "requests come without the cookie",
                "serve the page over https",
            )
