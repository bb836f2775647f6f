"""python -m tests.parity FIXTURE.json ...: one line per output; exit 1 if any fails, 2 if called wrongly."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.parity.runner import run_fixture


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity",
        description="Compares this code with published programs: prints for each output the largest error relative to the output's own "
        "spread (its standard deviation; the size of a lone number), the tolerance, and ok or FAIL.",
    )
    parser.add_argument("fixtures", nargs="+", type=Path, metavar="FIXTURE.json", help="fixture file, its .npz beside it")
    failed = 0
    for path in parser.parse_args(arguments).fixtures:
        for result in run_fixture(path):
            print(result, flush=True)
            failed += not result.ok
    if failed:
        print(f"{failed} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
