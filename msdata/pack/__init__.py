"""Packs objects into a data set; the package itself is the function `msdata.pack(...)`."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msdata.pack.run import PackReport


class _Pack(types.ModuleType):
    def __call__(self, *args: Any, **options: Any) -> PackReport:
        """Packs a folder of objects into a data set; see `msdata.pack.run.pack_folder`."""
        from msdata.pack.run import pack_folder

        return pack_folder(*args, **options)


sys.modules[__name__].__class__ = _Pack
