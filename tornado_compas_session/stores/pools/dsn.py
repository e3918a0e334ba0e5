"""
A DSN as libpq and its manuals have it, for asyncpg, which knows a part of it.

What asyncpg has under another name is translated, what changes nothing that matters
is left out with a line in the log, and what asyncpg would make less safe is refused.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode

from tornado_compas_session.exceptions import SettingsError

logger = logging.getLogger("tornado_compas_session")

_FORM = "write it as postgresql://user:password@host:5432/name"
_ENCODE = (
    "user name and password have to be percent-encoded there, @ as %40 and / as %2F "
    "(urllib.parse.quote(password, safe=''))"
)

#: By how it begins, what is no DSN at all; the first that fits.
_WRONG = (
    (r"(?!.*://).*\b(host|dbname|user)\s*=", f"in the form name=value; {_FORM}"),
    (r"(?!.*://)", f"not a URL; {_FORM}"),
    (r"postgres(ql)?\+", "one of SQLAlchemy's, with a driver; write postgresql://"),
    (r"(?!postgres(ql)?://)", f"not for PostgreSQL; {_FORM}"),
)
_DSN = re.compile(
    r"(?P<url>postgres(ql)?://([^@/?#\[\]]*@)?(?P<hosts>[^@/?#]*)(/[^@?#]*)?)"
    r"(\?(?P<query>[^#]*))?",
    re.IGNORECASE | re.DOTALL,
)
_HOST = re.compile(r"(\[[^]]+]|[^:[\]]*):?(.*)", re.DOTALL)

#: asyncpg takes what it does not know for a setting of the server, which refuses it.
#: Without these a connection is as safe as with them, unless one is `require`.
_LEFT_OUT = {
    *("client_encoding", "fallback_application_name", "gssdelegation", "gssencmode"),
    *("channel_binding", "load_balance_hosts", "replication", "servicefile"),
    *("min_protocol_version", "max_protocol_version"),
    *("sslcertmode", "sslcompression", "sslkeylogfile", "sslsni"),
}
#: These ask for a check, a way to sign in or a host, and asyncpg has no such thing.
_REFUSED = {
    *("oauth_client_id", "oauth_client_secret", "oauth_issuer", "oauth_scope"),
    *("require_auth", "requirepeer", "requiressl", "sslcrldir", "hostaddr"),
    *("scram_client_key", "scram_server_key"),
}
_CHOICES = {
    "sslmode": "disable allow prefer require verify-ca verify-full",
    "target_session_attrs": "any primary standby prefer-standby read-write read-only",
}
#: What is a number: for asyncpg, and for the socket by the kernel's name.
_NUMBERS = {
    "connect_timeout": "timeout",
    "keepalives": "SO_KEEPALIVE",
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}


class Dsn(NamedTuple):
    """What a DSN says, taken apart for asyncpg."""

    #: The part that asyncpg reads itself.
    url: str
    #: Further arguments of `asyncpg.connect`.
    options: dict[str, Any]
    #: Options of the socket, by the kernel's names.
    link: dict[str, int]
    #: Its hosts with their ports, for people.
    where: str
    #: The file with the certificates to trust, if it names one.
    trusted: str | None


def read_dsn(dsn: object) -> Dsn:
    """Raises `SettingsError`, without a letter of a password, if it cannot be meant."""
    if not isinstance(dsn, str):
        kind = type(dsn).__name__
        raise SettingsError(f"the DSN is {kind}, no text; is DATABASE_URL set? {_FORM}")
    for sign, what in _WRONG:
        if re.match(sign, dsn.strip(), re.IGNORECASE | re.DOTALL):
            raise SettingsError(f"the DSN is {what}")
    parts = _DSN.fullmatch(dsn.strip())
    if parts is None:
        raise SettingsError(f"the DSN cannot be taken apart: {_ENCODE}")
    given = _parameters(parts["query"] or "")
    where, trusted = target_of(given | _hosts(parts["hosts"], given))
    link = _numbers(given)
    options: dict[str, Any] = {}
    if "timeout" in link:
        options["timeout"] = float(link.pop("timeout"))
    if trusted == "system":  # libpq's word for those that the system trusts
        options["ssl"] = context = ssl.create_default_context()
        if "sslcert" in given:
            keys = (given.get(name) for name in ("sslkey", "sslpassword"))
            context.load_cert_chain(given["sslcert"], *keys)
    if left_out := sorted(_LEFT_OUT & given.keys()):
        logger.info("asyncpg does without %s of the DSN", ", ".join(left_out))
    kept = {name: given[name] for name in given if name not in _LEFT_OUT | {*_NUMBERS}}
    query = "?" + urlencode(kept, quote_via=quote) if kept else ""
    return Dsn(parts["url"] + query, options, link, where, trusted)


def target_of(parameters: Mapping[str, Any]) -> tuple[str, str | None]:
    """
    Hosts with their ports, for people, and the certificates to trust: of what a driver
    has taken apart, which has several of them in a list, or with commas.

    What stands before an "@" is left out: it is the end of a password that was not
    percent-encoded, and that drivers take for a part of the host's name.
    """
    hosts, ports = (_listed(parameters.get(name)) for name in ("host", "port"))
    # One port is that of all the hosts.
    pairs = zip(hosts, (ports or [""]) * len(hosts), strict=False)
    where = ", ".join(f"{h.rpartition('@')[2]}:{p or 5432}" for h, p in pairs if h)
    if any("@" in host for host in hosts):
        where += " (is the password in the DSN percent-encoded?)"
    return where or "the database", parameters.get("sslrootcert")


def _listed(value: Any) -> list[str]:
    each = value if isinstance(value, list | tuple) else str(value or "").split(",")
    return [str(one or "") for one in each]


def _parameters(query: str) -> dict[str, str]:
    try:
        given = dict(parse_qsl(query, strict_parsing=bool(query)))
    except ValueError:
        raise SettingsError(
            f"what follows the ? in the DSN is not made of name=value: {_ENCODE}"
        ) from None
    for name, choices in _CHOICES.items():
        if name in given and given[name].replace("_", "-") not in choices.split():
            raise SettingsError(f"{name} in the DSN is none of {choices}")
    refused = _REFUSED & given.keys()
    refused |= {name for name in _LEFT_OUT if given.get(name) == "require"}
    if refused:
        raise SettingsError(
            f"the DSN asks for {', '.join(sorted(refused))}, which asyncpg does not "
            "have, so the connection would be less safe than it says; leave it out, or "
            'pass a pool of psycopg (see "Pools" in the documentation)'
        )
    return given


def _hosts(authority: str, parameters: Mapping[str, str]) -> dict[str, list[str]]:
    """The hosts of the URL, else of its parameters, and their ports."""
    hosts, ports = (_listed(parameters.get(name)) for name in ("host", "port"))
    if authority:
        each = [_HOST.fullmatch(spec) for spec in authority.split(",")]
        hosts, ports = ([one[n] for one in each if one] for n in (1, 2))
    wrong = [p for p in ports if p and not (p.isdecimal() and 0 < int(p) <= 65535)]
    if wrong or ("" in hosts and len(hosts) > 1):
        raise SettingsError(
            "the DSN has something else than a host, or several with commas between, "
            f"and ports between 1 and 65535; {_FORM}: {_ENCODE}"
        )
    return {"host": [unquote(host) for host in hosts], "port": ports}


def _numbers(parameters: Mapping[str, str]) -> dict[str, int]:
    """Those that it has; zero or less is the system's own choice, but `keepalives`."""
    found = {}
    for name in _NUMBERS.keys() & parameters.keys():
        if not re.fullmatch(r"-?\d+", parameters[name]):
            raise SettingsError(f"{name} in the DSN is not a whole number")
        number = int(parameters[name])
        if number > 0 or name == "keepalives":
            found[_NUMBERS[name]] = number
    return found
