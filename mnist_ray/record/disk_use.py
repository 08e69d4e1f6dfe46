"""Space that a run takes."""

from mnist_ray.config import JobSpec

EVENT_BYTES = 4096  # a block of most file systems
TRAINING_BYTES = 2 * 256 * 1024  # 17,706 parameters and Adam's two moments of each, twice
TESTED_BYTES = 2 * (1 << 20)  # weights and the logits of 10,000 images, in the record and as copies
EXPORTS_BYTES = 16 * (1 << 20)  # the report alone up to 8


def bytes_needed(spec: JobSpec) -> int:
    """Estimate the most that a run takes in its folder: record, two checkpoints of each training, models, exports."""
    num_tested = 2 * spec.num_tested_seeds
    num_retrainings = num_tested if spec.retrain else 0
    num_trials, num_finals = spec.search.num_trials, spec.most_final_trainings
    num_events = num_trials * (spec.search.num_epochs + 2) + num_finals * (spec.final_epochs + 2)
    num_events += num_retrainings * (spec.tested_epochs + 2) + 100
    num_trainings = num_trials + num_finals + num_retrainings
    return num_events * EVENT_BYTES + num_trainings * TRAINING_BYTES + num_tested * TESTED_BYTES + EXPORTS_BYTES
