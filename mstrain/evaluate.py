"""`python -m mstrain.evaluate`, which torchrun starts on every rank; run, never imported.

It stands alone because the package's function of the same name must not be hidden by a module.
"""

import sys

from mstrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
