"""The import of what writes the report, ahead of time."""

import threading
from importlib import import_module

from mnist_ray.callbacks import Callback, StageName


class ReportImporter(Callback):
    """Imports what writes the report while models train, so that the end of a run does not wait for it."""

    def on_stage_start(self, stage: StageName, total: int, done: int, unit: str) -> None:
        if stage in ("final", "retrain"):
            threading.Thread(target=import_module, args=["mnist_ray.report.write"], daemon=True).start()
