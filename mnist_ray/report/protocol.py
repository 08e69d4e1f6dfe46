"""How a run was done, with what, and how to repeat it: lines of a report."""

from mnist_ray.report.review import Review
from mnist_ray.storage.files import seal


def protocol(review: Review) -> list[str]:
    run, spec = review.run, review.spec
    data = (run.stage("started") or {})["data"]
    lines = [
        f"Data: {spec.data.name}, {data['num_training']:,} training images, of which {spec.data.num_validation:,} "
        f"(stratified, seed {spec.seed}) are held out for validation."
    ]
    search = spec.search
    if run.trainings("search"):
        stopping = (
            f"ASHA stops the worst early (from epoch {search.early_stopping.grace_epochs}, one in "
            f"{search.early_stopping.reduction_factor:g} goes on)"
            if search.early_stopping
            else "no early stopping"
        )
        lines.append(
            f"Search: {search.num_trials} trials of up to {search.num_epochs} epochs, TPE, {stopping}; judged by "
            f"{search.objective} on the validation split."
        )
        lines.append(
            f"Confirmation: the best {spec.confirm.top_k} configurations again on {spec.confirm.seeds} fresh seeds "
            "each; the mean of these scores decides, without the search's own."
            if spec.confirm
            else "No confirmation: the search's own score decided, which is too good."
        )
    if chosen := run.stage("chosen"):
        lines.append(f"Choice: {chosen['training'] or 'the recipe of the spec'}, at {minute(chosen['at'])}.")
    seeds = ", ".join(map(str, spec.retrain.seeds))
    beside = "the choice and the recipe" if spec.retrain.baseline and run.trainings("search") else "the choice"
    lines.append(
        f"Retraining: {beside}, {spec.retrain.num_epochs} epochs on all training images, validation included, seeds "
        f"{seeds}."
    )
    if spec.precision != "float32":
        lines.append(f"All trainings: convolutions in {spec.precision}, everything else in float32.")
    unsealed = run.stage("unsealed")
    also = f", and {', '.join(spec.test.also)} with it" if spec.test.also else ""
    lines.append(
        f"Test: unsealed once{also}, at {unsealed['at']}, after the choice; later evaluations are not on this page."
        if unsealed
        else "Test: still sealed."
    )
    return lines


def provenance(review: Review) -> list[tuple[str, str]]:
    run = review.run
    sessions = [entry for entry in run.all_stages() if entry["stage"] == "started"]
    started = sessions[-1]
    made = started.get("provenance", {})
    cluster = started["cluster"]
    commit = made.get("git_commit")
    dirty = " with uncommitted changes" if made.get("git_is_dirty") else ""
    devices = sorted({str(device) for device in review.table["device"].dropna()})
    facts = [
        ("spec, SHA-256", seal(review.spec.model_dump(mode="json"))),
        ("git commit", f"{commit}{dirty}" if commit else "not in a repository"),
        ("source, SHA-256", made.get("source_sha256", "not recorded")),
        ("versions", ", ".join(f"{name} {number}" for name, number in started["versions"].items())),
        ("training data, SHA-256", started["data"]["training_sha256"]),
        ("split, SHA-256", started["data"]["split_sha256"]),
        ("processors", "; ".join(cluster.get("processors", [])) or "not recorded"),
        ("GPUs", ", ".join(made.get("hardware", {}).get("gpus", [])) or "none at the driver"),
        ("cluster", f"{cluster['cpus']} CPUs, {cluster['gpus']} GPUs"),
        ("trained on", ", ".join(devices) or "nothing yet"),
        ("threads, workers", _threads(review)),
        ("seed of split and search", str(review.spec.seed)),
        ("seeds of the retraining", ", ".join(map(str, review.spec.retrain.seeds))),
        ("sessions", "; ".join(entry["at"] for entry in sessions)),
    ]
    return facts


def _threads(review: Review) -> str:
    spec = review.spec
    return (
        f"{spec.search.cpus_per_trial} thread a trial, {spec.retrain.workers_in_words} workers with "
        f"{spec.retrain.cpus_per_worker} threads each in the retraining"
    )


def commands(review: Review) -> str:
    lines = [f"mnist-ray run spec.yaml --name {review.spec.name}-again"]
    if review.run.trainings("search"):
        lines.append(f"mnist-ray replay {review.spec.name} --trial 0    # one trial again, compared number by number")
    return "\n".join([*lines, f"mnist-ray compare {review.spec.name} {review.spec.name}-again"])


def minute(at: str) -> str:
    """A recorded time for people."""
    return f"{at[:10]} {at[11:16]} UTC"
