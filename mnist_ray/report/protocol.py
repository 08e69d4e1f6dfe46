"""The protocol of a run, the identity of its inputs, and the commands that repeat it: lines of a report."""

from mnist_ray.report.analysis.scores import rung_epoch
from mnist_ray.report.formatting import counted, minute
from mnist_ray.report.review import Review
from mnist_ray.storage.files import seal


def protocol(review: Review) -> list[str]:
    """Return what was done, a line a step."""
    spec, selected, opened = review.spec, review.state.selected, review.state.test_opened
    data = (
        f"Data: {spec.data.name}, {review.started.data.num_training:,} training images, of which "
        f"{review.started.num_validation:,} (stratified, seed {spec.seed}) are held out for validation."
    )
    lines = [data, *_search_lines(review)]
    if selected:
        lines.append(f"Selected configuration: {selected.training or 'the baseline'}, at {minute(selected.at)}.")
    lines.append(_retraining_line(review))
    if spec.precision != "float32":
        lines.append(f"All trainings: convolutions in {spec.precision}, everything else in float32.")
    if opened is None:
        return [*lines, "Test: not opened yet."]
    also = f", and {', '.join(spec.test.also)} with it" if spec.test.also else ""
    test = (
        f"Test: opened once{also}, at {minute(opened.at)}, after the selection. Later evaluations are not on this page."
    )
    return [*lines, test]


def _retraining_line(review: Review) -> str:
    retrain = review.spec.retrain
    if retrain is None:
        return "No retraining: the models of the final round are tested, which have not seen the validation images."
    sides = "the selected configuration and the baseline" if retrain.baseline and review.search else None
    return (
        f"Retraining: {sides or 'the selected configuration'}, {retrain.num_epochs} epochs on all training images, "
        f"validation included, seeds {', '.join(map(str, retrain.seeds))}."
    )


def _search_lines(review: Review) -> list[str]:
    search, final = review.spec.search, review.spec.final
    if review.search is None:
        return []
    stopping = "no early stopping"
    if search.early_stopping:
        stopping = (
            f"the worst are stopped early (from epoch {rung_epoch(review.state)}; one in "
            f"{search.early_stopping.reduction_factor:g} goes on, and at least {final.top_k if final else 1})"
        )
    final_round = "No final round: the search's own score decided, which is too good."
    if final:
        final_round = (
            f"Final round: the best {final.top_k} configurations and the recipe as published, "
            f"{review.spec.final_epochs} epochs on {final.seeds} fresh seeds each. The best mean replaces the recipe "
            f"if it is better by more than {final.keep_recipe_within_se:g} standard error"
            f"{'' if final.keep_recipe_within_se == 1 else 's'}."
        )
    return [
        f"Search: {search.num_trials} trials of up to {search.num_epochs} epochs, TPE, {stopping}; judged by "
        f"{search.objective} on the validation split.",
        final_round,
    ]


def provenance(review: Review) -> list[tuple[str, str]]:
    """Return the facts that identify a run's inputs: names for people with their values."""
    spec, started = review.spec, review.started
    code, cluster = started.provenance, started.cluster
    changes = " with uncommitted changes" if code.git_is_dirty else ""
    devices = sorted({str(device) for device in review.table["device"].dropna()})
    threads, seeds = f"{spec.search.cpus_per_trial} thread a trial", "those of the final round"
    if retrain := spec.retrain:
        threads += (
            f", {retrain.workers_in_words} workers of {counted(retrain.cpus_per_worker, 'thread')} in the retraining"
        )
        seeds = ", ".join(map(str, retrain.seeds))
    return [
        ("spec, SHA-256", seal(spec.model_dump(mode="json"))),
        ("git commit", f"{code.git_commit}{changes}" if code.git_commit else "not in a repository"),
        ("source, SHA-256", code.source_sha256),
        ("versions", ", ".join(f"{name} {number}" for name, number in started.versions.items())),
        ("training data, SHA-256", started.data.training_sha256),
        ("split, SHA-256", started.data.split_sha256),
        ("processors", "; ".join(cluster.processors) or "not recorded"),
        ("GPUs", ", ".join(code.gpus) or "none at the driver"),
        ("backend", cluster.backend),
        ("cluster", f"{cluster.cpus} CPUs, {cluster.gpus} GPUs"),
        ("trained on", ", ".join(devices) or "nothing yet"),
        ("threads, workers", threads),
        ("seed of split and search", str(spec.seed)),
        ("seeds of the tested models", seeds),
        ("sessions", "; ".join(minute(start.at) for start in review.state.starts)),
    ]


def commands(review: Review) -> str:
    """Return the commands that repeat a run, one a line."""
    name = review.spec.name
    lines = [f"mnist-ray run spec.yaml --name {name}-again"]
    if review.search:
        lines.append(f"mnist-ray replay {name} --trial 0    # one trial again, compared number by number")
    return "\n".join([*lines, f"mnist-ray compare {name} {name}-again"])
