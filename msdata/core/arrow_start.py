"""Keeps pyarrow from importing pandas, in processes that run a command.

pyarrow imports pandas, where it is installed, before it makes its first array, and remembers
whether it could: a third of a second in which no command has a use for pandas.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def start_arrow_alone() -> None:
    """Lets pyarrow, when it is first imported, take pandas for not installed.

    `import pandas` works as ever, and so does `to_pandas` of Arrow's tables; but `pyarrow.array`
    takes a pandas series for any sequence. For processes that run a command, not for a library.
    Does nothing if either package is imported already.
    """
    if not {"pyarrow", "pandas"} & sys.modules.keys():
        sys.meta_path.insert(0, _ArrowFinder())


class _ArrowFinder:
    """Finds pyarrow, once, and has it make its first array while pandas cannot be imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        """Leaves every other module to the next finders."""
        if name != "pyarrow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _make_first_array(module)

            loader.exec_module = exec_module
        return spec


class _Refusal:
    """Refuses pandas."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        """Leaves every other module to the next finders."""
        if name == "pandas":
            raise ModuleNotFoundError("pandas is kept out of pyarrow's start", name=name)
        return None


def _make_first_array(pyarrow: Any) -> None:
    # None for pandas in `sys.modules` does not do: compiled code takes it for the module.
    refusal = _Refusal()
    sys.meta_path.insert(0, refusal)
    try:
        pyarrow.array([0])
    finally:
        sys.meta_path.remove(refusal)
