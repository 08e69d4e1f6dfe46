"""An exported model answers as the network does, without this package."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch

from mnist_ray import RunDir, data, export_model
from mnist_ray.cli.main import main
from mnist_ray.pipeline import export
from mnist_ray.pipeline.prediction import selected_model
from mnist_ray.pipeline.stages import LoadedData
from mnist_ray.record.state import RunState
from mnist_ray.training.evaluation import predict
from tests.faults.made_run import NAME, RETRAINING, make_finished_run, make_open_run
from tests.report.made_up import made_up_spec, make_up

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_finished_run(tmp_path_factory.mktemp("storage"))[1]


@pytest.fixture(scope="module", params=["onnx", "torch"])
def exported(run: RunDir, request: pytest.FixtureRequest) -> Path:
    """Return the file that the command writes where no other is named."""
    assert main(["export", str(run.path), "--format", request.param]) == 0
    return run.path / "model" / f"model{export.SUFFIXES[request.param]}"


def test_any_batch_is_answered_as_by_the_network(run: RunDir, exported: Path) -> None:
    images = np.concatenate([data.load_test("digits", Path()).images[:, 0], export.made_images()])
    expected = torch.softmax(predict(selected_model(run), torch.from_numpy(images[:, np.newaxis])), dim=1).numpy()
    if exported.suffix == ".onnx":
        session = onnxruntime.InferenceSession(exported)
    else:
        module = torch.export.load(exported).module()
    for number in (0, 1, 2, 3, 500, len(images)):
        batch = images[:number]
        if exported.suffix == ".onnx":
            answer = session.run(None, {"images": batch})[0]
        else:
            answer = module(torch.from_numpy(batch)).numpy()
        assert answer.dtype == np.float32 and answer.shape == (number, 10)
        assert (answer.argmax(axis=1) == expected[:number].argmax(axis=1)).all()
        np.testing.assert_allclose(answer, expected[:number], rtol=0, atol=1e-5)


def test_file_says_what_it_is(run: RunDir, exported: Path) -> None:
    if exported.suffix == ".onnx":
        model = onnx.load(exported)
        metadata = {each.key: each.value for each in model.metadata_props}
        shapes = [
            str(value.type.tensor_type.shape.dim[0].dim_param) for value in (*model.graph.input, *model.graph.output)
        ]
        assert shapes == ["N", "N"]
    else:
        extra = {export.METADATA_NAME: ""}
        torch.export.load(exported, extra_files=extra)
        metadata = json.loads(extra[export.METADATA_NAME])
    assert json.loads(metadata["class_names"]) == [str(digit) for digit in range(10)]
    assert (metadata["run"], metadata["training"], metadata["data_set"]) == (NAME, RETRAINING, "digits")
    assert metadata["spec_sha256"] == hashlib.sha256(run.paths.spec.read_bytes()).hexdigest()
    assert metadata["weights_sha256"] == hashlib.sha256(run.paths.model(RETRAINING).read_bytes()).hexdigest()
    assert str(REPOSITORY).encode() not in exported.read_bytes()


# --- the check


def test_check_reads_an_opened_test_alone(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = export_model(run, "torch", tmp_path / "file.pt2").check
    assert "180 validation images" in check and "360 test images" in check
    monkeypatch.setattr(RunState, "test_opened", None)
    monkeypatch.setattr(LoadedData, "load_test", lambda self: pytest.fail("the test was read"))
    check = export_model(run, "torch", tmp_path / "file.pt2").check
    assert "180 validation images" in check and "test" not in check


def test_made_images_stand_in_for_missing_data(tmp_path: Path) -> None:
    spec = made_up_spec(tmp_path, data={"name": "mnist", "dir": str(tmp_path / "nowhere")}, retrain={"seeds": [0]})
    check = export_model(make_up(spec, with_search=False), "torch", tmp_path / "file.pt2").check
    assert f"1,000 made images (the data set mnist is not in {tmp_path / 'nowhere'})" in check


def test_made_images_get_different_answers(run: RunDir) -> None:
    answers = predict(selected_model(run), torch.from_numpy(export.made_images()[:, np.newaxis])).argmax(dim=1)
    assert len(answers.unique()) > 3


@pytest.mark.parametrize("format", export.SUFFIXES)
def test_other_answers_write_no_file(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    def trace_another(model: export.TravellingModel) -> torch.export.ExportedProgram:
        another = selected_model(run)
        another.head.bias.data[0] += 1e-3
        return trace(export.TravellingModel(another))

    trace = export.traced
    monkeypatch.setattr(export, "traced", trace_another)
    path = tmp_path / f"model{export.SUFFIXES[format]}"
    path.write_text("of before")
    assert main(["export", str(run.path), "--format", format, "--to", str(path)]) == 8
    assert "no file is written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "of before"


# --- what a user can get wrong


def test_impossible_exports_are_explained(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_open_run(tmp_path / "open")
    (tmp_path / "occupied").write_text("a file")
    torch_to = [str(run.path), "--format", "torch", "--to"]
    given = [
        (["nothing", "--storage", str(run.path.parent)], 2, "there is no run 'nothing'"),
        ([str(tmp_path / "open" / NAME)], 2, "has no trained model yet"),
        ([*torch_to, str(tmp_path)], 2, f"such as {tmp_path / NAME}.pt2"),
        ([*torch_to, str(tmp_path / "file.onnx")], 2, "does not end in .pt2"),
        ([*torch_to, str(tmp_path / "occupied" / "file.pt2")], 6, "name another file (--to)"),
        ([*torch_to, "ftp://host/file.pt2"], 2, "'ftp'"),
    ]
    for arguments, code, said in given:
        assert main(["export", *arguments]) == code
        assert said in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(run.path), "--to", str(tmp_path / "file.onnx")]) == 2
    assert "pip install 'mnist-ray[onnx]'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["occupied", "open"]
