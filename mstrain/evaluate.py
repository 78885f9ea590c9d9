"""`python -m mstrain.evaluate`, which torchrun starts on every rank.

It stands alone since `mstrain.evaluate` is a function of the package. An import of this module
would put the module in the function's place, so the module refuses it.
"""

import sys

from mstrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
if __name__ == "mstrain.evaluate":
    raise ImportError(
        "mstrain.evaluate is a function: 'import mstrain', then call mstrain.evaluate()"
    )
