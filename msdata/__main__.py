"""`python -m msdata`: the same as the `msdata` command."""

import sys

from msdata.cli import main

sys.exit(main())
