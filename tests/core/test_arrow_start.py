"""pyarrow starts without pandas in the process of a command, which can import pandas later."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("pandas")


def output_of(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_pyarrow_starts_alone_and_pandas_can_be_used_afterwards() -> None:
    code = (
        "import sys\n"
        "from msdata.core.arrow_start import start_arrow_alone\n"
        "before = list(sys.meta_path)\n"
        "start_arrow_alone()\n"
        "import pyarrow as pa\n"
        "table = pa.table({'x': ['a', 'b']})\n"
        "print('pandas' in sys.modules, sys.meta_path == before)\n"
        "import pandas\n"
        "print(len(table.to_pandas()), pa.array(pandas.Series([1, 2])).to_pylist())\n"
    )
    assert output_of(code).split("\n") == ["False True", "2 [1, 2]", ""]


def test_a_process_that_has_imported_either_package_is_left_alone() -> None:
    code = (
        "import sys, pandas\n"
        "from msdata.core.arrow_start import start_arrow_alone\n"
        "before = list(sys.meta_path)\n"
        "start_arrow_alone()\n"
        "print(sys.meta_path == before)\n"
    )
    assert output_of(code) == "True\n"
