"""What somebody on the same network tries, run on the client machine; each answer is one line of JSON on stdout.

    python -m tools.cluster_network.stranger every HOST:PORT...    each call of each service of Ray's, empty
    python -m tools.cluster_network.stranger some TRIES            a list of [HOST:PORT, SERVICE, METHOD, FIELDS] for
                                                                   gRPC and of [METHOD, URL, BODY] for HTTP
    python -m tools.cluster_network.stranger store HOST:PORT       as a client of torch's store
    python -m tools.cluster_network.stranger noise HOST:PORT       as one who talks nonsense
    python -m tools.cluster_network.stranger crash HOST:PORT       the call for which Ray 2.60 needs no token

STRANGER_TOKEN is the token that is shown, if any.
"""

import base64
import importlib
import json
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

CALL_S = 10.0
MODULES = (
    "autoscaler", "core_worker", "events_event_aggregator_service", "gcs_service", "instance_manager", "node_manager",
    "pubsub", "ray_client", "reporter",
)  # fmt: skip
WITHOUT_STUBS = (
    ("ray.rpc.ObjectManagerService", "Push"),
    ("ray.rpc.ObjectManagerService", "Pull"),
    ("ray.rpc.ObjectManagerService", "FreeObjects"),
    ("opentelemetry.proto.collector.metrics.v1.MetricsService", "Export"),
    ("ray.rpc.syncer.RaySyncer", "StartSync"),
)
SOME_NODE = ("node_id", "ab" * 28)  # `crash` says what happens without it


def every(*addresses: str) -> dict[str, dict[str, str]]:
    """The answers by address and call; what is not served there is left out."""
    calls = [(service.full_name, method.name) for service in services() for method in service.methods]
    answers = {}
    for address in addresses:
        said = {f"{service}/{method}": called(address, service, method) for service, method in [*calls, *WITHOUT_STUBS]}
        answers[address] = {call: answer for call, answer in said.items() if answer != "UNIMPLEMENTED"}
    return answers


def some(tries: str) -> list[str]:
    return [asked(*each) if len(each) == 3 else one_call(*each) for each in json.loads(tries)]


def services() -> Iterator[Any]:
    for module in MODULES:
        generated = importlib.import_module(f"ray.core.generated.{module}_pb2")
        yield from generated.DESCRIPTOR.services_by_name.values()


def one_call(address: str, service: str, method: str, fields: dict[str, Any]) -> str:
    from google.protobuf import json_format, message_factory  # type: ignore[import-untyped]

    (found,) = [each for each in services() if each.full_name == service]
    request = message_factory.GetMessageClass(found.methods_by_name[method].input_type)()
    json_format.ParseDict(fields, request)
    return called(address, service, method, request.SerializeToString())


def called(address: str, service: str, method: str, request: bytes = b"", sender: Any = SOME_NODE) -> str:
    import grpc  # type: ignore[import-untyped]

    shown = [sender] if sender else []
    if token := os.environ.get("STRANGER_TOKEN"):
        shown.append(("authorization", f"Bearer {token}"))
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{service}/{method}")
        try:
            reply = call(request, timeout=CALL_S, metadata=shown)
        except grpc.RpcError as error:
            return str(error.code().name)
    return f"OK {reply[:400]!r}"


def asked(method: str, url: str, body: str) -> str:
    """body: base64."""
    token = os.environ.get("STRANGER_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, base64.b64decode(body) or None, headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=CALL_S) as answer:
            return f"{answer.status} {answer.read(400)!r}"
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read(60)!r}"
    except OSError as error:
        return f"{getattr(error, 'reason', error)}"


def store(address: str) -> str:
    """What can be done as a client of torch's store."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host, _, port = address.rpartition(":")
    try:
        found = TCPStore(host, int(port), None, False, timedelta(seconds=CALL_S))
        before = found.num_keys()
        found.set("stranger", "was here")
        written = found.get("stranger") == b"was here"
        return f"{before} keys; written: {written}; deleted: {found.delete_key('stranger')}"
    except RuntimeError as error:
        return str(error).splitlines()[0]


def noise(address: str) -> str:
    """Something that nobody awaits; it may not disturb those who talk there."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=CALL_S) as peer:
            peer.sendall(os.urandom(64))
            peer.settimeout(2)
            try:
                return f"answers {peer.recv(16)!r}"
            except TimeoutError:
                return "takes it and says nothing"
    except OSError as error:
        return str(error)


def crash(address: str) -> str:
    return called(address, "ray.rpc.syncer.RaySyncer", "StartSync", sender=None)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    answers: dict[str, Callable[..., Any]] = {
        "every": every,
        "some": some,
        "store": store,
        "noise": noise,
        "crash": crash,
    }
    print(json.dumps(answers[what](*arguments)))
