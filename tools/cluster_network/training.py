"""Attempts of a stranger against workers that train together: at Ray's ports and at torch's."""

from tools.cluster_network.canary import CanaryJob
from tools.cluster_network.machines import wait_for
from tools.cluster_network.ports import OpenPort, open_ports
from tools.cluster_network.requests import try_every_call
from tools.cluster_network.under_test import ClusterUnderTest
from tools.cluster_network.verdicts import Verdicts

WORKER_PORTS = range(10002, 10202)  # of cluster/machines/settings.sh
FIRST_EPOCH = " epoch 1 of "
NO_AUTHENTICATION = "torch authenticates no peer, and listens at free ports of the system (none of WORKER_PORTS)"


def try_a_training(target: ClusterUnderTest, job: CanaryJob, verdicts: Verdicts) -> None:
    """Disturb the job while it retrains on two workers; the job has to succeed."""
    wait_for("the retraining", lambda: FIRST_EPOCH in job.output.read_text(), 300)
    ports = {
        f"{machine.address}:{each.port}": each
        for machine in target.workers
        for each in open_ports(machine)
        if each.is_reachable and "RayTrainWo" in each.process
    }
    of_torch = {address: each for address, each in ports.items() if each.port not in WORKER_PORTS}
    verdicts.record(len(of_torch) >= 3, "", "", "a store and two ends of gloo", f"listen at {', '.join(of_torch)}")
    for address, port in of_torch.items():
        _try_torch(target, address, port, verdicts)
    try_every_call(target, {a: each.process for a, each in ports.items() if a not in of_torch}, verdicts)
    verdicts.record(job.process.poll() is None, "", "", "all of that while the job trains", "the job goes on")
    code = job.process.wait(timeout=600)
    verdicts.record(code == 0, "", "", "the job that was disturbed", f"exits with {code}")


def _try_torch(target: ClusterUnderTest, address: str, port: OpenPort, verdicts: Verdicts) -> None:
    """Try torch's store, which listens at every address of its machine, or gloo, which listens at one."""
    if port.address == "*":
        attempt, answer = "torch's store: sets and deletes a key", target.as_stranger("store", address)
        is_open = "written: True" in answer
    else:
        attempt, answer = "gloo: 64 bytes of noise", target.as_stranger("noise", address)
        is_open = "no answer to the bytes" in answer or "answers" in answer
    verdicts.record_open(is_open, address, port.process, attempt, answer, NO_AUTHENTICATION)
