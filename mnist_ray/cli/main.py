"""The command line. Heavy imports stay inside the commands, so that `--help` answers at once."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ray.cli.arguments import add_command, add_overrides, overrides_of
from mnist_ray.cli.cluster_commands import add_remote_commands
from mnist_ray.errors import OSERROR_EXIT_CODE, WORSE_EXIT_CODE, InterruptedRunError, MnistRayError, SpecError

if TYPE_CHECKING:
    from mnist_ray.config import JobSpec
    from mnist_ray.record.rundir import RunDir
    from mnist_ray.storage.files import StoragePath

DESCRIPTION = """\
Search hyperparameters, retrain the best, test it once: one command, on one machine or on a Ray cluster.
"""

EXIT_CODES = """\
exit codes: 0 done; 2 something in the command or the spec; 3 data missing or wrong; 4 training failed;
5 interrupted, the same command goes on; 6 a file could not be written; 7 another process works on the run;
8 a compared run is worse, or a replayed trial came to other numbers
"""

DEFAULT_STORAGE = "results"


def main(arguments: Sequence[str] | None = None, storage_root: Path | None = None) -> int:
    """Run a command; returns the exit code. A relative `storage` lies below `storage_root` (default: here)."""
    parsed = _parser().parse_args(arguments)
    parsed.storage_root = storage_root
    try:
        command: Callable[[argparse.Namespace], int] = parsed.command
        return command(parsed)
    except KeyboardInterrupt:
        return _fail("interrupted: run the same command again to go on", InterruptedRunError.exit_code)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("mnist_ray"):
            raise
        return _fail(
            f"{sys.executable} lacks the package {error.name!r}: install requirements.txt there, or (on a cluster) "
            "activate the environment that has it before 'ray start'",
            SpecError.exit_code,
        )
    except MnistRayError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        return _fail(_message(error), OSERROR_EXIT_CODE)


def _message(error: OSError) -> str:
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}; the same command goes on once that is mended"
    return str(error)


def _fail(message: str, code: int) -> int:
    print(f"mnist-ray: {message}", file=sys.stderr)
    return code


# --- arguments ---------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mnist-ray",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("run", _run, "search, choose, retrain, test, write the tables"),
        ("search", _search, "only the search and the choice; `run` goes on from there"),
        ("train", _train, "train and test the spec's recipe, without a search"),
    ):
        job = add_command(commands, name, command, text)
        job.add_argument("spec", type=Path, help="a job spec, such as jobs/quickstart.yaml")
        _add_job_options(job)
    plan = add_command(commands, "plan", _plan, "what a job would take, and what is in its way; nothing is started")
    plan.add_argument("spec", type=Path, help="a job spec, such as jobs/mnist.yaml")
    plan.add_argument("--price-per-hour", type=float, help="of the whole cluster, in any currency")
    _add_job_options(plan)
    _add_reading_commands(commands)
    add_remote_commands(commands)
    doctor = add_command(commands, "doctor", _doctor, "what this machine and the cluster can do")
    doctor.add_argument("--data-dir", help="where the data sets lie")
    doctor.add_argument("--address", help="of a Ray cluster")
    _add_storage(doctor)
    _add_benchmark(commands)
    return parser


def _add_benchmark(commands: Any) -> None:
    text = "how fast this machine is at each part of a job, beside the usual loop; some minutes"
    benchmark = add_command(commands, "benchmark", _benchmark, text)
    benchmark.add_argument("parts", nargs="*", metavar="PART", help="steps, workers, retraining, search (default: all)")
    benchmark.add_argument("--data-dir", help="where MNIST lies or goes")
    benchmark.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    benchmark.add_argument("--json", type=Path, default=Path("results/benchmark.json"), help="write the figures there")
    benchmark.add_argument("--page", type=Path, help="put the tables between this page's marker lines")


def _add_reading_commands(commands: Any) -> None:
    evaluate = add_command(commands, "evaluate", _evaluate, "score a finished run's models on its test split again")
    evaluate.add_argument("run", help="a run's name, or its folder")
    evaluate.add_argument("--data-dir", help="where the data sets lie")
    _add_storage(evaluate)
    predict = add_command(commands, "predict", _predict, "say which digit an image shows")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument("--run", help="the run whose model is used (default: the latest finished one)")
    _add_storage(predict)
    results = add_command(commands, "results", _results, "list the runs")
    _add_storage(results)
    report = add_command(
        commands, "report", _report, "make a run's tables and its report.html again, from its folder alone"
    )
    report.add_argument("run", help="a run's name, or its folder; an unfinished one will do")
    _add_storage(report)
    compare = add_command(
        commands, "compare", _compare, "runs against the first of them: what differs, and is it more than noise"
    )
    compare.add_argument("runs", nargs="+", metavar="RUN")
    compare.add_argument("--fail-if-worse", action="store_true", help="exit code 8 if one is worse by more than noise")
    _add_storage(compare)
    replay = add_command(commands, "replay", _replay, "train a trial again from the record and compare every number")
    replay.add_argument("run", help="a run's name, or its folder")
    replay.add_argument("--trial", type=int, required=True, help="its number")
    replay.add_argument("--data-dir", help="where the data sets lie")
    _add_storage(replay)


def _add_job_options(job: argparse.ArgumentParser) -> None:
    add_overrides(job)
    job.add_argument("--data-dir", help="where the data sets lie (default: $MNIST_RAY_DATA, then ~/.cache/mnist_ray)")
    job.add_argument("--address", help="of a Ray cluster (default: $RAY_ADDRESS, then this machine alone)")
    job.add_argument("--ray-dir", type=Path, help="where a cluster of this machine alone keeps its temporary files")
    job.add_argument("-v", "--verbose", action="store_true", help="show Ray's own messages too")
    _add_storage(job)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    text = "the folder that holds the runs, or s3://BUCKET/FOLDER (default: the spec's, then ./results)"
    parser.add_argument("--storage", help=text)


# --- jobs --------------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    from mnist_ray.pipeline.job import run_job

    return _do_job(arguments, run_job)


def _search(arguments: argparse.Namespace) -> int:
    from mnist_ray.pipeline.job import search_job

    return _do_job(arguments, search_job)


def _train(arguments: argparse.Namespace) -> int:
    from mnist_ray.pipeline.job import train_job

    return _do_job(arguments, train_job)


def _do_job(arguments: argparse.Namespace, job: Callable[..., "RunDir"]) -> int:
    from mnist_ray.cli.progress import Display
    from mnist_ray.pipeline.job import Site

    spec = _spec_of(arguments)
    site = Site(arguments.address, arguments.ray_dir, arguments.verbose)
    with Display(spec.search.objective) as display:
        run = job(spec, site, display)
    _report_on(run)
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from mnist_ray.config import dump_spec
    from mnist_ray.pipeline.plan import plan
    from mnist_ray.ray_backend.cluster import address_in_use, connected, local_capacity

    if arguments.price_per_hour is not None and arguments.price_per_hour < 0:
        raise SpecError(f"--price-per-hour {arguments.price_per_hour:g}: must be 0 or more")
    spec = _spec_of(arguments)
    if address_in_use(arguments.address) == "local":
        found = plan(spec, local_capacity())
    else:
        from mnist_ray.ray_backend.jobs.submit import SPEC_FILE, write_upload

        with (
            tempfile.TemporaryDirectory() as upload,
            connected(arguments.address, arguments.ray_dir, arguments.verbose) as capacity,
        ):
            write_upload(Path(upload), SPEC_FILE, dump_spec(spec))
            found = plan(spec, capacity, Path(upload))
    print("\n".join(found.lines(arguments.price_per_hour)))
    return SpecError.exit_code if found.obstacles else 0


def _spec_of(arguments: argparse.Namespace) -> "JobSpec":
    from mnist_ray.config import load_spec
    from mnist_ray.storage.files import storage_path

    spec = load_spec(arguments.spec, overrides_of(arguments))
    storage = storage_path(spec.storage)
    if isinstance(storage, Path):
        storage = (arguments.storage_root or Path()) / storage
    return spec.model_copy(update={"storage": str(storage)})


def _report_on(run: "RunDir") -> None:
    """Write the report; print the few rows that matter, the verdict, and where everything lies."""
    from mnist_ray.report.write import write_report

    review = write_report(run)
    print("\n".join([*review.summary(), f"report: {run.report}", f"everything lies in {run.path}"]))


# --- reading -----------------------------------------------------------------------------------------------------


def _evaluate(arguments: argparse.Namespace) -> int:
    from mnist_ray.pipeline.prediction import evaluate_run
    from mnist_ray.record.rundir import find_run

    run = find_run(arguments.run, _storage_of(arguments))
    scores = evaluate_run(run, arguments.data_dir and Path(arguments.data_dir))
    unsealed = run.stage("unsealed") or {}
    print(f"A later evaluation: the test split of this run was unsealed at {unsealed['at']}, after the choice.")
    for training_id, score in scores.items():
        accuracy, correct, total = (score[f"test_{name}"] for name in ("accuracy", "correct", "examples"))
        print(f"{training_id}: {100 * accuracy:.2f} % ({correct} of {total}), loss {score['test_loss']:.4f}")
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from mnist_ray.pipeline.prediction import latest_finished_run, predict_images
    from mnist_ray.record.rundir import find_run

    storage = _storage_of(arguments)
    run = find_run(arguments.run, storage) if arguments.run else latest_finished_run(storage)
    for path, probabilities in zip(arguments.images, predict_images(run, arguments.images), strict=True):
        first, second, third = probabilities.argsort()[::-1][:3]
        others = ", ".join(f"{digit}: {100 * probabilities[digit]:.1f} %" for digit in (second, third))
        print(f"{path}: {first} ({100 * probabilities[first]:.1f} %; then {others})")
    return 0


def _results(arguments: argparse.Namespace) -> int:
    from mnist_ray.record.rundir import runs_in
    from mnist_ray.record.tables import listed_runs

    storage = _storage_of(arguments)
    print(listed_runs(runs_in(storage)) or f"no runs in {storage.absolute()}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from mnist_ray.record.exports import views_are_current, write_views
    from mnist_ray.record.rundir import find_run

    run = find_run(arguments.run, _storage_of(arguments))
    if not views_are_current(run):
        write_views(run)
    _report_on(run)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from mnist_ray.record.rundir import find_run
    from mnist_ray.report.analysis.comparison import compare, comparison_text

    if len(arguments.runs) < 2:
        raise SpecError(f"compare {arguments.runs[0]}: one run is nothing to compare: name two or more")
    storage = _storage_of(arguments)
    runs = [find_run(name, storage) for name in arguments.runs]
    comparisons = compare(runs)
    print(comparison_text(runs, comparisons))
    return WORSE_EXIT_CODE if arguments.fail_if_worse and any(each.is_worse for each in comparisons) else 0


def _replay(arguments: argparse.Namespace) -> int:
    from mnist_ray.pipeline.replay import replay_trial
    from mnist_ray.record.rundir import find_run

    run = find_run(arguments.run, _storage_of(arguments))
    data_dir = arguments.data_dir and Path(arguments.data_dir)
    replay = replay_trial(run, arguments.trial, data_dir, lambda row: print(row, file=sys.stderr))
    print(replay)
    return 0 if replay.is_good else WORSE_EXIT_CODE


def _doctor(arguments: argparse.Namespace) -> int:
    from mnist_ray.data import data_dir_of
    from mnist_ray.pipeline.doctor import examine

    data_dir = data_dir_of(arguments.data_dir)
    findings = examine(data_dir, _storage_of(arguments), arguments.address)
    for finding in findings:
        print(f"{'ok ' if finding.is_good else 'BAD'} {finding.what:<18} {finding.text}")
    return 0 if all(finding.is_good for finding in findings) else SpecError.exit_code


def _benchmark(arguments: argparse.Namespace) -> int:
    from mnist_ray.benchmarks.run import PARTS, benchmark, report
    from mnist_ray.data import data_dir_of

    parts = arguments.parts or list(PARTS)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise SpecError(f"PART {unknown[0]!r} is not measured: use some of {', '.join(PARTS)}")
    if arguments.rounds < 1:
        raise SpecError(f"--rounds {arguments.rounds}: must be 1 or more")
    data_dir = data_dir_of(arguments.data_dir)
    sections = benchmark(parts, data_dir, arguments.rounds, lambda line: print(line, file=sys.stderr))
    command = " ".join(["mnist-ray benchmark", *arguments.parts, f"--rounds {arguments.rounds}"])
    print(report(sections, command, arguments.json, arguments.page))
    return 0


def _storage_of(arguments: argparse.Namespace) -> "StoragePath":
    from mnist_ray.config import check_storage
    from mnist_ray.storage.files import storage_path

    storage = arguments.storage or DEFAULT_STORAGE
    check_storage(storage)
    return storage_path(storage)


if __name__ == "__main__":
    sys.exit(main())
