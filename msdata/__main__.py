"""`python -m msdata`: the same as the `msdata` command."""

import sys

from msdata.cli import main

if __name__ == "__main__":
    sys.exit(main())
