"""Predicts what a job reads from where; the package itself is the function `msdata.plan(...)`."""

from __future__ import annotations

import sys
import types
from typing import Any


class _Plan(types.ModuleType):
    def __call__(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Predicts the reads of a job; see `msdata.plan.plan_data.plan_job`."""
        from msdata.plan.plan_data import plan_job

        return plan_job(*args, **options)


sys.modules[__name__].__class__ = _Plan
