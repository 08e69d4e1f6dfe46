"""What a stranger on the same network can do: each call is tried, what comes of it is looked at, and the same call with
the token has to work.
"""

from tools.cluster_network.canary import look_for_secrets, submitted
from tools.cluster_network.cluster import Cluster
from tools.cluster_network.commands import end_nodes, try_commands, try_job_server
from tools.cluster_network.listeners import listeners
from tools.cluster_network.requests import try_requests
from tools.cluster_network.site import WRONG, Site
from tools.cluster_network.training import try_a_training
from tools.cluster_network.verdicts import Verdicts

# Why a port is open to other machines. 22 is the way in; who listens there asks for a key.
NEEDED = {
    6379: "the cluster's state (GCS): all nodes, drivers",
    6380: "raylet: the head and other raylets lease workers",
    6381: "objects between nodes",
    6382: "runtime environments: its raylet only, but Ray binds it to the node's address and has no option",
    6383: "dashboard agent, gRPC: the head's dashboard; no option",
    6384: "dashboard agent, HTTP: the head's job server; no option",
    10001: "Ray Client's server, head only: `ray start --head` has no way to leave it out; nobody here uses it",
}
GRPC = (6379, 6380, 6381, 6383, 10001)


def print_security(made: Cluster) -> int:
    """0 if all is well but for what is known to be open."""
    verdicts = Verdicts()
    site = Site(made)
    look_at_listeners(site, verdicts)
    try_every_call(site, verdicts)
    try_requests(site, verdicts)
    try_commands(site, verdicts)
    try_job_server(site, verdicts)
    with submitted(made) as job:
        try_a_training(job, site.workers, site.strangers, verdicts)
    look_for_secrets(made, [site.head, *site.workers], verdicts)
    end_nodes(site, verdicts)
    return verdicts.summary()


# --- listeners ---------------------------------------------------------------------------------------------------


def look_at_listeners(site: Site, verdicts: Verdicts) -> None:
    for machine in (site.head, *site.workers):
        for each in listeners(machine):
            if not each.is_outside:
                verdicts.note(f"{machine.name} {each.port}: {each.who}, on loopback")
            elif each.port != 22:
                reason = NEEDED.get(each.port)
                verdicts.say(reason is not None, f"{machine.name} {each.port}", each.who, "listens", reason or "why?")


# --- calls -------------------------------------------------------------------------------------------------------


def try_every_call(site: Site, verdicts: Verdicts) -> None:
    """Empty: what is refused for the missing token is refused before it is read."""
    places = {
        f"{machine.address}:{each.port}": each.who
        for machine in (site.head, site.workers[0])
        for each in listeners(machine)
        if each.is_outside and each.port in GRPC
    }
    for shown, token in (("no token", ""), ("a wrong token", WRONG)):
        answers = site.strangers("every", *places, token=token)
        for place, who in places.items():
            let_in = {call: said for call, said in answers[place].items() if said != "UNAUTHENTICATED"}
            tried = f"each of {len(answers[place])} gRPC calls, {shown}"
            verdicts.say(
                bool(answers[place]) and not let_in, place, who, tried, str(let_in) if let_in else "UNAUTHENTICATED"
            )
    alive = site.alive()
    verdicts.say(len(alive) == 1 + len(site.workers), "", "", "all of that", f"all {len(alive)} nodes are alive")
