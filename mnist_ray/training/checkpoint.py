"""A TrainState to and from a folder, without pickle: safetensors for tensors, JSON for the rest."""

import errno
import json
import logging
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mnist_ray.config import TrainingConfig
from mnist_ray.errors import CorruptFileError
from mnist_ray.metrics import EpochMetrics
from mnist_ray.storage.files import (
    StoragePath,
    children,
    exists,
    read,
    read_sealed_json,
    remove_tree,
    sha256,
    write_atomic,
    write_sealed_json,
)
from mnist_ray.storage.object_stores import OutOfReachError
from mnist_ray.training.distributed import Worker
from mnist_ray.training.examples import TrainingData
from mnist_ray.training.loop import TrainState, fit
from mnist_ray.training.model import MnistCNN

logger = logging.getLogger(__name__)

TENSORS_NAME = "state.safetensors"
MANIFEST_NAME = "checkpoint.json"  # written last: a folder without it is no checkpoint


@dataclass(frozen=True)
class SavedState:
    """A checkpoint's verified content, small enough to be handed from rank 0 to the others (0.2 MB)."""

    completed_epochs: int
    history: list[EpochMetrics]
    tensors: bytes  # safetensors
    num_workers: int = 1  # that trained the latest epoch

    @classmethod
    def of(cls, state: TrainState, num_workers: int = 1) -> "SavedState":
        tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in state.optimizer.state_dict().items()}
        if state.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in state.average.model.state_dict().items()}
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return cls(state.completed_epochs, list(state.history), save(on_cpu), num_workers)

    def to_bytes(self) -> bytes:
        rows = [metrics.columns() for metrics in self.history]
        return json.dumps([self.completed_epochs, rows]).encode() + b"\n" + self.tensors

    @classmethod
    def from_bytes(cls, content: bytes) -> "SavedState":
        head, _, tensors = content.partition(b"\n")
        completed_epochs, rows = json.loads(head)
        return cls(completed_epochs, [EpochMetrics.from_columns(row) for row in rows], tensors)

    def shipped_model(self) -> bytes:
        """Return the weights that a finished training ships, the averaged ones where there are any (model_to_bytes)."""
        tensors = load(self.tensors)
        return save(_below("average.", tensors) or _below("model.", tensors), metadata={"format": "pt"})

    def put_into(self, state: TrainState) -> None:
        """state: made by `TrainState.initial` for the same config."""
        tensors = load(self.tensors)
        state.model.load_state_dict(_below("model.", tensors))
        state.optimizer.load_state_dict(_below("optimizer.", tensors))
        if state.average is not None:
            state.average.model.load_state_dict(_below("average.", tensors))
        state.completed_epochs = self.completed_epochs
        state.history[:] = self.history


class Checkpoints:
    """The checkpoints of one training: one folder an epoch, the last two kept.

    Each owner of a run has a folder of its own, because workers of an owner that was replaced may go on for a moment.
    """

    def __init__(
        self,
        folder: StoragePath,
        config: TrainingConfig,
        earlier: Sequence[StoragePath] = (),
        every_s: float = 5.0,
        num_kept: int = 2,
        sentinel: StoragePath | None = None,
        only_workers: int | None = None,
    ) -> None:
        """earlier: folders of owners before, which are read, and removed once there is enough in `folder`.

        sentinel: a file that is there, unless this machine has other storage under the same name.
        only_workers: use only checkpoints of as many workers, because dropout follows the rank.
        """
        self._folder = folder
        self._earlier = earlier
        self._config = config
        self._every_s = every_s
        self._num_kept = num_kept
        self._sentinel = sentinel
        self._only_workers = only_workers
        self._last_saved = time.monotonic()

    @classmethod
    def of_owner(
        cls,
        folder: StoragePath,
        fencing_token: int,
        config: TrainingConfig,
        sentinel: StoragePath | None = None,
        only_workers: int | None = None,
    ) -> "Checkpoints":
        """folder: of the training; below it each owner of the run has one, named by its fencing token."""
        own = folder / f"{fencing_token:06d}"
        others = sorted(children(folder, "[0-9]*"), key=lambda other: other.name)
        earlier = [other for other in others if other.name < own.name]
        return cls(own, config, earlier, sentinel=sentinel, only_workers=only_workers)

    def save_if_due(self, state: TrainState, num_workers: int = 1) -> None:
        """Save after the last epoch, and before it at most once per `every_s`. Raises OSError."""
        is_last = state.completed_epochs >= self._config.num_epochs
        if is_last or time.monotonic() - self._last_saved >= self._every_s:
            self.save(SavedState.of(state, num_workers))
            self._last_saved = time.monotonic()

    def save(self, saved: SavedState) -> None:
        """Raises OSError; then the earlier checkpoints are as they were."""
        folder = self._folder / f"epoch-{saved.completed_epochs:04d}"
        manifest = {
            "config": self._config.model_dump(),
            "completed_epochs": saved.completed_epochs,
            "history": [metrics.columns() for metrics in saved.history],
            "tensors_sha256": sha256(saved.tensors),
            "num_workers": saved.num_workers,
        }
        write_atomic(folder / TENSORS_NAME, saved.tensors, "checkpoint-tensors")
        write_sealed_json(folder / MANIFEST_NAME, manifest, "checkpoint-manifest")
        self._remove_all_but_latest(folder)

    def latest(self) -> SavedState | None:
        """The latest sound checkpoint; one that is torn or of another training is named in the log and passed over.

        Raises OutOfReachError.
        """
        if self._sentinel is not None and not exists(self._sentinel):
            reason = f"node {socket.gethostname()} does not share this storage"
            raise OutOfReachError(errno.EREMOTEIO, reason, str(self._folder))
        for folder in reversed(_epochs_in(*self._earlier, self._folder)):
            try:
                return self._read(folder)
            except OutOfReachError:
                raise  # it may well be sound
            except (CorruptFileError, OSError) as error:
                logger.warning("checkpoint %s is not used: %s", folder, error)
        return None

    def _remove_all_but_latest(self, latest: StoragePath) -> None:
        """What lies after `latest` could not be used, or training would have gone on from there."""
        epochs = _epochs_in(self._folder)
        kept = epochs[: epochs.index(latest) + 1][-self._num_kept :]
        superseded = [] if len(kept) < self._num_kept else self._earlier
        for folder in [*(epoch for epoch in epochs if epoch not in kept), *superseded]:
            remove_tree(folder)

    def _read(self, folder: StoragePath) -> SavedState:
        manifest = read_sealed_json(folder / MANIFEST_NAME)
        tensors = read(folder / TENSORS_NAME)
        if sha256(tensors) != manifest["tensors_sha256"]:
            raise CorruptFileError(f"{TENSORS_NAME} does not match its SHA-256 {manifest['tensors_sha256'][:12]}")
        if manifest["config"] != self._config.model_dump():
            raise CorruptFileError(f"it belongs to another training: {manifest['config']}")
        if self._only_workers not in (None, manifest["num_workers"]):
            raise CorruptFileError(f"it was made by {manifest['num_workers']} workers, here are {self._only_workers}")
        history = [EpochMetrics.from_columns(row) for row in manifest["history"]]
        return SavedState(manifest["completed_epochs"], history, tensors, manifest["num_workers"])


def _epochs_in(*folders: StoragePath) -> list[StoragePath]:
    """The checkpoints in these folders, in the order of their epochs."""
    epochs = [epoch for folder in folders for epoch in children(folder, "epoch-*")]
    return sorted(epochs, key=lambda epoch: (len(epoch.name), epoch.name))


def fit_resumably(
    config: TrainingConfig, data: TrainingData, checkpoints: Checkpoints, worker: Worker = Worker()
) -> Iterator[TrainState]:
    """The one road to training: go on from the latest checkpoint, and yield the state after each epoch.

    `state.history` holds every epoch's row, those before an interruption included. Where there is nothing left to
    train, the finished state is yielded once. Rank 0 alone reads and writes checkpoints. Raises DivergedError,
    OSError.
    """
    state = TrainState.initial(config, data.statistics, worker, num_classes=data.num_classes)
    saved = _from_rank_0(checkpoints.latest() if worker.rank == 0 else None, worker)
    if saved is not None:
        saved.put_into(state)
        yield state
    for _ in fit(state, data, config, worker):
        if worker.rank == 0:
            checkpoints.save_if_due(state, worker.world_size)
        yield state


def _from_rank_0(saved: SavedState | None, worker: Worker) -> SavedState | None:
    if worker.world_size == 1:
        return saved
    content = b"" if saved is None else saved.to_bytes()
    num_bytes = torch.tensor([len(content)], device=worker.device)
    dist.broadcast(num_bytes, src=0)
    if num_bytes.item() == 0:
        return None
    # As bytes: torch would unpickle objects, and gloo takes in whoever connects to it.
    received = torch.empty(int(num_bytes.item()), dtype=torch.uint8, device=worker.device)
    if worker.rank == 0:
        received.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(received, src=0)
    return SavedState.from_bytes(received.cpu().numpy().tobytes())


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def model_to_bytes(model: MnistCNN) -> bytes:
    """The weights, running statistics and pixel statistics as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return save(tensors, metadata={"format": "pt"})


def model_from_bytes(content: bytes) -> MnistCNN:
    """What `model_to_bytes` made, ready to predict. Raises CorruptFileError for anything else."""
    try:
        tensors = load(content)
        model = MnistCNN(dropout=0.0, num_classes=len(tensors["head.bias"]))
        model.load_state_dict(tensors)
    except (SafetensorError, RuntimeError, KeyError, TypeError) as error:
        raise CorruptFileError(f"is not a model of this project: {str(error).splitlines()[0]}") from None
    return model.eval()
