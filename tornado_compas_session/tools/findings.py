"""What the doctor says: one finding, in three parts, and the words for all of them."""

from __future__ import annotations

import re
import textwrap
from typing import Literal, NamedTuple

#: A problem keeps sessions from being kept, or soon will; advice is worth a thought.
Level = Literal["problem", "advice", "good"]
_LEVELS: dict[str, Level] = {"✗": "problem", "!": "advice", "✓": "good"}
_MARKS = {level: mark for mark, level in _LEVELS.items()}

#: All that can be wrong, as it is shown. In braces is what the check has seen.
_WORDS = """
✗ environment: {what}
    why: the server does not start with this
    fix: mend the variable; all processes need the same value
         (see "Environment and keys" in the documentation)
✗ keys: {what}
    why: the server does not start with this, or signs with keys that others do not have
    fix: make a key with `tornado-compas-session keygen`; all processes need the same
         (see "Environment and keys" in the documentation)
! development-key: APP_KEYS is not set; in development a key is derived from APP_NAME
    why: anybody can guess it and sign cookies; and a server with another APP_NAME
         refuses the cookies of this one
    fix: fine on your own machine; elsewhere set APP_KEYS (tornado-compas-session
         keygen) and not APP_ENV=development
✗ options: {what}
    why: the server does not start with this, or browsers drop the cookie
    fix: change the option (see "Options" in the documentation)
✗ cookie-domain: the cookie's domain is {domain}
    why: browsers drop cookies for a domain under which strangers have names, like com
         or co.uk, and keep those for an address only without a domain
    fix: set COOKIE_URL to the domain that your hosts share, like example.com, or leave
         it out
✗ domain-mismatch: the cookie is for {domain}, and the server is {host}
    why: a browser drops a cookie for a domain that the server is not in
    fix: set COOKIE_URL (or the option domain) to a domain that the server is in, or
         leave it out
✗ secure-over-http: the cookie is Secure, and the server is asked over plain http
    why: browsers drop it, so no session is begun over http at all
    fix: use https; behind a proxy that speaks it, start Tornado with xheaders=True and
         let the proxy send X-Forwarded-Proto; on your own machine set
         APP_ENV=development
✗ cross-site: CORS_URL lists {origin}, and the cookie is for {site} with
              SameSite={same_site}
    why: to a browser these are two sites: it neither sends nor keeps the cookie when a
         page of the one asks the other
    fix: put both under one domain and set COOKIE_URL to it (best), or pass
         same_site="none", which browsers are about to stop
         (see "SameSite" in the documentation)
! http-origin: CORS_URL lists {origin}, without https
    why: a page over http is another site than its own https twin, and its requests come
         without the cookie
    fix: serve the page over https
! no-database: DATABASE_URL is not set, so the database was not looked at
    why: most sessions that are not kept fail there
    fix: set DATABASE_URL to what the application connects to
✗ database-url: {what}
    why: the server does not start with this
    fix: mend DATABASE_URL
✗ database-certificate: {what}
    why: every request with a session gets a 503
    fix: name the authority of the server's certificate in sslrootcert, and the host as
         the certificate has it
✗ database-refused: the database refuses us: {what}
    why: every request with a session gets a 503
    fix: check user, password and database name in DATABASE_URL
✗ database-unreachable: the database cannot be reached: {what}
    why: every request with a session gets a 503 until it can
    fix: check DATABASE_URL, that PostgreSQL runs, and the network between
✗ database-version: PostgreSQL {version}
    why: the statements need 13 or newer
    fix: upgrade the server
✗ read-only: the database takes no writes: a standby, or switched to read-only
    why: sessions can be read and not saved; such requests get a 503
    fix: point DATABASE_URL at the primary (target_session_attrs=read-write among
         several hosts)
! encoding: the database keeps text in {encoding}
    why: a visitor whose session holds a character that it has no place for gets an
         error; SQL_ASCII keeps any bytes, and programs misread each other's
    fix: keep sessions in a database made with ENCODING 'UTF8'
! clock: the database's clock is {seconds:.0f} s {where} this machine's
    why: sessions expire by the database's clock and signatures are dated by this
         machine's: cookies that are dated over a day ahead are refused
    fix: run a time service (NTP) on both
✗ schema-missing: there is no table compas_session in {path}
    why: every request with a session gets a 503
    fix: run `tornado-compas-session migrate`, against this database and with this
         search_path
✗ schema-columns: the table compas_session lacks {columns}
    why: every request with a session gets a 503
    fix: run `tornado-compas-session migrate`; if that says it is up to date, the table
         was changed by hand
✗ privileges: this user may not {verbs} on compas_session
    why: requests that need it get a 503
    fix: GRANT {verbs} ON compas_session TO …, as its owner
✗ index-missing: there is no valid index on compas_session ({column})
    why: {purpose} reads the whole table; under load it times out
    fix: make it anew with CREATE INDEX CONCURRENTLY, as
         `tornado-compas-session migrate --print` has it
✗ schema-outdated: migrations are to be applied: {names}
    why: this version of the library may ask for what is not there yet
    fix: run `tornado-compas-session migrate` before the new version serves
! citus: there is a Citus with shards on {servers} servers, and the table compas_session
         is on this server alone
    why: it is as fast, and as large, as this server
    fix: when that is not enough: `tornado-compas-session migrate --distributed`
✗ distributed-by: the table compas_session is distributed by {column}
    why: what asks for a session by its handle asks every server, or is refused
    fix: SELECT undistribute_table('compas_session'), and then
         `tornado-compas-session migrate --distributed`
! pgbouncer: something between gives each transaction another connection (a PgBouncer in
             pool_mode=transaction?)
    why: sessions work that way only while prepared statements do
    fix: see "PgBouncer" in the documentation for the settings of each driver
✗ pgbouncer-statement: there is a PgBouncer in pool_mode=statement between
    why: it allows no transactions, so `session.lock()` is a 503
    fix: pool_mode=transaction, or session, for this database
✗ pgbouncer-prepared: something between gives each transaction another connection (a
                      PgBouncer in pool_mode=transaction?), and prepared statements get
                      lost on the way
    why: requests fail now and then, when their statement was prepared on another
         connection
    fix: PgBouncer 1.21 with max_prepared_statements, or pool_mode=session, or prepared
         statements switched off in the driver (see "PgBouncer" in the documentation)
✗ server-unreachable: {url} cannot be had: {what}
    why: without an answer there is no cookie
    fix: check the URL and that the server runs
✗ page-status: {request} is answered with {status}
    why: a page that fails begins no session
    fix: see to the path of --url (404), pass --method POST (405), name a page without a
         form (403), for anybody (401), or the one that this leads to (3xx); at 503 see
         what is said here of the database; else look into the log of the server
✗ no-cookie: {request} sets no cookie {key}
    why: a session begins when a handler puts something into it and does not fail, and
         one with a Secure cookie only where Tornado knows of https
    fix: name a page that writes to the session (--method POST if need be); behind a
         proxy that speaks https, start Tornado with xheaders=True
✗ another-name: the session cookie came as {name}, and {key} is expected
    why: the server runs with another APP_NAME or another key; servers that call the
         cookie differently do not see each other's sessions
    fix: give all of them the same APP_NAME and key, and the doctor too
         (--option key={name})
✗ cookie-dropped: a browser drops the cookie {name}: {reasons}
    why: it is not sent with the next request, so there is no session
    fix: change COOKIE_URL or the options secure, domain, path, same_site, key; or how
         the server is reached
✗ session-lost: the server clears the session cookie that it has just set
    why: it verified the cookie and found no such session: it looks into another
         database, or the session is ended at once
    fix: give all processes the same DATABASE_URL; see that the page does not end the
         session
✗ session-not-kept: the second request began another session
    why: the server did not accept its own cookie: processes with different APP_KEYS,
         keys made anew at each start, or another APP_NAME
    fix: give all processes the same APP_KEYS and APP_NAME
✗ cors: the server does not let pages of {origin} read its answers
    why: a browser hides the answer, and keeps no cookie of it
    fix: give the server the same CORS_URL, and its handlers CorsMixin (or use get_app)
"""


class Finding(NamedTuple):
    """One thing that the doctor has seen."""

    level: Level
    #: Its short name, the same every time.
    name: str
    #: What is the case.
    what: str
    #: Why it matters; empty where all is well.
    why: str = ""
    #: What to do about it.
    fix: str = ""

    def __str__(self) -> str:
        lines = [f"{_MARKS[self.level]} {self.name}: {self.what}"]
        lines += [f"    why: {self.why}", f"    fix: {self.fix}"] if self.why else []
        return "\n".join(
            textwrap.fill(line, 88, subsequent_indent=" " * (9 if i else 4))
            for i, line in enumerate(lines)
        )


def _read(entry: str) -> Finding:
    parts = re.fullmatch(
        r"(.) (\S+): (.+) why: (.+) fix: (.+)", " ".join(entry.split())
    )
    assert parts, entry
    mark, *words = parts.groups()
    return Finding(_LEVELS[mark], *words)


CATALOGUE = {
    finding.name: finding
    for finding in map(_read, re.split(r"\n(?=\S)", _WORDS.strip()))
}


def found(name: str, /, **seen: object) -> Finding:
    """Something that is not as it should be, in the words of the catalogue."""
    level, _, *words = CATALOGUE[name]
    return Finding(level, name, *(word.format_map(seen) for word in words))


def good(name: str, what: str) -> Finding:
    """Something that is as it should be."""
    return Finding("good", name, what)
