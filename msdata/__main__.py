"""Runs the `msdata` command as `python -m msdata`."""

import sys

from msdata.cli import main

if __name__ == "__main__":
    sys.exit(main())
