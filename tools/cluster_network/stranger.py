"""Attempts of a stranger on the same network, run on the client machine; the answers are a line of JSON on stdout.

    python -m tools.cluster_network.stranger every HOST:PORT...    each call of each Ray service, empty
    python -m tools.cluster_network.stranger some REQUESTS          a list of [HOST:PORT, SERVICE, METHOD, FIELDS] for
                                                                   gRPC and of [METHOD, URL, BODY] for HTTP
    python -m tools.cluster_network.stranger store HOST:PORT       as a client of torch's store
    python -m tools.cluster_network.stranger noise HOST:PORT       random bytes
    python -m tools.cluster_network.stranger crash HOST:PORT       the call for which Ray 2.60 needs no token

STRANGER_TOKEN is the token that is sent, if any.
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
SOME_NODE = ("node_id", "ab" * 28)  # without it a call may end the server: `crash`


def every(*addresses: str) -> dict[str, dict[str, str]]:
    """Return the answers by address and call, without the calls that are not served there."""
    calls = [(service.full_name, method.name) for service in services() for method in service.methods]
    answers = {}
    for address in addresses:
        by_call = {
            f"{service}/{method}": grpc_answer(address, service, method) for service, method in [*calls, *WITHOUT_STUBS]
        }
        answers[address] = {call: answer for call, answer in by_call.items() if answer != "UNIMPLEMENTED"}
    return answers


def some(requests: str) -> list[str]:
    """Return the answers to a list of requests."""
    return [http_answer(*each) if len(each) == 3 else call_answer(*each) for each in json.loads(requests)]


def services() -> Iterator[Any]:
    """Yield the descriptions of all gRPC services of Ray."""
    for module in MODULES:
        generated = importlib.import_module(f"ray.core.generated.{module}_pb2")
        yield from generated.DESCRIPTOR.services_by_name.values()


def call_answer(address: str, service: str, method: str, fields: dict[str, object]) -> str:
    """Make a gRPC call with the fields of its message; return the answer in a line."""
    from google.protobuf import json_format, message_factory  # type: ignore[import-untyped]

    (description,) = [each for each in services() if each.full_name == service]
    request = message_factory.GetMessageClass(description.methods_by_name[method].input_type)()
    json_format.ParseDict(fields, request)
    return grpc_answer(address, service, method, request.SerializeToString())


def grpc_answer(
    address: str, service: str, method: str, request: bytes = b"", sender: tuple[str, str] | None = SOME_NODE
) -> str:
    """Make a gRPC call; return the answer in a line."""
    import grpc

    metadata = [sender] if sender else []
    if token := os.environ.get("STRANGER_TOKEN"):
        metadata.append(("authorization", f"Bearer {token}"))
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{service}/{method}")
        try:
            reply = call(request, timeout=CALL_S, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
    return f"OK {reply[:400]!r}"


def http_answer(method: str, url: str, body: str) -> str:
    """Make an HTTP request with a body in base64; return the answer in a line."""
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
    """Count, write and delete keys as a client of torch's store."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host, _, port = address.rpartition(":")
    try:
        client = TCPStore(host, int(port), None, False, timedelta(seconds=CALL_S))
        before = client.num_keys()
        client.set("stranger", "was here")
        written = client.get("stranger") == b"was here"
        return f"{before} keys; written: {written}; deleted: {client.delete_key('stranger')}"
    except RuntimeError as error:
        return str(error).splitlines()[0]


def noise(address: str) -> str:
    """Send 64 random bytes, which must not disturb the processes that are connected there."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=CALL_S) as peer:
            peer.sendall(os.urandom(64))
            peer.settimeout(2)
            try:
                return f"answers {peer.recv(16)!r}"
            except TimeoutError:
                return "no answer to the bytes"
    except OSError as error:
        return str(error)


def crash(address: str) -> str:
    """Make the call that ends a raylet or the head of Ray 2.60 without a token."""
    return grpc_answer(address, "ray.rpc.syncer.RaySyncer", "StartSync", sender=None)


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
