"""The model that a run ships, as a file that works without this package: ONNX, or a program of torch.export."""

import io
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mnist_ray import __version__
from mnist_ray.config import check_storage, dump_spec
from mnist_ray.data.labelled_images import IMAGE_SHAPE
from mnist_ray.errors import DataError, OtherAnswersError, SpecError
from mnist_ray.pipeline.prediction import score_on_test, selected_training, trained_model
from mnist_ray.pipeline.run_data import load_data_of
from mnist_ray.record.rundir import RunDir
from mnist_ray.storage.files import StoragePath, sha256, storage_path, write_atomic
from mnist_ray.training.model import MnistCNN

ExportFormat = Literal["onnx", "torch"]

SUFFIXES: Mapping[str, str] = {"onnx": ".onnx", "torch": ".pt2"}  # by format
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
ONNX_OPSET = 18  # read by onnxruntime from 1.14 on
NUM_IMAGES = "N"  # the name of the first dimension
METADATA_NAME = "metadata.json"  # of the extra file in a .pt2

TOLERANCE = 1e-5  # of a probability
CHECKED_AT_ONCE = 500  # images
NUM_MADE = 1_000

Images = npt.NDArray[np.uint8]  # (N, 28, 28)
Probabilities = npt.NDArray[np.float32]  # (N, classes)
Answer = Callable[[Images], Probabilities]


class ExportedModel(NamedTuple):
    """A model's file, written after its check."""

    path: StoragePath
    metadata: dict[str, str]
    check: str  # for people: the images, and the largest difference of a probability


class TravellingModel(nn.Module):
    """A trained network in the form in which it is exported."""

    def __init__(self, network: MnistCNN) -> None:
        super().__init__()
        self.network = network
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 28, 28) uint8 -> probabilities: (N, classes) float32, each row of which adds up to 1."""
        return torch.softmax(self.network(images.unsqueeze(1)), dim=1)


def export_model(
    run: RunDir, format: ExportFormat = "onnx", to: str | Path | None = None, data_dir: Path | None = None
) -> ExportedModel:
    """Write the selected model as a file that takes images, (N, 28, 28) uint8, and gives probabilities, (N, classes).

    Before it is written, the file's answers are compared with the network's: on the validation images; on the test
    images too if the record says that the test was opened; on made images where the data are not at hand. The classes
    must be the same and the probabilities within TOLERANCE.

    to: a path, or an address in an object store (default: model/model.onnx or model/model.pt2 in the run's folder).
    data_dir: where the data sets lie. Raises SpecError for a run without a model, an unknown format, a missing package
    or a folder at `to`; OtherAnswersError where the comparison fails; CorruptFileError; OSError. Then nothing is
    written.
    """
    path = _path_of(run, format, to)
    network = trained_model(run, selected_training(run))
    model = TravellingModel(network)
    metadata = _metadata(run, network)
    write, read = _FORMATS[format]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own parts
        content = write(traced(model), metadata)
        answer = read(content)
        check = _checked(model, answer, run, data_dir)
    try:
        write_atomic(path, content)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: name another file (--to)", str(path)) from None
    return ExportedModel(path, metadata, check)


def _path_of(run: RunDir, format: str, to: str | Path | None) -> StoragePath:
    """Return where the file goes. Raises SpecError for what can be known to fail before the work."""
    if format not in SUFFIXES:
        raise SpecError(f"format {format!r} is none that a model is exported in: use {' or '.join(SUFFIXES)}")
    missing = [name for name in ONNX_PACKAGES if format == "onnx" and find_spec(name) is None]
    if missing:
        raise SpecError(
            f"format onnx needs {', '.join(missing)}, which {sys.executable} lacks: pip install 'mnist-ray[onnx]'"
        )
    if to is None:
        return run.paths.model_folder / f"model{SUFFIXES[format]}"
    check_storage(str(to))
    path = storage_path(str(to))
    if isinstance(path, Path) and path.is_dir():
        raise SpecError(f"{path} is a folder: name a file, such as {path / run.path.name}{SUFFIXES[format]} (--to)")
    if path.suffix != SUFFIXES[format]:
        raise SpecError(
            f"{path} does not end in {SUFFIXES[format]}, by which programs know format {format}: name the file so "
            "(--to), or choose another format (--format)"
        )
    return path


def _metadata(run: RunDir, network: MnistCNN) -> dict[str, str]:
    """Return what a reader of the file needs to know; a list is written as JSON."""
    state = run.state
    assert state.started is not None
    training_id = selected_training(run)
    training = state.training(training_id)
    assert training is not None and training.ended is not None
    spec = state.started.spec
    score = score_on_test(run, training_id)
    num_classes = network.head.out_features
    mean, std = float(network.image_mean), float(network.image_std)
    return {
        "run": spec.name,
        "training": training_id,
        "data_set": spec.data.name,
        "class_names": json.dumps(state.started.class_names),
        "input": "images: (N, 28, 28) uint8, 0 to 255, grey, light on dark, any N",
        "output": f"probabilities: (N, {num_classes}) float32, in the order of class_names",
        "preprocessing": f"within the model: (pixel - {mean:.6g}) / {std:.6g}; give the pixels as they are",
        "test_accuracy": f"{score.accuracy:.6g}" if score else "not tested",
        "spec_sha256": sha256(dump_spec(spec).encode()),  # of spec.yaml in the run's folder
        "weights_sha256": str(training.ended.model),  # of the training's .safetensors in models/
        "mnist_ray": __version__,
    }


# --- the formats


def traced(model: TravellingModel) -> ExportedProgram:
    """Trace the model for any number of images."""
    example = torch.zeros((2, *IMAGE_SHAPE), dtype=torch.uint8)
    program = torch.export.export(
        model, (example,), dynamic_shapes={"images": {0: torch.export.Dim(NUM_IMAGES, min=0)}}
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it holds paths of this machine
    return program


def _write_onnx(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    import onnx

    traced = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["images"],
        output_names=["probabilities"],
        opset_version=ONNX_OPSET,
        verbose=False,
    )
    assert traced is not None
    proto = traced.model_proto
    del proto.graph.value_info[:]  # of what lies between, under torch's name for the number of images
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = NUM_IMAGES
    onnx.helper.set_model_props(proto, dict(metadata))
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString()
    return content


def _read_onnx(content: bytes) -> Answer:
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def answer(images: Images) -> Probabilities:
        (probabilities,) = session.run(["probabilities"], {"images": images})
        return np.asarray(probabilities)

    return answer


def _write_torch(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA_NAME: json.dumps(metadata, indent=2)})
    return file.getvalue()


def _read_torch(content: bytes) -> Answer:
    program = torch.export.load(io.BytesIO(content)).module()

    def answer(images: Images) -> Probabilities:
        probabilities: Probabilities = program(torch.from_numpy(images)).numpy()
        return probabilities

    return answer


_FORMATS: Mapping[str, tuple[Callable[[ExportedProgram, Mapping[str, str]], bytes], Callable[[bytes], Answer]]] = {
    "onnx": (_write_onnx, _read_onnx),
    "torch": (_write_torch, _read_torch),
}

# --- the check


def _checked(model: TravellingModel, answer: Answer, run: RunDir, data_dir: Path | None) -> str:
    """Compare a file's answers with the model's, and return how they compare. Raises OtherAnswersError."""
    parts, why = _images_of(run, data_dir)
    largest = max(_largest_difference(model, answer, images, name) for name, images in parts.items())
    on = " and ".join(f"{len(images):,} {name} images" for name, images in parts.items())
    return f"the same classes on {on}{why}, probabilities {f'within {largest:.0e}' if largest else 'equal'}"


def _images_of(run: RunDir, data_dir: Path | None) -> tuple[dict[str, Images], str]:
    """Return the images for the check by their name, and why they are made ones where they are."""
    started = run.state.started
    assert started is not None
    try:
        loaded = load_data_of(run, data_dir)
        assert loaded.split.validation is not None
        parts = {"validation": loaded.split.validation.images[:, 0]}
        if run.state.test_opened:
            parts["test"] = loaded.load_test().images[:, 0]
    except DataError as error:
        return {"made": made_images()}, f" ({error})"
    return parts, ""


def made_images() -> Images:
    """Return NUM_MADE images of random blocks of 4x4 pixels, from nearly dark to nearly full; always the same ones."""
    random = np.random.default_rng(0)
    blocks = (NUM_MADE, IMAGE_SHAPE[0] // 4, IMAGE_SHAPE[1] // 4)
    shades = random.integers(0, 256, blocks) * (random.random(blocks) < random.random((NUM_MADE, 1, 1)))
    return shades.astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)


def _largest_difference(model: TravellingModel, answer: Answer, images: Images, name: str) -> float:
    """Return the largest difference of a probability, over batches of 1, of CHECKED_AT_ONCE, and of what is left.

    Raises OtherAnswersError.
    """
    largest = 0.0
    starts = [0, *range(1, len(images), CHECKED_AT_ONCE)]
    for start, stop in zip(starts, [*starts[1:], len(images)], strict=True):
        batch = np.ascontiguousarray(images[start:stop])
        expected, found = model(torch.from_numpy(batch)).numpy(), answer(batch)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise OtherAnswersError(
                f"the exported model gives {found.dtype} {found.shape} where the network gives {expected.dtype} "
                f"{expected.shape}: no file is written; report this as a bug"
            )
        difference = float(np.abs(found - expected).max())
        num_other = int((found.argmax(axis=1) != expected.argmax(axis=1)).sum())
        if num_other or not difference <= TOLERANCE:
            raise OtherAnswersError(
                f"the exported model answers otherwise than the network: {num_other} other classes on the {name} "
                f"images {start} to {stop - 1}, probabilities differ by up to {difference:.2g} (allowed: "
                f"{TOLERANCE:g}): no file is written; report this as a bug"
            )
        largest = max(largest, difference)
    return largest
