"""Runs the stand-in cutout services: `python tests/support/fake_services`.

For tests, for a demonstration without the network, and for trying how a client takes faults.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from msdata.core.files import write_whole
from msdata.core.output_file import check_output
from msdata.core.signals import exit_code_of, raise_on_signals
from msdata.errors import MsdataError

sys.path[0] = str(Path(__file__).resolve().parents[1])

from fake_services.catalog import galaxies, write_galaxies
from fake_services.faults import FaultPlan
from fake_services.server import serve

_SERVICES_MARK = b"# made by python tests/support/fake_services"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tests/support/fake_services",
        description="Serves stand-ins for PS1, the Legacy viewer, unwise.me and hips2fits on "
        "127.0.0.1.",
    )
    parser.add_argument(
        "--port", type=int, default=0, help="port to listen on (default: a free one)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the mock sky (default: %(default)s)"
    )
    parser.add_argument("--catalog", type=Path, help="write a catalog of this sky, then serve")
    parser.add_argument(
        "--n", type=int, default=200, help="galaxies in the catalog (default: %(default)s)"
    )
    parser.add_argument("--services", type=Path, help="write the TOML file for msdata fetch")
    parser.add_argument("--faulty", type=float, default=0.0, help="fraction of faulty answers")
    parser.add_argument("--bad", type=float, default=0.0, help="fraction of objects that stay bad")
    parser.add_argument("--odd", type=float, default=0.0, help="fraction of odd, good objects")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C or SIGTERM; returns the exit code."""
    args = _parser().parse_args(argv)
    raise_on_signals()
    try:
        plan = FaultPlan(
            seed=args.seed,
            passing_fraction=args.faulty,
            lasting_fraction=args.bad,
            odd_fraction=args.odd,
        )
        if args.catalog is not None:
            write_galaxies(args.catalog, galaxies(args.seed, args.n))
        if args.services is not None:
            check_output(args.services, _SERVICES_MARK)
        with serve(plan, seed=args.seed, port=args.port) as standins:
            if args.services is not None:
                write_whole(args.services, services_toml(standins.url).encode())
            print(f"serving on {standins.url}; Ctrl-C ends it", flush=True)
            signal.pause()
    except MsdataError as error:
        print(f"standin_services: {error}", file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return 0
    return 0


def services_toml(url: str) -> str:
    """The file for `msdata fetch --services` that leads it to stand-ins at `url`."""
    paths = {"ps1": "/cgi-bin", "legacy": "/viewer", "unwise_me": ""}
    paths["hips2fits"] = "/hips-image-services"
    # A hanging answer is not worth a minute here.
    quick = "requests_per_s = 50.0\nread_timeout_s = 2.0\nbackoff_s = 0.1\n"
    head = f"{_SERVICES_MARK.decode()}\n"
    return head + "\n".join(
        f'[{name}]\nbase_url = "{url}{path}"\n{quick}' for name, path in paths.items()
    )


if __name__ == "__main__":
    sys.exit(main())
