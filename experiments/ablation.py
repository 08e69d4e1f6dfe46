"""What does each part of the tuned training contribute? python -m experiments.ablation SPEC

SPEC describes the tuned training by its `recipe` and `training`, as a run's best.yaml does. It is trained as it is,
with each part off, with the recipe's own learning rate, dropout and batch size, and as the recipe alone: 30 epochs,
two seeds, on 35,000 training images of MNIST, judged by 20,000 others. Writes docs/results/ablation.csv, and goes on
where that file ends.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from experiments.trainings import Images, Planned, run_all
from mnist_ray import data
from mnist_ray.config import Hyperparameters, JobSpec, Recipe, TrainingConfig, TrainingParts, load_spec

NUM_EPOCHS = 30
SEEDS = (0, 1)
TABLE = Path("docs/results/ablation.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--data-dir", type=Path, default=data.default_data_dir(), help="where MNIST lies or goes")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--processes", type=int, default=2, help="each computes on one thread")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=NUM_EPOCHS)
    arguments = parser.parse_args()
    images = Images(arguments.data_dir, num_train=35_000, num_held_back=20_000)
    planned = list(plans(load_spec(arguments.spec), arguments.epochs, SEEDS))
    rows = run_all(planned, images, arguments.table, arguments.processes, arguments.device)
    print(ablation_table(rows).to_markdown())


def plans(spec: JobSpec, num_epochs: int, seeds: Sequence[int]) -> Iterator[Planned]:
    """Yield the trainings, seed by seed, so that an unfinished study has whole seeds."""
    for seed in seeds:
        for part, values in variants(spec.starting_point).items():
            config = TrainingConfig(**values.model_dump(), num_epochs=num_epochs, seed=seed)
            yield Planned(part, config, scored_after=tuple(range(5, num_epochs, 5)))


def variants(tuned: Hyperparameters) -> dict[str, Hyperparameters]:
    """Return the tuned configuration, the same with each of its parts off, and the recipe, by name."""
    found = {"all parts": tuned}
    for name, field in TrainingParts.model_fields.items():
        if name != "warmup" and getattr(tuned, name) != field.default:  # without a schedule there is no warm-up
            found[f"without {name}"] = tuned.model_copy(update={name: field.default})
    found["without dropout"] = tuned.model_copy(update={"dropout": 0.0})
    found["with the recipe's own values"] = tuned.model_copy(update=Recipe().model_dump())
    found["the recipe"] = Hyperparameters()
    return found


def is_finished(rows: pd.DataFrame) -> bool:
    """Report whether every variant is there on every seed."""
    last = rows[rows["epoch"] == rows["num_epochs"]]
    return "the recipe" in set(last["part"]) and set(last.groupby("part").size()) == {len(SEEDS)}


def ablation_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return each variant's mean last scores and the loss above that of all parts, lowest loss first."""
    last = rows[rows["epoch"] == rows["num_epochs"]]
    means = last.groupby("part", sort=False)[["val_loss", "val_accuracy"]].mean()
    means["loss above all parts"] = means["val_loss"] - means["val_loss"]["all parts"]
    means["seeds"] = last.groupby("part", sort=False).size()
    return means.rename(columns={"val_loss": "loss", "val_accuracy": "accuracy"}).sort_values("loss").round(4)


if __name__ == "__main__":
    main()
