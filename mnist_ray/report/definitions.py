"""The words and facts that a verdict needs: selected configuration, recipe, baseline, the model to use, the cost."""

from mnist_ray.record.models import RetrainedModel, retrained_models
from mnist_ray.report.analysis.costs import tuning_cost
from mnist_ray.report.formatting import counted, duration, epochs, hyperparameters_in_words, listed, percent
from mnist_ray.report.review import Review


def definitions(review: Review) -> list[tuple[str, str]]:
    """Return each term with its explanation, in the order in which a reader meets them."""
    spec, state = review.spec, review.state
    terms = []
    if state.selected:
        terms.append(("Selected configuration", _selected(review)))
    published = hyperparameters_in_words(spec.baseline)
    terms.append(("Recipe", f"The training as published, which the search has to beat: {published}."))
    roles = {model.role for model in retrained_models(state)}
    if "selected = baseline" in roles:
        terms.append(("Baseline", "The recipe, trained for comparison. Here it is the selected configuration too."))
    if "baseline" in roles:
        terms.append(("Baseline", _baseline(review)))
    if review.model:
        terms.append(("Model to use", _shipped(review, review.model)))
    if cost := _cost(review):
        terms.append(("Cost of tuning", cost))
    return terms


def _selected(review: Review) -> str:
    selected = review.state.selected
    assert selected is not None
    values = hyperparameters_in_words(selected.hyperparameters)
    if selected.training is None:
        return f"What the spec says, since nothing was searched: {values}."
    if selected.hyperparameters == review.spec.baseline:
        return "The recipe: on the validation split nothing that the search found was better by enough."
    by = "Search and final round chose it" if selected.final else "The search chose it"
    return f"{values}. {by} on the validation split ({selected.training}), before the test was opened."


def _baseline(review: Review) -> str:
    trainings = [model.training for model in retrained_models(review.state) if model.role == "baseline"]
    seeds = [training.config.seed for training in trainings]
    sources = {each.ended.taken_from.split("/")[0] for each in trainings if each.ended and each.ended.taken_from}
    taken = f", taken over from the run {listed(sorted(sources))}" if sources else ""
    return (
        f"The recipe, trained for comparison just as the selected configuration: {epochs(review.spec.tested_epochs)}, "
        f"{'seeds' if len(seeds) > 1 else 'seed'} {listed(seeds)}{taken}."
    )


def _shipped(review: Review, model: RetrainedModel) -> str:
    score = model.scores["test"]
    others = [each for each in retrained_models(review.state) if each.role == model.role and each != model]
    choice = "the first of the spec's seeds. It was not picked by its score" if others else "its only seed"
    return (
        f"The folder model/ holds the selected configuration trained on seed {model.training.config.seed}, {choice}. "
        f"Test accuracy {percent(score.accuracy)}, test loss {score.loss:.4f}."
    )


def _cost(review: Review) -> str:
    """Say what search and final round took; empty without a search."""
    cost = tuning_cost(review.costs)
    if cost is None:
        return ""
    times = [f"{duration(cost.wall_s)} of wall time"] if cost.wall_s is not None else []
    times += [f"{duration(cost.cpu_s)} of CPU time"] if cost.cpu_s else []
    times += [f"{duration(cost.gpu_s)} of GPU time"] if cost.gpu_s else []
    one = review.spec.tested_epochs
    return (
        f"{counted(cost.num_trainings, 'training')} in search and final round: {counted(cost.num_epochs, 'epoch')} (as "
        f"many as {cost.num_epochs / one:.1f} trainings of {epochs(one)}), {', '.join(times)}."
    )
