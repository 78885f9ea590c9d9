"""Studies: arms of settings by seeds, paired; the package itself is `mstrain.study(...)`."""

from __future__ import annotations

import sys
import types
from typing import Any


class _Study(types.ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        """Runs a study; see `mstrain.study.study.run_study`."""
        from mstrain.study.study import run_study

        return run_study(*args, **options)


sys.modules[__name__].__class__ = _Study
