"""What browsers demand of a cookie's name and domain."""

from __future__ import annotations

import pytest

from tornado_compas_session.browsers import (
    is_public_suffix,
    prefix_of,
    public_name,
    unmet,
)


@pytest.mark.parametrize(
    ("key", "public"),
    [
        ("shop.sess", "shop.sess.public"),
        ("__Host-shop", "__Host-shop.public"),
        ("__host-shop", "__host-shop.public"),
        ("__Secure-shop", "__Secure-shop.public"),
        ("__Http-shop", "__Secure-shop.public"),
        ("__HTTP-shop", "__Secure-shop.public"),
        ("__Host-Http-shop", "__Host-shop.public"),
        ("__host-hTTP-shop", "__Host-shop.public"),
        ("__Host-Http-Http-shop", "__Host-shop.public"),
        ("__Http-Host-Http-shop", "__Secure-Host-Http-shop.public"),
    ],
)
def test_the_public_name_is_one_that_browsers_take(key, public):
    """Scripts read that cookie, so nothing in its name may demand HttpOnly (CK-15)."""
    assert public == public_name(key)
    prefix = prefix_of(key)
    assert [] == list(
        unmet(
            public,
            secure=prefix is not None,
            http_only=False,
            path="/" if prefix and prefix.host_only else "/x",
            domain=None if prefix and prefix.host_only else "example.com",
        )
    )


@pytest.mark.parametrize("name", ["shop", "_Host-shop", "x__Host-shop", "__Hostshop"])
def test_a_name_without_a_prefix_promises_nothing(name):
    """Only the very beginning of a name counts."""
    assert prefix_of(name) is None
    assert [] == list(
        unmet(name, secure=False, http_only=False, path="/x", domain="example.com")
    )


@pytest.mark.parametrize(
    ("domain", "public"),
    [
        ("com", True),
        ("co.uk", True),
        ("CO.UK", True),
        ("com.br", True),
        ("ac.jp", True),
        ("github.io", True),
        ("herokuapp.com", True),
        ("example.com", False),
        ("example.co.uk", False),
        ("shop.example.com", False),
        ("me.github.io", False),
        ("example.uk", False),
        ("co.example", False),
        ("127.0.0.1", False),
    ],
)
def test_public_suffixes(domain, public):
    """The rule finds what people write by mistake, and no domain of one's own."""
    assert public is is_public_suffix(domain)
