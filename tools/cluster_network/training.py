"""What a stranger can do to workers that train together: at their ports of Ray's, and at torch's."""

from collections.abc import Callable, Sequence
from typing import Any

from tools.cluster_network.canary import CanaryJob
from tools.cluster_network.listeners import Listener, listeners
from tools.cluster_network.machines import Machine, waited_for
from tools.cluster_network.verdicts import Verdicts

WORKER_PORTS = range(10002, 10202)  # of cluster/machines/settings.sh
FIRST_EPOCH = " epoch 1 of "
NOBODY_ASKS = "torch asks nobody who he is, and chooses a free port of the system (not one of WORKER_PORTS)"


def try_a_training(
    job: CanaryJob, workers: Sequence[Machine], strangers: Callable[..., Any], verdicts: Verdicts
) -> None:
    """While the job retrains on two workers; it has to end well."""
    waited_for("the retraining", lambda: FIRST_EPOCH in job.output.read_text(), 300)
    places = {f"{machine.address}:{each.port}": each for machine in workers for each in opened(machine)}
    of_ray = [place for place, each in places.items() if each.port in WORKER_PORTS]
    of_torch = [place for place in places if place not in of_ray]
    verdicts.say(len(of_torch) >= 3, "", "", "a store and two ends of gloo", f"listen at {', '.join(of_torch)}")
    for place in of_torch:
        try_torch(place, places[place], strangers, verdicts)
    for shown, token in (("no token", ""), ("a wrong token", "0" * 64)):
        for place, answers in strangers("every", *of_ray, token=token).items():
            let_in = {call: said for call, said in answers.items() if said != "UNAUTHENTICATED"}
            tried = f"each of {len(answers)} gRPC calls, {shown}"
            verdicts.say(
                bool(answers) and not let_in, place, places[place].who, tried, str(let_in or "UNAUTHENTICATED")
            )
    verdicts.say(job.process.poll() is None, "", "", "all of that while the job trains", "it goes on")
    code = job.process.wait(timeout=600)
    verdicts.say(code == 0, "", "", "the job that strangers were at", f"ends with {code}")


def opened(machine: Machine) -> list[Listener]:
    return [each for each in listeners(machine) if each.is_outside and "RayTrainWo" in each.who]


def try_torch(place: str, listener: Listener, strangers: Callable[..., Any], verdicts: Verdicts) -> None:
    """The store listens at every address of its machine, gloo at one."""
    if listener.address == "*":
        answer = strangers("store", place)
        is_open = "written: True" in answer
        verdicts.say_open(is_open, place, listener.who, "torch's store: sets and deletes a key", answer, NOBODY_ASKS)
    else:
        answer = strangers("noise", place)
        is_open = "says nothing" in answer or "answers" in answer
        verdicts.say_open(is_open, place, listener.who, "gloo: 64 bytes of noise", answer, NOBODY_ASKS)
