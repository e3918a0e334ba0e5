"""Programs that some tests drive, and that not every machine has."""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str, package: str | None = None) -> str:
    """
    The path of the program. Without it the test is skipped, and says what to install:
    the package of Debian or Ubuntu, which is called like the program if not named.
    """
    # Daemons are in folders that an ordinary user does not search.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    if found := shutil.which(name, path=path):
        return found
    pytest.skip(f"needs {name}: apt install {package or name}")
