"""python -m tools.chaos --kills 100 --seed 1: kill a real job again and again, and say what was lost."""

import argparse
import datetime
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

from mnist_ray.benchmarks.findings import put_between
from tools.chaos import table
from tools.chaos.loop import bombard


def main() -> int:
    arguments = _parser().parse_args()
    workdir = arguments.workdir or Path(tempfile.mkdtemp(prefix="mrc-runs-", dir="/tmp"))
    began = time.monotonic()
    report = bombard(workdir.absolute(), arguments.kills, arguments.seed, arguments.workers, arguments.control, _say)
    command = shlex.join(["python", "-m", "tools.chaos", *sys.argv[1:]])
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    text = table.markdown(report, f"`{command}`", time.monotonic() - began, day)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(table.as_json(report), indent=2) + "\n")
    if arguments.page:
        put_between(arguments.page, *table.MARKERS[report.workers], text)
    print(text)
    print(f"the runs lie in {workdir}")
    return 0 if report.is_good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="at least so many, a quarter in each stage")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn")
    parser.add_argument(
        "--workers", type=int, choices=(1, 2), default=2, help="of each retraining; with 1 both run side by side"
    )
    parser.add_argument("--control", action="store_true", help="one more run, whose record does not outlive its driver")
    parser.add_argument("--workdir", type=Path, help="an empty folder for the runs (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write every kill, every verdict and the figures there")
    parser.add_argument("--page", type=Path, help="put the table between this page's marker lines")
    return parser


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
