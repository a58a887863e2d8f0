"""`python -m athanor`: the same as the command `athanor`."""

from __future__ import annotations

from athanor.cli.main import main

if __name__ == "__main__":
    main()
