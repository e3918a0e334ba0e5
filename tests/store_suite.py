"""The suite that every store passes; it is the library's, for users' own stores."""

from __future__ import annotations

from tornado_compas_session.testing.conformance import Bench, StoreSuite
from tornado_compas_session.testing.conformance.bench import (
    change,
    created,
    data_of,
    signed_in,
    some_hash,
    turned,
)

__all__ = [
    "Bench",
    "StoreSuite",
    "change",
    "created",
    "data_of",
    "signed_in",
    "some_hash",
    "turned",
]
