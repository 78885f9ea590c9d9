"""A process that runs `mstrain` commands and programs as a rank, in turn: importing torch is slow.

Reads lines of JSON, {"words": [...], "environment": {...}}; answers each with {"code", "said",
"printed"}: the exit code, stderr and stdout.
"""

import contextlib
import io
import json
import os
import sys
import warnings

# Whatever the command will need, while nobody waits for it.
import torch._dynamo
import training

from mstrain.cli import main


def run(words: list[str], environment: dict[str, str]) -> dict[str, object]:
    """Runs one command as if the process had been started for it."""
    os.environ.update(environment)
    said, printed = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(printed),
        warnings.catch_warnings(record=True),
    ):
        try:
            code = training.run_program(words) or 0 if words[0].endswith(".py") else main(words)
        except SystemExit as ended:
            code = ended.code
    return {"code": code, "said": said.getvalue(), "printed": printed.getvalue()}


assert torch is not None
for line in sys.stdin:
    print(json.dumps(run(**json.loads(line))), flush=True)
