"""What a user meets on the command line: help at once, one clear message for a mistake, documented exit codes."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray import __version__
from mnist_ray.cli.main import main
from tests.faults.made_run import tamper
from tests.report.made_up import made_up_spec, make_up

REPOSITORY = Path(__file__).resolve().parents[2]
QUICKSTART = "jobs/quickstart.yaml"


def mnist_ray(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mnist_ray.cli", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": "", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_is_light() -> None:
    program = (
        "import sys\nfrom mnist_ray.cli.main import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'pandas', 'optuna', 'numpy', 'pydantic', 'rich', 'yaml'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "jobs/absent.yaml"],
        ["run", "quickstart", "--set", "search.num_trails=5"],
        ["plan", "quickstart", "--set", "search.num_trials=many"],
        ["submit", "quickstart", "--set", "nonsense"],
        ["results", "--storage", "s4://bucket"],
        ["report", "absent"],
        ["compare", "absent", "absent"],
        ["evaluate", "absent"],
        ["predict", "image.png", "--run", "absent"],
        ["replay", "absent", "--trial", "0"],
    ],
    ids=" ".join,
)
def test_typing_mistakes_are_light(arguments: list[str], tmp_path: Path) -> None:
    """Whoever mistyped something need not wait for the imports of a job."""
    program = (
        "import sys\nfrom mnist_ray.cli.main import main\n"
        f"code = main({arguments})\n"
        "heavy = {'torch', 'ray', 'numpy', 'pandas', 'scipy', 'fsspec', 'upath', 'rich', 'plotly'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else code)"
    )
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr


def test_importing_the_package_does_nothing() -> None:
    program = "import sys, mnist_ray; sys.exit(len({'torch', 'ray', 'numpy', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "jobs/absent.yaml"], ["jobs/absent.yaml", "cannot be read"]),
        (["run", "README.md"], ["README.md"]),
        (["run", QUICKSTART, "--set", "search.num_trails=5"], ["search.num_trails", "did you mean search.num_trials"]),
        (["run", QUICKSTART, "--set", "search.num_trials=many"], ["search.num_trials", "'many'", "whole|integer"]),
        (["run", QUICKSTART, "--set", "search.num_trials=0"], ["search.num_trials", "0", "greater than or equal to 1"]),
        (["run", QUICKSTART, "--set", "retrain.num_epochs=0"], ["retrain.num_epochs", "0"]),
        (["run", QUICKSTART, "--set", "recipe.dropout=1.0"], ["recipe.dropout", "1.0", "less than 1"]),
        (["run", QUICKSTART, "--set", "search.space.dropout={low: 0.5, high: 0.1}"], ["dropout", "0.5", "0.1"]),
        (["run", QUICKSTART, "--set", "search.space.dropout={low: 0.5, high: 1.0}"], ["dropout", "1.0", "less than 1"]),
        (["run", QUICKSTART, "--set", "search.space.momentum={low: 0, high: 1}"], ["momentum", "not a hyperparameter"]),
        (
            ["run", QUICKSTART, "--set", "recipe.batch_size=1", "--set", "retrain.workers=2"],
            ["recipe.batch_size 1", "retrain.workers 2"],
        ),
        (["run", QUICKSTART, "--set", "retrain.workers=65"], ["batch_size", "65"]),
        (["run", QUICKSTART, "--set", "retrain.cpus_per_worker=999"], ["retrain.cpus_per_worker", "cluster has"]),
        (["run", QUICKSTART, "--set", "search.cpus_per_trial=999"], ["search.cpus_per_trial", "999"]),
        (["run", QUICKSTART, "--log-to", "mlfow", "--log-to", "optuna"], ["log_to 'mlfow'", "did you mean mlflow"]),
        (["run", QUICKSTART, "--name", "../../escaped"], ["name", "../../escaped", "letters"]),
        (["run", QUICKSTART, "--set", "nonsense"], ["--set 'nonsense'", "search.num_trials=50"]),
        (["run", QUICKSTART, "--address", "127.0.0.1:1"], ["--address 127.0.0.1:1", "no Ray cluster answers"]),
        (
            ["run", QUICKSTART, "--local", "--address", "127.0.0.1:1"],
            ["--local --address 127.0.0.1:1", "leave out one"],
        ),
        (["submit", QUICKSTART, "--local"], ["--local", "mnist-ray run --local"]),
        (["run", QUICKSTART, "--local", "--set", "retrain.gpus_per_worker=1"], ["retrain.gpus_per_worker 1", "no GPU"]),
        (["evaluate", "nothing"], ["nothing", "there is no run"]),
        (["predict", "README.md", "--run", "nothing"], ["there is no run"]),
        (["predict", "README.md", "--json", "--show"], ["--json", "--show"]),
        (["export", "nothing"], ["nothing", "there is no run"]),
        (["export", "nothing", "--format", "tflite"], ["--format", "tflite", "onnx"]),
    ],
)
def test_mistake_gets_one_message(arguments: list[str], said: list[str], tmp_path: Path) -> None:
    done = mnist_ray(*arguments, "--storage", tmp_path / "results")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for part in said:
        assert any(alternative in done.stderr for alternative in part.split("|")), done.stderr
    assert not [path for path in tmp_path.rglob("record/*.json") if "session_started" in path.read_text()]


def test_missing_data_are_explained(tmp_path: Path) -> None:
    unreachable = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = mnist_ray(
        "run", "jobs/mnist.yaml", "--storage", tmp_path / "results", "--data-dir", tmp_path / "data", **unreachable
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    for part in ("train-images-idx3-ubyte.gz", str(tmp_path / "data"), "--data-dir", "quickstart.yaml"):
        assert part in done.stderr


def test_wrong_data_file_is_refused(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte.gz").write_bytes(b"not what it says")
    done = mnist_ray("run", "jobs/mnist.yaml", "--storage", tmp_path / "results", "--data-dir", tmp_path / "data")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert str(raw) in done.stderr


def test_removed_current_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["results"]) == 6
    assert capsys.readouterr().err == "mnist-ray: the current folder was removed: change to one that exists (cd ~)\n"


def test_unwritable_storage_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where a folder should be")
    done = mnist_ray("run", QUICKSTART, "--storage", tmp_path / "results")
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "results") in done.stderr


def test_doctor_examines_everything(tmp_path: Path) -> None:
    done = mnist_ray("doctor", "--storage", tmp_path, "--data-dir", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for what in ("torch", "ray", "devices", "data mnist", "data digits", "storage"):
        assert what in done.stdout
    broken = mnist_ray("doctor", "--storage", tmp_path, "--address", "127.0.0.1:1")
    assert broken.returncode == 2
    assert "BAD cluster" in broken.stdout


def test_python_without_requirements_is_named(tmp_path: Path) -> None:
    """As on a node whose `python` is not the environment that has them."""
    (tmp_path / "pandas.py").write_text("raise ModuleNotFoundError(\"No module named 'pandas'\", name='pandas')")
    done = mnist_ray("run", QUICKSTART, PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    assert done.returncode == 2, done.stderr
    assert "lacks the package 'pandas'" in done.stderr
    assert "Traceback" not in done.stderr


def test_empty_storage_has_no_results(tmp_path: Path) -> None:
    done = mnist_ray("results", "--storage", tmp_path)
    assert done.returncode == 0
    assert "no runs in" in done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    for name, accuracy in (("good", 0.985), ("poor", 0.95)):
        make_up(made_up_spec(storage, name=name), selected_accuracy=accuracy)
    return storage


@pytest.mark.parametrize(("stage", "is_there"), [("search", False), ("final", True), ("retrain", True)])
def test_report_is_imported_ahead(stage: str, is_there: bool) -> None:
    script = (
        "import sys, threading\n"
        "from mnist_ray.cli.report_importer import ReportImporter\n"
        f"ReportImporter().on_stage_start({stage!r}, 1, 0, 'epochs')\n"
        "[thread.join() for thread in threading.enumerate() if thread is not threading.current_thread()]\n"
        f"assert ('mnist_ray.report.write' in sys.modules) == {is_there}"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_report_ends_with_the_verdict(runs: Path) -> None:
    done = mnist_ray("report", "good", "--storage", runs)
    assert done.returncode == 0, done.stderr
    *_, verdict, report, place = done.stdout.splitlines()
    assert verdict.startswith("verdict: The selected configuration is better than the baseline")
    assert report == f"report: {runs / 'good' / 'report.html'}"
    assert place == f"all files: {runs / 'good'}"
    assert (runs / "good" / "results.csv").is_file()


def test_compare_can_fail_if_worse(runs: Path) -> None:
    assert mnist_ray("compare", "good", "poor", "--storage", runs).returncode == 0
    done = mnist_ray("compare", "good", "poor", "--fail-if-worse", "--storage", runs)
    assert done.returncode == 8, done.stderr
    assert "poor against good:" in done.stdout and "outcome: worse" in done.stdout
    assert mnist_ray("compare", "poor", "good", "--fail-if-worse", "--storage", runs).returncode == 0


def test_nothing_compared_is_no_success(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that crashed, and one of other data; what is worse has the last word."""
    for name in ("good", "poor"):
        (tmp_path / name).symlink_to(runs / name)
    make_up(made_up_spec(tmp_path, name="crashed"), until="retrained")
    tamper(make_up(made_up_spec(tmp_path, name="other")), lambda value: "e" * 64 if value == "a" * 64 else value)
    for others, code in {("crashed",): 9, ("good", "other"): 9, ("good", "poor", "crashed"): 8, ("good",): 0}.items():
        assert main(["compare", "good", *others, "--fail-if-worse", "--storage", str(tmp_path)]) == code
        assert (f"{others[-1]} could not be compared" in capsys.readouterr().err) == (code == 9)
    assert main(["compare", "good", "crashed", "--storage", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "good"], ["compare good", "needs two runs"]),
        (["compare", "good", "absent"], ["no run 'absent'", "good"]),
        (["report", "absent"], ["no run 'absent'"]),
        (["replay", "good", "--trial", "77"], ["--trial 77", "no such trial", "0 to 29"]),
        (["replay", "good", "--trial", "0"], ["data", "differ from those of"]),
    ],
)
def test_mistakes_with_runs_get_one_message(runs: Path, arguments: list[str], said: list[str]) -> None:
    done = mnist_ray(*arguments, "--storage", runs)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert all(part in done.stderr for part in said), done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_text_that_cannot_be_shown_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """A minus sign, an arrow, and a name that is no text at all."""
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding))
    assert main(["results", "--storage", str(tmp_path / "−1 → \udcff")]) == 0
    sys.stdout.flush()
    assert shown.getvalue().startswith(b"no runs in /")


def test_reconfigured_output_survives_a_pipe(tmp_path: Path) -> None:
    done = mnist_ray("results", "--storage", tmp_path / "−1 →", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout.strip()[-4:]) == (0, "?1 ?")


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"mnist_ray {__version__}\n"


def test_unknown_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "quickstart", "--nmae", "x"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --nmae x: 'mnist-ray COMMAND --help'" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "remedy"), [("rnu", "did you mean 'run'?"), ("xyzzy", "use one of run, search")])
def test_unknown_command_names_what_was_meant(word: str, remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word])
    assert ended.value.code == 2
    assert remedy in capsys.readouterr().err
