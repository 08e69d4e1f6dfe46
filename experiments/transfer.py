"""Does a short training rank configurations like a long one? python -m experiments.transfer

Nine configurations (learning rate and batch size) are trained on 6,000 images of MNIST for 45 epochs, and judged by
20,000 images held back (with --digits: 700 of scikit-learn's digits, and 737 held back): at a constant learning rate,
and with a cosine over 45 and over 10 epochs. Each training also averages its weights, so that both, the raw and the
averaged ones, are scored, after the epochs of the tables. The tables give Kendall's tau between the loss after a few
epochs and the loss at the end of 45. Writes docs/results/transfer.csv (transfer-digits.csv), and goes on where that
file ends.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from scipy import stats

from experiments.trainings import Images, Planned, run_all
from mnist_ray import data
from mnist_ray.config import Schedule, TrainingConfig

LEARNING_RATES = (0.001, 0.003, 0.008)
BATCH_SIZES = (64, 128, 256)
SEEDS = (0, 1)
LONG, SHORT = 45, 10
RUNGS = (1, 3, 5, 7, 9)
EMA = 0.1
FOLDER = Path("docs/results")

CONFIGURATION = ["learning_rate", "batch_size"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=data.default_data_dir(), help="where MNIST lies or goes")
    parser.add_argument("--digits", action="store_true", help="scikit-learn's digits instead of MNIST")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the CSV file")
    parser.add_argument("--processes", type=int, default=2, help="each computes on one thread")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.digits:
        images, name = Images(arguments.data_dir, 700, 737, "digits"), "transfer-digits.csv"
    else:
        images, name = Images(arguments.data_dir, 6_000, 20_000), "transfer.csv"
    rows = run_all(list(plans()), images, arguments.folder / name, arguments.processes, arguments.device)
    print(tables(rows))


def plans() -> Iterator[Planned]:
    """Yield the trainings, seed by seed, so that an unfinished study has whole seeds."""
    early = (*RUNGS, SHORT)
    budgets: tuple[tuple[Schedule, int, tuple[int, ...]], ...] = (
        ("constant", LONG, early),
        ("cosine", SHORT, early),
        ("cosine", LONG, ()),  # its end alone is compared
    )
    for seed in SEEDS:
        for schedule, num_epochs, scored_after in budgets:
            for learning_rate in LEARNING_RATES:
                for batch_size in BATCH_SIZES:
                    config = TrainingConfig(
                        learning_rate=learning_rate,
                        batch_size=batch_size,
                        schedule=schedule,
                        ema=EMA,
                        num_epochs=num_epochs,
                        seed=seed,
                    )
                    yield Planned(f"{schedule} over {num_epochs}", config, scored_after)


def is_finished(rows: pd.DataFrame) -> bool:
    """Report whether the rows are those of all trainings."""
    return int((rows["epoch"] == rows["num_epochs"]).sum()) == len(list(plans()))


def tables(rows: pd.DataFrame) -> str:
    """Return both tables as Markdown: from a low budget to the full one, and from a rung to its training's end."""
    return "\n\n".join([transfer_table(rows).to_markdown(), rung_table(rows).to_markdown()])


def transfer_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return Kendall's tau between the losses after a low budget and after 45 epochs, means over seeds.

    The choice's cost: the loss after 45 epochs of the configuration that is best at the low budget, less that of the
    best of all.
    """
    ways = {
        "constant rate, raw weights": ("constant over 45", "val_raw_loss", "constant over 45"),
        "constant rate, averaged weights": ("constant over 45", "val_loss", "constant over 45"),
        "cosine, raw weights": ("cosine over 10", "val_raw_loss", "cosine over 45"),
        "cosine, averaged weights": ("cosine over 10", "val_loss", "cosine over 45"),
    }
    found = []
    for name, (short_part, column, long_part) in ways.items():
        long = _losses(rows, long_part, LONG, column)
        for epoch in (1, 3, SHORT):
            if epoch != SHORT and short_part.startswith("cosine"):
                continue  # a rung of a training whose schedule goes on: the other table
            short = _losses(rows, short_part, epoch, column)
            found.append(_compared(name, epoch, short, long))
    return pd.DataFrame(found).set_index("training")


def rung_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return Kendall's tau between the losses at an epoch and at the end of the same training of 10 epochs."""
    found = []
    for name, part, column in (
        ("constant rate, raw weights", "constant over 45", "val_raw_loss"),
        ("cosine, raw weights", "cosine over 10", "val_raw_loss"),
        ("cosine, averaged weights", "cosine over 10", "val_loss"),
    ):
        end = _losses(rows, part, SHORT, column)
        found += [_compared(name, epoch, _losses(rows, part, epoch, column), end) for epoch in RUNGS]
    return pd.DataFrame(found).set_index("training")


def _losses(rows: pd.DataFrame, part: str, epoch: int, column: str) -> pd.Series:
    """Return the mean loss over seeds of each configuration after an epoch."""
    at = rows[(rows["part"] == part) & (rows["epoch"] == epoch)]
    return at.groupby(CONFIGURATION)[column].mean()


def _compared(name: str, epoch: int, early: pd.Series, late: pd.Series) -> dict[str, object]:
    late = late[early.index]
    chosen = int(early.argmin())
    learning_rate, batch_size = early.index[chosen]
    return {
        "training": name,
        "after epoch": epoch,
        "Kendall's tau": round(float(stats.kendalltau(early, late).statistic), 2),
        "its choice": f"rate {learning_rate:g}, batch {batch_size}",
        "the choice's cost in loss": round(float(late.iloc[chosen] - late.min()), 4),
    }


if __name__ == "__main__":
    main()
