"""LC-14: lifetimes.md states the lifetimes that are, and what the standards ask for."""

from __future__ import annotations

import inspect
import re

import pytest

from tests.docs.pages import DOCS
from tests.docs.test_facts import ENVIRONMENT, table, value
from tornado_compas_session.settings import BROWSER_SESSION_IDLE, SessionOptions
from tornado_compas_session.stores.cleaner import Cleaner

DEFAULT = SessionOptions.build(ENVIRONMENT, has_store=True)
PAGE = (DOCS / "lifetimes.md").read_text()


@pytest.mark.parametrize("name", sorted(table("lifetimes.md", "option")))
def test_default_in_the_table_is_the_default(name: str) -> None:
    """Leaving the option out is what the page says that it is."""
    stated = value(table("lifetimes.md", "option")[name])

    assert DEFAULT == SessionOptions.build(
        ENVIRONMENT, has_store=True, **{name: stated}
    )


def test_numbers_in_the_text_are_the_numbers() -> None:
    """The default's row, "session", the renewal and the cleaner's round."""
    days = DEFAULT.max_age // 86400
    cleaner = inspect.signature(Cleaner).parameters

    assert (
        f"| the default | {days} days | {DEFAULT.absolute_max_age or 'none'} |" in PAGE
    )
    assert f"after {BROWSER_SESSION_IDLE // 60} minutes without use" in PAGE
    assert f"at most every {DEFAULT.renew:g} seconds" in PAGE
    assert (300, "every five minutes" in PAGE) == (cleaner["every"].default, True)
    assert f"deletes {cleaner['batch'].default} rows a statement" in PAGE


@pytest.mark.parametrize(
    ("level", "idle", "absolute"),
    [("AAL2", 3600, 24 * 3600), ("AAL3", 15 * 60, 12 * 3600)],
)
def test_levels_can_be_met(level: str, idle: int, absolute: int) -> None:
    """The limits of NIST SP 800-63B-4 are options that are accepted."""
    assert re.search(rf"\| NIST SP 800-63B-4, {level} \|", PAGE)
    options = SessionOptions.build(
        ENVIRONMENT, has_store=True, max_age=idle, absolute_max_age=absolute
    )

    assert (idle, absolute) == (options.idle, options.absolute_max_age)
