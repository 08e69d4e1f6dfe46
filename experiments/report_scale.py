"""The time of a report of a search with many trials: python -m experiments.report_scale

A run of N trials of up to 20 epochs whose record is written from a formula (tests/report/made_up.py), with early
stopping, a final round, six retrainings and a test. Measured is `mnist-ray report` of a finished run as a user starts
it, imports included; of it what `write_report` takes; and what it takes to make the tables and the Optuna study again.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mnist_ray.record.exports import write_exports
from mnist_ray.report.write import write_report
from tests.report.made_up import made_up_spec, make_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000])
    arguments = parser.parse_args()
    for num_trials in arguments.trials:
        with tempfile.TemporaryDirectory(prefix="report-") as folder:
            measure(Path(folder), num_trials)


def measure(folder: Path, num_trials: int) -> None:
    run = make_up(made_up_spec(folder, search={"num_trials": num_trials, "num_epochs": 20}))
    began = time.perf_counter()
    write_exports(run.path)
    exports_s = time.perf_counter() - began
    began = time.perf_counter()
    write_report(run)
    report_s = time.perf_counter() - began
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mnist_ray.cli", "report", str(run.path)], check=True, capture_output=True)
    command_s = time.perf_counter() - began
    size_mb = run.paths.report.stat().st_size / 1e6
    print(
        f"{num_trials:,} trials, {run.state.num_events:,} events: write_report {report_s:.1f} s, the whole command "
        f"{command_s:.1f} s, report.html {size_mb:.1f} MB; tables and study {exports_s:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
