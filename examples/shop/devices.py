"""Where else they are signed in, and an end to it."""

from __future__ import annotations

import re

from tornado.web import HTTPError, authenticated

from examples.shop.page import Page


class Devices(Page):
    @authenticated
    async def get(self) -> None:
        devices = await self.session.devices()
        self.show("devices.html", devices=devices, described=described)


class SignOutThere(Page):
    @authenticated
    async def post(self) -> None:
        handle = self.get_body_argument("handle")
        devices = await self.session.devices()
        # A handle is no secret, so it ends nothing but what is the user's own.
        if handle not in [device.handle for device in devices if not device.current]:
            raise HTTPError(404)
        await self.settings["store"].revoke(handle)
        self.flash("Signed out there.")
        self.redirect("/devices")


class SignOutElsewhere(Page):
    @authenticated
    async def post(self) -> None:
        ended = await self.session.end_others()
        self.flash(f"Other devices signed out: {ended}.")
        self.redirect("/devices")


def described(user_agent: str | None) -> str:
    """A browser and a system, from what the browser says of itself."""
    text = user_agent or ""
    browser = re.search(r"Firefox|Edg|OPR|Chrome|Safari|curl", text)
    system = re.search(r"Android|iPhone|iPad|Windows|Mac OS|Linux", text)
    names = {"Edg": "Edge", "OPR": "Opera", "Mac OS": "macOS"}
    found = [names.get(match[0], match[0]) for match in (browser, system) if match]
    return " on ".join(found) or "Some program"
