"""`python -m benchmarks`: runs every benchmark, one after the other."""

from __future__ import annotations

import sys

from benchmarks import augment_rates, load_rates, train_wait

# Name -> (main, options beside --data).
BENCHMARKS = {
    "load_rates": (load_rates.main, ["--cold"]),
    "augment_rates": (augment_rates.main, []),
    "train_wait": (train_wait.main, []),
}


def main(arguments: list[str]) -> int:
    """Runs all benchmarks with the given arguments; returns the first exit code that is not 0."""
    for name, (run, options) in BENCHMARKS.items():
        print(f"== {name}", flush=True)
        code = run([*arguments, *options])
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
