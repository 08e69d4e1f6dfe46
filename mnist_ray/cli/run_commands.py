"""The commands that read runs: evaluate, predict, results, report, compare, replay."""

import argparse
import errno
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ray.cli.arguments import add_command, add_storage, storage_of
from mnist_ray.cli.documents import add_json, print_document
from mnist_ray.errors import NOT_COMPARED_EXIT_CODE, WORSE_EXIT_CODE, CorruptFileError, ImageFileError, SpecError
from mnist_ray.shown import shown

if TYPE_CHECKING:
    from mnist_ray.record.listing import ListedRun
    from mnist_ray.record.rundir import RunDir


def add_run_commands(commands: Any) -> None:
    """Add evaluate, predict, results, report, compare and replay to the parser."""
    evaluate = add_command(commands, "evaluate", _evaluate, "score a finished run's models on the test split again")
    evaluate.add_argument("run", help="a run's name, or its folder")
    evaluate.add_argument("--data-dir", help="the folder of the data sets")
    add_storage(evaluate)
    predict = add_command(commands, "predict", _predict, "recognise the digit on an image")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument("--run", help="the run whose model is used (default: the latest finished one)")
    add_storage(predict)
    results = add_command(commands, "results", _results, "list the runs, newest first; exit code 3 if one is damaged")
    add_json(results)
    add_storage(results)
    report = add_command(commands, "report", _report, "write a run's tables and report.html again, from its record")
    report.add_argument("run", help="a run's name, or its folder; it need not be finished")
    report.add_argument("--to", metavar="FOLDER", help="write them into this folder instead of the run's")
    add_storage(report)
    compare = add_command(
        commands,
        "compare",
        _compare,
        "compare runs with the first one: which differences are larger than noise?",
    )
    compare.add_argument("runs", nargs="+", metavar="RUN")
    compare.add_argument(
        "--fail-if-worse",
        action="store_true",
        help="exit code 8 if one is worse by more than noise, 9 if one cannot be compared",
    )
    add_json(compare)
    add_storage(compare)
    replay = add_command(
        commands, "replay", _replay, "train a trial again from its record, and check that every number is the same"
    )
    replay.add_argument("run", help="a run's name, or its folder")
    replay.add_argument("--trial", type=int, required=True, help="the trial's number")
    replay.add_argument("--data-dir", help="the folder of the data sets")
    add_storage(replay)


def _run_of(arguments: argparse.Namespace) -> "RunDir":
    """Return the run that a command names; called before the imports that take seconds. Raises SpecError."""
    from mnist_ray.record.rundir import find_run

    return find_run(arguments.run, storage_of(arguments))


def _evaluate(arguments: argparse.Namespace) -> int:
    run = _run_of(arguments)
    from mnist_ray.pipeline.prediction import evaluate_run

    scores = evaluate_run(run, arguments.data_dir and Path(arguments.data_dir))
    opened = run.state.test_opened
    assert opened is not None
    print(f"This is a repeated evaluation: this run's test split was first opened at {opened.at}, after the selection.")
    for training_id, score in scores.items():
        accuracy = f"{100 * score.accuracy:.2f} % ({score.num_correct} of {score.num_examples})"
        print(f"{training_id}: {accuracy}, loss {score.loss:.4f}")
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    named = _run_of(arguments) if arguments.run else None
    from mnist_ray.pipeline.prediction import latest_finished_run, model_in_words, predict_images

    run = named or latest_finished_run(storage_of(arguments), _warn)
    answers = predict_images(run, arguments.images)
    print(shown(f"Answers of {model_in_words(run)}:"), file=sys.stderr)
    code = 0
    for path, answer in zip(arguments.images, answers, strict=True):
        if isinstance(answer, ImageFileError):
            _warn(str(answer))
            code = answer.exit_code
            continue
        first, second, third = answer.argsort()[::-1][:3]
        others = ", ".join(f"{digit}: {100 * answer[digit]:.1f} %" for digit in (second, third))
        print(f"{shown(str(path))}: {first} ({100 * answer[first]:.1f} %; then {others})")
    return code


def _results(arguments: argparse.Namespace) -> int:
    from mnist_ray.record.rundir import readable_runs

    storage = storage_of(arguments)
    damaged: list[str] = []
    listed = list(_listed(readable_runs(storage, damaged.append), damaged))
    listed.sort(key=lambda run: run.began_at or "", reverse=True)
    if arguments.json:
        print_document(storage=str(storage.absolute()), runs=[asdict(run) for run in listed], damaged=damaged)
    elif listed:
        from mnist_ray.cli.run_table import output_width, run_table

        print(run_table(listed, output_width()))
    elif not damaged:
        print(shown(f"no runs in {storage.absolute()}"))
    for damage in damaged:
        _warn(damage)
    return CorruptFileError.exit_code if damaged else 0


def _listed(runs: Iterable["RunDir"], damaged: list[str]) -> Iterator["ListedRun"]:
    """Describe runs; add a line to `damaged` for each that cannot be read."""
    from mnist_ray.record.listing import listed_run

    for run in runs:
        try:
            yield listed_run(run)
        except (CorruptFileError, OSError) as error:
            damaged.append(str(error))


def _report(arguments: argparse.Namespace) -> int:
    run = _run_of(arguments)
    from mnist_ray.record.exports import write_exports
    from mnist_ray.record.paths import RunPaths
    from mnist_ray.report.review import Review
    from mnist_ray.report.write import write_review
    from mnist_ray.storage.files import storage_path

    review = Review.of(run)
    to = storage_path(arguments.to) if arguments.to else run.path
    lines = [shown(line) for line in review.summary()]
    try:
        write_exports(run.path, to)
        write_review(review, RunPaths(to))
    except OSError as error:
        print("\n".join(lines))
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and not arguments.to:
            remedy = f"{error.strerror}: give another folder for the tables and the report (--to FOLDER)"
            raise OSError(error.errno, remedy, str(to)) from None
        raise
    print("\n".join([*lines, f"report: {RunPaths(to).report}", f"all files: {RunPaths(to).folder}"]))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from mnist_ray.record.rundir import find_run

    if len(arguments.runs) < 2:
        raise SpecError(f"compare {arguments.runs[0]}: a comparison needs two runs or more")
    storage = storage_of(arguments)
    runs = [find_run(name, storage) for name in arguments.runs]
    from mnist_ray.report.analysis.comparison import compare, comparison_text

    comparisons = compare(runs)
    if arguments.json:
        from mnist_ray.record.listing import listed_run

        listed = [asdict(listed_run(run)) for run in runs]
        print_document(runs=listed, comparisons=[asdict(comparison) for comparison in comparisons])
    else:
        print(shown(comparison_text(runs, comparisons)))
    if not arguments.fail_if_worse:
        return 0
    if any(each.is_worse for each in comparisons):
        return WORSE_EXIT_CODE
    uncompared = [each.run for each in comparisons if each.judgement is None]
    if uncompared:
        _warn(f"--fail-if-worse: {', '.join(uncompared)} could not be compared")
        return NOT_COMPARED_EXIT_CODE
    return 0


def _warn(message: str) -> None:
    print(shown(f"mnist-ray: {message}"), file=sys.stderr)


def _replay(arguments: argparse.Namespace) -> int:
    run = _run_of(arguments)
    from mnist_ray.pipeline.replay import replay_trial

    data_dir = arguments.data_dir and Path(arguments.data_dir)
    replay = replay_trial(run, arguments.trial, data_dir, lambda epoch: print(epoch.columns(), file=sys.stderr))
    print(shown(str(replay)))
    return 0 if replay.is_good else WORSE_EXIT_CODE


def print_report(run: "RunDir") -> None:
    """Write the report; print the few rows that matter, the verdict, and the folder."""
    from mnist_ray.report.write import write_report

    review = write_report(run)
    print("\n".join([*map(shown, review.summary()), f"report: {run.paths.report}", f"all files: {run.path}"]))
