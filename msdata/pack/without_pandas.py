"""Keeps pyarrow from importing pandas.

It does so, where there is one, for the first array it makes: a third of a second of every start.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Refusal(Loader):
    """Finds pandas, for those who only ask whether it is there, and fails to load it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        """Answers for pandas, and leaves everything else to the next finder."""
        return ModuleSpec(name, self) if name == "pandas" else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves the making to the importer."""

    def exec_module(self, module: ModuleType) -> None:
        """Refuses."""
        raise ModuleNotFoundError("pandas has no use in this process", name=module.__name__)


def refuse_pandas() -> None:
    """From now on `import pandas` fails in this process; for commands only, not for a library."""
    sys.meta_path.insert(0, _Refusal())
