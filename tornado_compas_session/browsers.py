"""
What browsers demand of a cookie's name and domain. They say nothing where it is not
met: the cookie is dropped.

RFC 6265bis, section 4.1.3, and its successor ("layered cookies"), which adds the two
prefixes with `Http-`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

#: Browsers keep no cookie longer (RFC 6265bis, section 5.5).
MAX_MAX_AGE = 400 * 24 * 60 * 60


class Prefix(NamedTuple):
    """The beginning of a name that promises how the cookie was set; always Secure."""

    text: str
    #: By HTTP and with HttpOnly, so that no script has planted it.
    http_only: bool
    #: By this host, for this host and all of its paths.
    host_only: bool


#: The longest first.
PREFIXES = (
    Prefix("__Host-Http-", http_only=True, host_only=True),
    Prefix("__Host-", http_only=False, host_only=True),
    Prefix("__Http-", http_only=True, host_only=False),
    Prefix("__Secure-", http_only=False, host_only=False),
)


def prefix_of(name: str) -> Prefix | None:
    """The prefix that a cookie's name begins with, in any case of its letters."""
    lower = name.lower()
    return next((p for p in PREFIXES if lower.startswith(p.text.lower())), None)


def unmet(
    name: str, *, secure: bool, http_only: bool, path: str | None, domain: str | None
) -> Iterator[str]:
    """What the prefix of the name demands and these attributes do not have."""
    prefix = prefix_of(name)
    if prefix is None:
        return
    if not secure:
        yield "Secure"
    if prefix.http_only and not http_only:
        yield "HttpOnly"
    if prefix.host_only and domain:
        yield "no Domain"
    if prefix.host_only and path != "/":
        yield "Path=/"


def public_name(key: str) -> str:
    """
    The name of the public cookie that goes with a session cookie of this name.

    It is `<key>.public`; and scripts read it, so a prefix that demands HttpOnly gives
    way to the one that demands the same without it.
    """
    # Not `if`: what is left of __Host-Http-Http-shop begins with a prefix again.
    while (prefix := prefix_of(key)) is not None and prefix.http_only:
        plain = "__Host-" if prefix.host_only else "__Secure-"
        key = plain + key[len(prefix.text) :]
    return key + ".public"


# Under which the registries of countries sell names: co.uk, com.br, ac.jp.
_REGISTRIES = {"ac", "co", "com", "edu", "gob", "gov", "mil", "net", "org"}
# Under which hosting companies give names to strangers.
_HOSTERS = {
    "appspot.com",
    "azurewebsites.net",
    "cloudfront.net",
    "firebaseapp.com",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "herokuapp.com",
    "netlify.app",
    "ngrok.io",
    "onrender.com",
    "pages.dev",
    "vercel.app",
    "web.app",
    "workers.dev",
}


def is_public_suffix(domain: str) -> bool:
    """
    Whether strangers have names under this domain, so that browsers refuse it.

    Browsers have a list of ten thousand. This is a rule that finds what people write by
    mistake: a top-level domain, a registry like `co.uk`, and some hosting companies.
    """
    labels = domain.lower().split(".")
    if len(labels) == 2:
        registry = labels[0] in _REGISTRIES and len(labels[1]) == 2
        return registry or ".".join(labels) in _HOSTERS
    return len(labels) == 1
