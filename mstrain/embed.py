"""`python -m mstrain.embed`, which torchrun starts on every rank.

It stands alone since `mstrain.embed` is a function of the package. An import of this module
would put the module in the function's place, so the module refuses it.
"""

import sys

from mstrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
if __name__ == "mstrain.embed":
    raise ImportError("mstrain.embed is a function: 'import mstrain', then call mstrain.embed()")
