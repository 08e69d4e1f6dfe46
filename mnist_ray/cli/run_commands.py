"""The commands that read runs: evaluate, predict, export, results, report, compare, replay."""

import argparse
import errno
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ray.cli.answers import columns, drawn, in_words
from mnist_ray.cli.arguments import add_command, add_storage, storage_of
from mnist_ray.cli.documents import add_json, print_document
from mnist_ray.errors import NOT_COMPARED_EXIT_CODE, WORSE_EXIT_CODE, CorruptFileError, ImageFileError, SpecError
from mnist_ray.shown import shown

if TYPE_CHECKING:
    from mnist_ray.pipeline.prediction import AskedModel, Prediction
    from mnist_ray.record.listing import ListedRun
    from mnist_ray.record.rundir import RunDir


def add_run_commands(commands: Any) -> None:
    """Add evaluate, predict, export, results, report, compare and replay to the parser."""
    evaluate = add_command(commands, "evaluate", _evaluate, "score a finished run's models on the test split again")
    evaluate.add_argument("run", help="a run's name, or its folder")
    evaluate.add_argument("--data-dir", help="the folder of the data sets")
    add_storage(evaluate)
    predict = add_command(
        commands, "predict", _predict, "tell which digit, or which of a run's classes, an image shows"
    )
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    text = "the run whose model answers (default: the latest finished one, of MNIST if there is any)"
    predict.add_argument("--run", help=text)
    predict.add_argument("--data-dir", help="where the data sets lie, to tell pictures unlike the training images")
    shown_as = predict.add_mutually_exclusive_group()
    shown_as.add_argument("--json", action="store_true", help="print one JSON document")
    shown_as.add_argument("--show", action="store_true", help="draw what the network saw")
    add_storage(predict)
    export = add_command(commands, "export", _export, "write a run's model as a file that works without this package")
    export.add_argument("run", help="a run's name, or its folder")
    export.add_argument(
        "--format", choices=("onnx", "torch"), default="onnx", help="onnx (default), or a .pt2 of torch.export"
    )
    export.add_argument(
        "--to", metavar="FILE", help="(default: model/model.onnx or model/model.pt2 in the run's folder)"
    )
    export.add_argument("--data-dir", help="where the data sets lie, on which the file is checked")
    add_storage(export)
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
    from mnist_ray.record.rundir import find_run, run_to_ask

    storage = storage_of(arguments)
    run = find_run(arguments.run, storage) if arguments.run else run_to_ask(storage, _warn)
    from mnist_ray.pipeline.prediction import AskedModel, predict_images  # torch takes 3 s to import

    model = AskedModel.of(run)
    answers = predict_images(run, arguments.images, arguments.data_dir and Path(arguments.data_dir))
    answered = list(zip(arguments.images, answers, strict=True))
    if arguments.json:
        images = [columns(path, answer, model.class_names) for path, answer in answered]
        print_document(model=model.columns(), images=images)
    else:
        print(shown(f"Answers of {model}:"), file=sys.stderr)
        _print_answers(answered, model, arguments.show)
    refused = [answer for answer in answers if isinstance(answer, ImageFileError)]
    for error in refused:
        _warn(str(error))
    return ImageFileError.exit_code if refused else 0


def _print_answers(
    answered: "Sequence[tuple[Path, Prediction | ImageFileError]]", model: "AskedModel", with_drawings: bool
) -> None:
    """Print the answers, and what the user should know of all of them."""
    likeness = set()
    for path, answer in answered:
        if isinstance(answer, ImageFileError):
            continue
        print(shown(f"{path}: {in_words(answer, model.class_names)}"))
        if with_drawings:
            print(drawn(answer))
        likeness.add(answer.is_like_training_images)
    if None in likeness and model.data_set != "images":  # own images are never compared
        _warn(
            f"the data set {model.data_set} is not at hand, so no picture was compared with the training images: "
            "--data-dir names its folder"
        )
    if False in likeness and model.data_set == "digits":
        _warn("digits have 8x8 pixels: 'mnist-ray run mnist' trains on larger ones, --run names another run")


def _export(arguments: argparse.Namespace) -> int:
    from mnist_ray.record.rundir import find_run

    run = find_run(arguments.run, storage_of(arguments))
    from mnist_ray.pipeline.export import export_model  # torch takes 3 s to import

    data_dir = arguments.data_dir and Path(arguments.data_dir)
    exported = export_model(run, arguments.format, arguments.to, data_dir)
    print(shown(f"{exported.metadata['input']}\n{exported.metadata['output']}\nchecked: {exported.check}"))
    print(shown(f"model: {exported.path}"))
    return 0


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
