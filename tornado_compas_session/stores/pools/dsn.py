"""
A DSN as libpq and its manuals have it, for asyncpg, which knows a part of it.

What asyncpg has under another name is translated, what changes nothing that matters
is left out with a line in the log, and what asyncpg would make less safe is refused.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode

from tornado_compas_session.exceptions import SettingsError

logger = logging.getLogger("tornado_compas_session")

_FORM = "write it as postgresql://user:password@host:5432/name"
_ENCODE = (
    "user name and password have to be percent-encoded there, @ as %40 and / as %2F "
    "(urllib.parse.quote(password, safe=''))"
)

#: asyncpg takes what it does not know for a setting of the server, which refuses it.
#: Without these a connection is as safe as with them.
_LEFT_OUT = {
    *("client_encoding", "fallback_application_name", "gssdelegation", "gssencmode"),
    *("channel_binding", "hostaddr", "load_balance_hosts", "replication"),
    *("min_protocol_version", "max_protocol_version", "servicefile"),
    *("sslcertmode", "sslcompression", "sslkeylogfile", "sslsni"),
}
#: These ask for a check, or a way to sign in, that asyncpg does not have.
_REFUSED = {
    *("oauth_client_id", "oauth_client_secret", "oauth_issuer", "oauth_scope"),
    *("require_auth", "requirepeer", "requiressl", "sslcrldir"),
    *("scram_client_key", "scram_server_key"),
}
_REFUSED_IF_REQUIRED = {"channel_binding", "gssencmode", "sslcertmode"}
_CHOICES = {
    "sslmode": "disable allow prefer require verify-ca verify-full",
    "target_session_attrs": "any primary standby prefer-standby read-write read-only",
}
#: Options of the socket, by the names of libpq and of the kernel.
_LINK = {
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


def read_dsn(dsn: str) -> Dsn:
    """Raises `SettingsError`, without a letter of a password, if it cannot be meant."""
    scheme, authority, path, query = _split(dsn)
    parameters = _parameters(query)
    where = addresses(*_hosts(authority, parameters))
    options: dict[str, Any] = {}
    if (seconds := _number(parameters, "connect_timeout")) is not None:
        options["timeout"] = float(seconds)
    if parameters.get("sslrootcert") == "system":
        options["ssl"] = _system_trust(parameters)
    link = {
        option: value
        for name, option in _LINK.items()
        if (value := _number(parameters, name)) is not None
    }
    for name in ("connect_timeout", *_LINK):
        parameters.pop(name, None)
    if left_out := sorted(_LEFT_OUT & parameters.keys()):
        logger.info("asyncpg does without %s of the DSN", ", ".join(left_out))
    kept = {name: parameters[name] for name in parameters if name not in _LEFT_OUT}
    url = f"{scheme}://{authority}{path}"
    if kept:
        url += "?" + urlencode(kept, quote_via=quote)
    return Dsn(url, options, link, where, parameters.get("sslrootcert"))


def addresses(hosts: Sequence[str], ports: Sequence[str]) -> str:
    """
    Hosts with their ports, for people.

    What stands before an "@" is left out: it is the end of a password that was not
    percent-encoded, and that drivers take for a part of the host's name.
    """
    doubt = " (is the password in the DSN percent-encoded?)"
    if not hosts:
        return "the database"
    each = list(ports) if len(ports) == len(hosts) else [*ports[:1]] * len(hosts)
    each = each or [""] * len(hosts)
    shown = ", ".join(
        f"{host.rpartition('@')[2] or 'localhost'}:{port or 5432}"
        for host, port in zip(hosts, each, strict=True)
    )
    return shown + doubt if any("@" in host for host in hosts) else shown


def target_in(parameters: Mapping[str, Any]) -> tuple[str, str | None]:
    """The same, and the certificates to trust, of what libpq has taken apart."""
    hosts, ports = (str(parameters.get(n) or "").split(",") for n in ("host", "port"))
    where = addresses(hosts if hosts != [""] else [], ports)
    return where, parameters.get("sslrootcert")


def _split(dsn: object) -> tuple[str, str, str, str]:
    if not isinstance(dsn, str):
        kind = type(dsn).__name__
        raise SettingsError(f"the DSN is {kind}, no text; is DATABASE_URL set? {_FORM}")
    scheme, found, rest = dsn.strip().partition("://")
    scheme = scheme.lower()
    if not found:
        if re.search(r"\b(host|dbname|user|service)\s*=", dsn):
            raise SettingsError(f"the DSN is in the form name=value; {_FORM}")
        raise SettingsError(f"the DSN is not a URL; {_FORM}")
    if re.fullmatch(r"postgres(ql)?\+\w+", scheme):
        raise SettingsError(
            f"{scheme}:// in the DSN names a driver, as SQLAlchemy wants it; "
            "write postgresql://"
        )
    if scheme not in {"postgres", "postgresql"}:
        shown = f"for {scheme}" if scheme.isalnum() else "for something else"
        raise SettingsError(f"the DSN is {shown}, not for PostgreSQL; {_FORM}")
    parts = re.fullmatch(r"([^/?]*)([^?]*)\??(.*)", rest, re.S)
    assert parts
    authority, path, query = parts.groups()
    signed_in, at, _ = authority.rpartition("@")
    if "#" in rest or re.search(r"[@\[\]]", signed_in) or (not at and "@" in path):
        raise SettingsError(f"the DSN cannot be taken apart: {_ENCODE}")
    return scheme, authority, path, query


def _parameters(query: str) -> dict[str, str]:
    try:
        given = dict(parse_qsl(query, strict_parsing=bool(query)))
    except ValueError:
        raise SettingsError(
            f"what follows the ? in the DSN is not made of name=value: {_ENCODE}"
        ) from None
    for name, choices in _CHOICES.items():
        value = given.get(name)
        if value is not None and value.replace("_", "-") not in choices.split():
            raise SettingsError(f"{name} in the DSN is none of {choices}")
    refused = _REFUSED & given.keys()
    refused |= {n for n in _REFUSED_IF_REQUIRED if given.get(n) == "require"}
    if refused:
        raise SettingsError(
            f"the DSN asks for {', '.join(sorted(refused))}, which asyncpg does not "
            "have, so the connection would be less safe than it says; leave it out, or "
            'pass a pool of psycopg (see "Pools" in the documentation)'
        )
    if fallback := given.get("fallback_application_name"):
        given.setdefault("application_name", fallback)
    return given


def _hosts(
    authority: str, parameters: dict[str, str]
) -> tuple[Sequence[str], Sequence[str]]:
    spec = authority.rpartition("@")[2]
    if not spec:
        if "host" not in parameters and "hostaddr" in parameters:
            parameters["host"] = parameters["hostaddr"]
        hosts = [host for host in parameters.get("host", "").split(",") if host]
        return hosts, [_port(port) for port in parameters.get("port", "").split(",")]
    found = [re.fullmatch(r"(\[[^]]+]|[^:[]*)(?::(.*))?", s) for s in spec.split(",")]
    if None in found or (len(found) > 1 and "" in spec.split(",")):
        raise SettingsError(f"the hosts in the DSN cannot be told apart; {_FORM}")
    pairs = [(unquote(each[1]), _port(each[2] or "")) for each in found if each]
    return [host for host, _ in pairs], [port for _, port in pairs]


def _port(text: str) -> str:
    if not text:
        return text
    if not text.isdecimal():
        raise SettingsError(f"a port in the DSN is not a number: {_ENCODE}")
    if not 1 <= int(text) <= 65535:
        raise SettingsError(f"the port {text} in the DSN is not between 1 and 65535")
    return text


def _number(parameters: Mapping[str, str], name: str) -> int | None:
    """Zero or less is the system's own choice, but for `keepalives`."""
    text = parameters.get(name)
    if text is None:
        return None
    try:
        number = int(text)
    except ValueError:
        raise SettingsError(f"{name} in the DSN is not a whole number") from None
    return number if number > 0 or name == "keepalives" else None


def _system_trust(parameters: Mapping[str, str]) -> ssl.SSLContext:
    """libpq's word for the certificates that the system trusts, checked to the full."""
    context = ssl.create_default_context()
    if certificate := parameters.get("sslcert"):
        try:
            context.load_cert_chain(
                certificate, parameters.get("sslkey"), parameters.get("sslpassword")
            )
        except OSError as error:
            raise SettingsError(
                f"the certificate {certificate} cannot be used: {error.strerror}"
            ) from None
    return context
