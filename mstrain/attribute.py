"""`python -m mstrain.attribute`, which torchrun starts on every rank.

It stands alone since `mstrain.attribute` is a function of the package. An import of this module
would put the module in the function's place, so the module refuses it.
"""

import sys

from mstrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["attribute", *sys.argv[1:]]))
if __name__ == "mstrain.attribute":
    raise ImportError(
        "mstrain.attribute is a function: 'import mstrain', then call mstrain.attribute()"
    )
