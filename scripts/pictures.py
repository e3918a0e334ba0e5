"""
Draws the pictures of the documentation: docs/pictures/*.svg.

    python scripts/pictures.py            writes them
    python scripts/pictures.py --check    exits with 1 if one is out of date

They are as wide as a phone, and light or dark as their page is (`prefers-color-scheme`,
which in a picture follows the `color-scheme` of the page around it).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
WIDTH = 400

_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2937 }
.head { font-weight: 600; font-size: 13px }
.small { font-size: 11px; fill: #4b5563 }
.line { stroke: #6b7280; fill: none }
.faint { stroke: #9ca3af; fill: none; stroke-dasharray: 3 3 }
.tip { fill: #6b7280 }
.box { fill: #f3f4f6; stroke: #9ca3af }
.good { fill: #d1fae5; stroke: #059669 }
.wait { fill: #fef3c7; stroke: #d97706 }
.bad { fill: #fee2e2; stroke: #dc2626 }
@media (prefers-color-scheme: dark) {
text { fill: #e5e7eb }
.small { fill: #b6bcc6 }
.line { stroke: #9ca3af }
.faint { stroke: #6b7280 }
.tip { fill: #9ca3af }
.box { fill: #2b303b; stroke: #6b7280 }
.good { fill: #064e3b; stroke: #10b981 }
.wait { fill: #57390b; stroke: #f59e0b }
.bad { fill: #5a1a1a; stroke: #f87171 }
}
"""


class Picture:
    """An SVG under construction; places are pixels from the upper left corner."""

    def __init__(self, title: str, height: int) -> None:
        self.title, self.height = title, height
        self._parts: list[str] = []

    def text(
        self, x: float, y: float, words: str, kind: str = "", at: str = "middle"
    ) -> None:
        """One line; `y` is where its letters stand."""
        self._parts.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{at}">'
            f"{escape(words)}</text>"
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *lines: str,
        kind: str = "box",
    ) -> None:
        """A box with lines of text in the middle of it."""
        self._parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" '
            f'height="{height:g}" rx="4"/>'
        )
        step = 15
        top = y + height / 2 - step * (len(lines) - 1) / 2 + 4
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + step * number, line)

    def line(
        self, x1: float, y1: float, x2: float, y2: float, kind: str = "line"
    ) -> None:
        """A straight line."""
        self._parts.append(f'<path class="{kind}" d="M{x1:g} {y1:g}L{x2:g} {y2:g}"/>')

    def arrow(
        self, x1: float, y1: float, x2: float, y2: float, words: str = ""
    ) -> None:
        """A line with a tip, level or upright, and words above or beside it."""
        self.line(x1, y1, x2, y2)
        if y1 == y2:
            back = -7 if x2 > x1 else 7
            tip = f"M{x2:g} {y2:g}l{back} -4v8z"
            self.text((x1 + x2) / 2, y1 - 5, words, "small")
        else:
            back = -7 if y2 > y1 else 7
            tip = f"M{x2:g} {y2:g}l-4 {back}h8z"
            self.text(x1 + 7, (y1 + y2) / 2 + 4, words, "small", "start")
        self._parts.append(f'<path class="tip" d="{tip}"/>')

    def __str__(self) -> str:
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
                f'height="{self.height}" viewBox="0 0 {WIDTH} {self.height}" '
                f'role="img" aria-label="{escape(self.title)}">',
                f"<title>{escape(self.title)}</title>",
                f"<style>{_STYLE}</style>",
                *self._parts,
                "</svg>\n",
            ]
        )


def request() -> Picture:
    """A request from its cookie to the commit."""
    picture = Picture("A request from its cookie to its commit", 552)
    browser, tornado, database = 45, 195, 355
    for x, name in ((browser, "browser"), (tornado, "Tornado"), (database, "database")):
        picture.text(x, 16, name, "head")
        picture.line(x, 24, x, 430, "faint")
    picture.arrow(browser, 52, tornado, 52, "request, with a cookie")
    picture.box(115, 62, 160, 24, "verify the signature")
    picture.arrow(tornado, 110, database, 110, "load the row by its handle")
    picture.arrow(database, 136, tornado, 136, "row, or none")
    picture.box(115, 146, 160, 24, "compare the secret")
    method = "your method, self.session:", "no connection is held"
    picture.box(95, 182, 200, 44, *method, kind="good")
    finish = "finish(): if something is to be", "saved, the response is held"
    picture.box(95, 238, 200, 44, *finish, kind="wait")
    picture.arrow(tornado, 310, database, 310, "write the keys that changed")
    picture.arrow(database, 340, tornado, 340, "committed")
    picture.arrow(tornado, 372, browser, 372, "the response leaves")
    picture.box(85, 384, 220, 24, "access log, your on_finish()")
    picture.text(20, 448, "And if not committed:", "head", "start")
    picture.box(20, 458, 360, 24, "the store failed: a 503 leaves instead", kind="bad")
    lines = (
        "the session has ended, or is another",
        "visitor's by now: a 409 leaves instead",
    )
    picture.box(20, 490, 360, 44, *lines, kind="bad")
    return picture


def regenerate() -> Picture:
    """What becomes of an id."""
    picture = Picture("What becomes of an id when the session gets a new one", 442)
    made, shown, over, end = 96, 186, 266, 346
    for y in (made, shown, over):
        picture.line(0, y, WIDTH, y, "faint")
    for left, title, what in (
        (0, "the same visitor", "regenerate(), a renewal"),
        (204, "another visitor", "a sign-in, a sign-out"),
    ):
        picture.text(left + 98, 16, title, "head")
        picture.text(left + 98, 32, what, "small")
        picture.text(left + 49, 54, "former id", "small")
        picture.text(left + 147, 54, "new id", "small")
        picture.box(left + 4, 62, 90, made - 62, "opens", kind="good")
        picture.box(left + 102, made, 90, end - made, "opens", kind="good")
    picture.box(4, made, 90, shown - made, "opens,", "gets no", "cookie", kind="good")
    picture.box(4, shown, 90, over - shown, "opens,", "for 5 s more", kind="wait")
    picture.box(4, over, 90, end - over, "a stranger,", "and an alarm", kind="bad")
    grace = "a stranger:", "empty, and a", "write is a 409"
    picture.box(208, made, 90, over - made, *grace, kind="bad")
    picture.box(208, over, 90, end - over, "a stranger,", "and an alarm", kind="bad")
    for y, number in ((made, "1"), (shown, "2"), (over, "3")):
        picture.text(200, y + 4, number, "head")
    for y, words in (
        (368, "1  the new secret is committed"),
        (386, "2  the browser shows it for the first time"),
        (404, "3  regenerate_grace has passed since then"),
        (426, "No answer to the former id ever carries the new one."),
    ):
        picture.text(4, y, words, "small", "start")
    return picture


def rotation() -> Picture:
    """The keys of a rotation."""
    picture = Picture("Changing the key in two steps", 366)
    picture.text(4, 16, "APP_KEYS of all servers", "head", "start")
    picture.text(396, 16, "cookies are signed by", "head", "end")
    rows = (
        ("before", ("old",), "old"),
        ("step 1, everywhere", ("old", "new"), "old"),
        ("step 2, everywhere", ("new", "old"), "new, as they are seen"),
        ("after the longest lifetime", ("new",), "new"),
    )
    for number, (when, keys, signed) in enumerate(rows):
        y = 32 + 78 * number
        picture.text(4, y + 10, when, "small", "start")
        for place, key in enumerate(keys):
            role = "signs" if place == 0 else "verifies"
            kind = "good" if place == 0 else "box"
            picture.box(4 + 88 * place, y + 16, 80, 40, key, role, kind=kind)
        picture.arrow(186, y + 36, 216, y + 36)
        picture.box(222, y + 16, 174, 40, signed)
    last = "At no moment is there a cookie that a server cannot verify."
    picture.text(4, 358, last, "small", "start")
    return picture


def origins() -> Picture:
    """A page and an API on two hosts."""
    picture = Picture("A page and an API on two hosts of one site", 400)
    picture.box(4, 4, 392, 106)
    picture.text(16, 24, "the browser", "head", "start")
    page = "a page of", "https://example.com"
    picture.box(16, 36, 160, 60, *page, kind="good")
    picture.box(224, 36, 160, 60, "a page of", "https://evil.example", kind="bad")
    picture.arrow(60, 96, 60, 250)
    picture.arrow(304, 96, 304, 126)
    picture.box(216, 128, 176, 44, "no cookie (SameSite),", "no answer (CORS), 403")
    for y, words in (
        (196, "fetch, with credentials: “include”"),
        (212, "Origin: https://example.com"),
        (228, "Cookie: shop.sess=…"),
    ):
        picture.text(67, y, words, "small", "start")
    picture.box(4, 252, 392, 80)
    picture.text(16, 272, "https://api.example.com", "head", "start")
    for y, words in (
        (292, "CORS_URL=https://example.com"),
        (308, "its cookie: SameSite=Lax, for this host alone"),
        (324, "answers: Access-Control-Allow-Origin, …"),
    ):
        picture.text(16, y, words, "small", "start")
    for y, words in (
        (354, "example.com and api.example.com are one site, so"),
        (370, "SameSite=Lax lets the cookie pass. COOKIE_URL is only"),
        (386, "needed if another host is to read the same cookie."),
    ):
        picture.text(4, y, words, "small", "start")
    return picture


def trouble() -> Picture:
    """What a visitor gets when something is wrong."""
    rows = (
        ("the store is away,|the visitor has no session", "served as ever", "good"),
        ("the store fails,|while loading", "503, try again;|the cookie stays", "bad"),
        (
            "the store fails,|while saving",
            "503 instead of the answer;|the cookie stays",
            "bad",
        ),
        (
            "the same, and a part of|the answer has left",
            "the connection is closed:|no one takes it for whole",
            "bad",
        ),
        (
            "the session ended mean-|while, the request wrote",
            "409, and nothing|of it is kept",
            "bad",
        ),
        ("the session ended mean-|while, the request read", "the answer", "good"),
        (
            "somebody else signed in|meanwhile",
            "read: the answer;|wrote: 409",
            "wait",
        ),
        (
            "a cookie that does not|verify",
            "an anonymous visitor;|the cookie stays",
            "wait",
        ),
        ("a value that cannot|be kept", "500, and the row|is as it was", "bad"),
    )
    height = 52 * len(rows) + 24
    picture = Picture("What a visitor gets when something is wrong", height)
    picture.text(4, 16, "what happens", "head", "start")
    picture.text(222, 16, "what the visitor gets", "head", "start")
    for number, (what, gets, kind) in enumerate(rows):
        y = 26 + 52 * number
        picture.box(4, y, 182, 42, *what.split("|"))
        picture.arrow(190, y + 21, 216, y + 21)
        picture.box(220, y, 176, 42, *gets.split("|"), kind=kind)
    return picture


def drawn() -> Iterator[tuple[Path, str]]:
    """Each file and what it should be."""
    for draw in (request, regenerate, rotation, origins, trouble):
        yield FOLDER / f"{draw.__name__}.svg", str(draw())


def main() -> None:
    """Writes the pictures, or says that they should be."""
    FOLDER.mkdir(exist_ok=True)
    for path, text in drawn():
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{path.name}: run python scripts/pictures.py")


if __name__ == "__main__":
    main()
