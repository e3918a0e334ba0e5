"""The versions that `make floor` tests are those that setup.py promises."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[2]


def test_the_floors_that_are_tested_are_those_that_are_promised():
    """Each runtime dependency in its lowest version, and nothing else."""
    setup = (ROOT / "setup.py").read_text()
    promised = re.search(r"install_requires=\[(.*?)\]", setup, re.S)
    assert promised is not None
    tested = (ROOT / "requirements" / "floor.txt").read_text()

    assert versions(promised[1], ">=") == versions(tested, "==")


def versions(text: str, sign: str) -> dict[str, Version]:
    found = re.findall(rf"([a-z]+){sign}([0-9.]+)", text)
    assert found
    return {name: Version(number) for name, number in found}
