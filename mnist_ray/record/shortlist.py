"""What TPE is shown of a long search, so that a suggestion costs the same however many trials came before it."""

import bisect
import copy
import math
from collections.abc import Container, Sequence

from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

NUM_BEST = 25  # as many as TPE ever takes for good ones (optuna.samplers._tpe.sampler.default_gamma)
NUM_LATEST = 1000

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)  # the others that ended mean nothing to TPE


class ShortlistStorage(InMemoryStorage):
    """A study in memory that lists everything until NUM_LATEST trials have ended with a score.

    From then on it lists those that run, the latest NUM_LATEST that ended, and the best NUM_BEST of all. So the good
    ones are those that TPE would take anyway; of the others the oldest are left out, which count least: their weights
    fall to 1/n. Trials that ended without parameters are never listed: TPE would count such a trial among the good ones
    and learn from one less. What is listed follows from what is in the study, not from the order in which it came in.
    """

    def __init__(self, is_maximized: bool) -> None:
        super().__init__()
        self._sign = -1.0 if is_maximized else 1.0
        self._running: set[int] = set()
        self._latest: list[int] = []  # by number
        self._best: list[tuple[float, ...]] = []  # ranks, which end with the trial's id

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self._note(self.get_trial(trial_id))
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        is_changed = super().set_trial_state_values(trial_id, state, values)
        self._note(self.get_trial(trial_id))
        return is_changed

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if len(self._latest) < NUM_LATEST:
            everything = super().get_all_trials(study_id, deepcopy, states)
            return [trial for trial in everything if trial.params or not trial.state.is_finished()]
        listed = self._running.union(self._latest, (int(rank[-1]) for rank in self._best))
        trials = [self.get_trial(trial_id) for trial_id in sorted(listed)]
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _note(self, trial: FrozenTrial) -> None:
        if not trial.state.is_finished():
            self._running.add(trial._trial_id)
            return
        self._running.discard(trial._trial_id)
        if trial.state in ENDED and trial.params:
            bisect.insort(self._latest, trial._trial_id)
            bisect.insort(self._best, self._rank(trial))
            del self._latest[:-NUM_LATEST], self._best[NUM_BEST:]

    def _rank(self, trial: FrozenTrial) -> tuple[float, ...]:
        """The better, the smaller, as TPE has it: complete ones by value, then pruned ones by how far they got."""
        if trial.state == TrialState.COMPLETE:
            assert trial.value is not None
            return (0, 0, self._sign * trial.value, trial._trial_id)
        if not trial.intermediate_values:
            return (1, 1, 0, trial._trial_id)
        step, value = max(trial.intermediate_values.items())
        return (1, -step, math.inf if math.isnan(value) else self._sign * value, trial._trial_id)
