"""
`Content`: a dict of plain values that notes what is set, removed and handed out.

Its methods are those of a mapping, built on the few below, so that nothing is handed
out or changed unnoticed. That it is a dict as well, and holds its content itself, is
for those who take no other mapping: `json.dumps`, Tornado's `write`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Self

from tornado_compas_session.core.change import IMMUTABLE, Ledger
from tornado_compas_session.core.jsondata import check_key, decode_object, encode
from tornado_compas_session.core.life import Life
from tornado_compas_session.core.types import JSON, user_text
from tornado_compas_session.exceptions import SessionDataError

if TYPE_CHECKING:
    _Dict = dict[str, JSON]
else:

    class _Dict(MutableMapping, dict):
        __slots__ = ()


class Content(_Dict):
    """What a session holds; the rest of the session follows in session.py."""

    __slots__ = ("ledger", "life", "opened")

    ledger: Ledger
    life: Life
    #: Whether the content was decoded.
    opened: bool

    def open(self) -> Self:
        """Decodes the content, which happens when the session is first asked for."""
        if not self.opened:
            self.opened = True
            dict.update(self, self.ledger.decode())
        return self

    def __getitem__(self, key: str) -> JSON:
        value = dict.__getitem__(self, key)
        if not isinstance(value, IMMUTABLE):
            self.ledger.note(key, self)
        return value

    def get(self, key: str, default: JSON = None) -> JSON:
        """The value of a key, or the default."""
        # The inherited one raises and catches a KeyError, for most of its time.
        return self[key] if dict.__contains__(self, key) else default

    def __setitem__(self, key: str, value: JSON) -> None:
        check_key(key)
        self.life.check_open()
        if key == "user_id":
            self._check_user(value)
        self.ledger.note(key, self)
        dict.__setitem__(self, key, value)
        if key == "user_id":
            self._changed_identity()

    def __delitem__(self, key: str) -> None:
        if not dict.__contains__(self, key):
            raise KeyError(key)
        self.life.check_open()
        if key == "user_id":
            self._check_user(None)
        self.ledger.note(key, self)
        dict.__delitem__(self, key)
        if key == "user_id":
            self._changed_identity()

    # Python, so that `dict(session)` does not take the values past `__getitem__`.
    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self)

    def __reversed__(self) -> Iterator[str]:
        return dict.__reversed__(self)

    __len__ = dict.__len__
    __contains__ = dict.__contains__

    def copy(self) -> dict[str, JSON]:
        """A plain dict of it; nested values are shared, as with any dict."""
        return dict(self)

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> dict[str, JSON]:
        return decode_object(encode(dict(dict.items(self))))

    def __or__(self, other: Any) -> dict[str, JSON]:  # type: ignore[override]
        return (
            dict(self) | dict(other) if isinstance(other, Mapping) else NotImplemented
        )

    def __ror__(self, other: Any) -> dict[str, JSON]:  # type: ignore[override]
        return (
            dict(other) | dict(self) if isinstance(other, Mapping) else NotImplemented
        )

    def __ior__(self, other: Any) -> Self:  # type: ignore[override]
        self.update(other)
        return self

    def clear(self) -> None:
        """
        Empties the session. Who is signed in is so no more, and gets a new id with
        that; anybody else keeps theirs.
        """
        self.replace({})

    def replace(self, content: Mapping[str, JSON]) -> None:
        """Makes this the whole content; what `self.session = {…}` does."""
        if not isinstance(content, Mapping):
            raise TypeError(
                "a session is a dict with string keys, or None to end it; "
                f"got {type(content).__name__}"
            )
        content = dict(content)
        for key in content:
            check_key(key)
        self.life.check_open()
        self._check_user(content.get("user_id"))
        self.open()
        self.ledger.replace()
        dict.clear(self)
        dict.update(self, content)
        self._changed_identity()

    def _check_user(self, value: JSON) -> None:
        """Whether `user_id` may become this, now."""
        user = user_text(value)
        if user != self.user:
            self.life.check_open(cookie=True)

    @property
    def user(self) -> str | None:
        """Who the visitor is, as text; None is nobody."""
        try:
            return user_text(dict.get(self, "user_id"))
        except SessionDataError:  # written to the row by somebody else
            return None

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return dict(self) == dict(other) if isinstance(other, Mapping) else False

    __hash__ = None

    def _changed_identity(self) -> None:
        raise NotImplementedError
