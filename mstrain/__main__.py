"""`python -m mstrain`: the same as the `mstrain` command."""

import sys

from mstrain.cli import main

sys.exit(main())
