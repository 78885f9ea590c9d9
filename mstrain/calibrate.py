"""`python -m mstrain.calibrate`, which torchrun starts on every rank.

It stands alone since `mstrain.calibrate` is a function of the package. An import of this module
would put the module in the function's place, so the module refuses it.
"""

import sys

from mstrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["calibrate", *sys.argv[1:]]))
if __name__ == "mstrain.calibrate":
    raise ImportError(
        "mstrain.calibrate is a function: 'import mstrain', then call mstrain.calibrate()"
    )
