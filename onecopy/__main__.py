"""`python -m onecopy`, and the command `onecopy`."""

from __future__ import annotations

from cluster.cli import main

if __name__ == "__main__":
    main(prog_name="onecopy")
