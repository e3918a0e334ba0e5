"""What there is to buy."""

from __future__ import annotations

from typing import NamedTuple


class Poster(NamedTuple):
    key: str
    title: str
    about: str
    price: int  # euros


POSTERS = {
    poster.key: poster
    for poster in [
        Poster("sunrise", "Sunrise", "Half a sun, and its sea", 24),
        Poster("stairs", "Stairs", "Down, or up", 28),
        Poster("moons", "Moons", "A month in nine nights", 32),
        Poster("waves", "Waves", "What the harbour hears", 24),
        Poster("city", "City", "Windows, some of them awake", 36),
        Poster("leaf", "Leaf", "Cut with large scissors", 28),
    ]
}
