"""
What has changed: the JSON texts that the row is known to hold, against those of now.

A key can only have changed if it was set, deleted, or handed out while mutable. So the
JSON text of its old value is noted at that moment, and compared when something is to be
saved. No proxies, no copies; a key that nobody touched costs nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from tornado_compas_session.core.jsondata import decode_object, encode
from tornado_compas_session.core.types import JSON

_SKIP = object()
#: What a key holds of these changes only by being set.
IMMUTABLE = (str, int, float, bool, type(None))


class Difference(NamedTuple):
    """What the row does not have yet; the texts are JSON."""

    changed: dict[str, str]
    removed: tuple[str, ...] = ()
    #: Where the whole content was replaced: which replacement this is of.
    exact: object = None

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed or self.exact is not None)


NOTHING = Difference({})


class Ledger:
    """
    What the row of a session holds, as far as it matters to tell what has changed.

    The content itself is the session's; it is passed in where it is needed, and read as
    the dict that it is: past the methods of a session, which note what is handed out.
    """

    #: False once something was set, or handed out that could have been changed.
    untouched = True
    #: Set while the whole content is to be replaced, anew for each replacement.
    _exact: object | None = None
    #: The last difference, if nothing has been touched since and it has no value that
    #: can change by itself.
    _settled: Difference | None = None

    def __init__(self, raw: str | None) -> None:
        #: The row's data as it was read; None where there is no row.
        self._raw = raw
        #: For each key that may have changed, its text in the row (None: absent).
        self._known: dict[str, str | None] = {}
        #: Whether the row has no other keys than the known ones.
        self._complete = raw is None
        #: The row's `user_id`, once it was asked for.
        self._user: JSON = _SKIP if raw is not None else None
        #: No fewer bytes than the row's JSON has.
        self._most = 2 if raw is None else 4 * len(raw)

    def decode(self) -> dict[str, JSON]:
        """The content of the row."""
        if self._raw is None:
            return {}
        content = decode_object(self._raw)
        self._user = content.get("user_id")
        return content

    @property
    def user(self) -> JSON:
        """`user_id` as the row has it."""
        if self._user is _SKIP:
            self.decode()
        return self._user

    def note(self, key: str, content: dict[str, JSON]) -> None:
        """To be called before the value of a key may change, with what is there."""
        self.untouched = False
        self._settled = None
        if key not in self._known and self._exact is None:
            # What was loaded was stored once, so this cannot fail.
            held = _SKIP if self._complete else dict.get(content, key, _SKIP)
            self._known[key] = None if held is _SKIP else encode(held)

    def replace(self) -> None:
        """The content becomes another one; the row's other keys are to go."""
        self.untouched = False
        self._settled = None
        if self._raw is not None:  # else there is no row, and no key to be rid of
            self._exact = object()

    def difference(self, content: dict[str, JSON]) -> Difference:
        """
        What to write; `NOTHING` and no other if there is nothing. Raises
        `SessionDataError` for what cannot be kept.
        """
        if self._exact is not None:
            changed = {key: encode(value, key) for key, value in dict.items(content)}
            return Difference(changed, (), self._exact)
        changed, removed, settled = {}, [], True
        known = self._known
        keys = known | dict.fromkeys(dict.keys(content)) if self._complete else known
        for key in keys:
            before = known.get(key)
            value = dict.get(content, key, _SKIP)
            if value is _SKIP:
                if before is not None:
                    removed.append(key)
                continue
            settled = settled and isinstance(value, IMMUTABLE)
            if (text := encode(value, key)) != before:
                changed[key] = text
        difference = NOTHING
        if changed or removed:
            difference = Difference(changed, tuple(removed))
        self._settled = difference if settled else None
        return difference

    def written(self, difference: Difference, user: JSON) -> None:
        """
        The row has it now. What changed while it was being written stays a difference,
        and so does what is yet to come to values that were handed out.
        """
        self._most = self.at_most(difference)
        if difference.exact is not None:
            # Of a replacement that came meanwhile, the row has another content.
            self._known = dict(difference.changed)
            self._complete = True
            if self._exact is difference.exact:
                self._exact = None
        else:
            self._known.update(difference.changed)
            for key in difference.removed:
                self._known[key] = None
        if self._raw is None:
            self._raw = "{}"
        self._user = user
        self.untouched = self._settled is difference

    def reread(self, raw: str) -> None:
        """The row is this, and may have what it is not known to have been told."""
        row = decode_object(raw)
        for key in self._known:
            self._known[key] = encode(row[key]) if key in row else None
        self._raw, self._most, self._user = raw, 4 * len(raw), row.get("user_id")

    def holds(self, key: str, text: str) -> None:
        """The row has this under the key, whoever wrote it."""
        self._known[key] = text

    def at_most(self, difference: Difference) -> int:
        """
        No fewer bytes than the row's JSON will have, once the difference is merged: a
        look that costs little, and spares most sessions the exact one.
        """
        most = self._most if difference.exact is None else 2
        for key, text in difference.changed.items():
            # Of a key a character may need six bytes (\u0000), of a text four.
            most += 6 * len(key) + 4 * len(text) + 4
        return most

    @property
    def stored(self) -> int:
        """The bytes of the row's JSON, as it was read."""
        return len((self._raw or "{}").encode())
