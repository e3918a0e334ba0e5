"""`python -m tornado_compas_session` is the command `tornado-compas-session`."""

from __future__ import annotations

import sys

from tornado_compas_session.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
