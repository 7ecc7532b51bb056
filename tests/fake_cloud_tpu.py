"""Cloud TPU on this machine: a gRPC server that speaks google.cloud.tpu.v2alpha1, and of Cloud
Quotas what is asked, with the client libraries' own messages, and hosts that are processes here and
run the very startup script.

Time passes by questions: at each GetQueuedResource a request comes to its next state, and one that
is to go is gone after it was listed, so that tests do not depend on clocks. What goes wrong is said
beforehand (`fail`, `lose`, `hold`, `ignore`, `hide`, `plans`, `quotas`) or done (`preempt`).
"""

import collections
import contextlib
import dataclasses
import http.server
import os
import re
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.cloud import cloudquotas_v1 as cloudquotas
from google.cloud import tpu_v2alpha1 as tpu
from google.cloud.location import locations_pb2
from google.longrunning import operations_pb2
from google.rpc import status_pb2

from launch import machines
from tests.runs import PATIENCE, free_port

SERVICE = "google.cloud.tpu.v2alpha1.Tpu"
COMING = ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
ZONES = ("us-central1-a", "us-east5-a", "us-west4-a", "us-west4-b")
TYPES = ("v4-8", "v4-16", "v5litepod-1", "v5litepod-4", "v5litepod-16", "v5litepod-256", "v5p-8")
RUNTIMES = ("tpu-ubuntu2204-base", "v2-alpha-tpuv5-lite", "v2-alpha-tpuv5", "v2-alpha-tpuv6e")
State = tpu.QueuedResourceState.State


class Host:
    """A machine of a slice: a metadata server of its own, and the startup script as a process."""

    def __init__(self, folder: Path, script: str, attributes: dict[str, str], extra: dict):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "startup-script").write_text(script)
        handler = type("Handler", (_Metadata,), {"attributes": attributes})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=[0.05])
        self.thread.start()
        self.process = subprocess.Popen(
            ["bash", str(folder / "startup-script")],
            cwd=folder,
            env={
                **os.environ,
                "BIOMEDLM_HOME": str(folder / "home"),
                "GCE_METADATA_IP": f"127.0.0.1:{self.server.server_port}",
                **extra,
            },
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def terminate(self) -> None:
        """As a machine that is told to shut down, and is given the time to."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)

    def kill(self) -> None:
        """As a machine that is no more: whatever it runs ends at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class _Metadata(http.server.BaseHTTPRequestHandler):
    attributes: dict[str, str]

    def do_GET(self) -> None:
        name = self.path.removeprefix("/computeMetadata/v1/instance/")
        found = self.attributes.get(name.removeprefix("attributes/"))
        if name == "service-accounts/default/token":
            found = '{"access_token":"fake","expires_in":3599,"token_type":"Bearer"}'
        if found is None or self.headers["Metadata-Flavor"] != "Google":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found.encode())

    def log_message(self, *_: Any) -> None:
        pass


@dataclasses.dataclass
class Queued:
    """A request, the states that it still has to come to, its nodes and their hosts."""

    resource: tpu.QueuedResource
    coming: collections.deque[str]
    nodes: list[tpu.Node] = dataclasses.field(default_factory=list)
    hosts: list[Host] = dataclasses.field(default_factory=list)
    hidden: int = 0  # questions after which it is to be seen

    def become(self, state: str) -> None:
        """state: a name, with ": CODE MESSAGE" after FAILED."""
        name, _, error = state.partition(": ")
        found = tpu.QueuedResourceState(state=State[name])
        if error:
            code, _, message = error.partition(" ")
            found.failed_data.error = status_pb2.Status(code=int(code), message=message)
        self.resource.state = found


class FakeCloudTpu:
    """with FakeCloudTpu(folder) as cloud: cloud.endpoint is where it listens.

    plans: for each request to come, its states; where there is none, `COMING`. hosts: whether
    slices have any. calls: (method, request) of all that was asked. quotas: {name: limit}, None
    where nobody may see it. hide: questions for which the next requests are not to be seen.
    late_operations: they are done when they are looked at.
    """

    def __init__(self, folder: Path, hosts: bool = False, environment: dict | None = None):
        self.folder, self.with_hosts = folder, hosts
        self.environment = environment or {}
        self.plans: collections.deque[list[str]] = collections.deque()
        self.faults: dict[str, collections.deque] = collections.defaultdict(collections.deque)
        self.failed_operations: dict[str, collections.deque] = collections.defaultdict(
            collections.deque
        )
        self.lost: collections.Counter[str] = collections.Counter()
        self.ignored: collections.Counter[str] = collections.Counter()
        self.held: dict[str, threading.Event] = {}
        self.quotas: dict[str, int | None] = {}
        self.hide = 0
        self.late_operations = False
        self.operations: dict[str, Any] = {}
        self.calls: list[tuple[str, Any]] = []
        self.queued: dict[str, Queued] = {}
        self.lock = threading.RLock()
        self.asked: set[str] = set()  # request ids

    def __enter__(self) -> "FakeCloudTpu":
        self.server = grpc.server(ThreadPoolExecutor(8))
        self.server.add_generic_rpc_handlers([_handlers(self)])
        self.endpoint = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for event in self.held.values():
            event.set()
        self.server.stop(None).wait()
        for name in list(self.queued):
            self._end(name)

    def fail(self, method: str, code: grpc.StatusCode, message: str, times: int = 1) -> None:
        """The next calls of `method` are answered so."""
        self.faults[method].extend([(code, message)] * times)

    def fail_operation(self, method: str, code: int, message: str) -> None:
        """The next call of `method` begins an operation that ends so, and does nothing."""
        self.failed_operations[method].append((code, message))

    def lose(self, method: str, times: int = 1) -> None:
        """The next calls of `method` are done, and their answers do not come."""
        self.lost[method] += times

    def ignore(self, method: str, times: int = 1) -> None:
        """The next calls of `method` are answered as if they were done."""
        self.ignored[method] += times

    def hold(self, method: str) -> threading.Event:
        """Calls of `method` are done when the event is set, whoever still waits for them."""
        self.held[method] = threading.Event()
        return self.held[method]

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)

    def names(self) -> list[str]:
        """Of the requests that are there."""
        return [name.rpartition("/")[2] for name in self.queued]

    def only(self) -> Queued:
        [found] = self.queued.values()
        return found

    def preempt(self, how: str = "all") -> None:
        """Takes the slices of the only request away. how: "all" hosts at once, the "last" one
        alone, before the others, or "gently", by SIGTERM and with time to save."""
        one = self.only()
        hosts = {"all": one.hosts, "last": one.hosts[-1:], "gently": []}[how]
        if how == "gently":
            told = [threading.Thread(target=host.terminate) for host in one.hosts]
            for thread in told:
                thread.start()
            for thread in told:
                thread.join()
        for host in hosts:
            host.kill()
        if how == "last":
            for host in one.hosts[:-1]:
                host.process.wait(PATIENCE)
        with self.lock:
            for node in one.nodes:
                node.state = tpu.Node.State.PREEMPTED
            one.become("SUSPENDING")
            one.coming.append("SUSPENDED")

    # --- The service ---------------------------------------------------------------------------

    def CreateQueuedResource(self, request: Any) -> Any:  # noqa: N802
        name = f"{request.parent}/queuedResources/{request.queued_resource_id}"
        with self.lock:
            if request.request_id not in self.asked:
                if name in self.queued:
                    raise Refusal(grpc.StatusCode.ALREADY_EXISTS, f"{name} exists")
                self.asked.add(request.request_id)
                plan = self.plans.popleft() if self.plans else COMING
                resource = tpu.QueuedResource(request.queued_resource)
                resource.name = name
                coming = collections.deque(plan[1:])
                self.queued[name] = Queued(resource, coming, hidden=self.hide)
                self.queued[name].become(plan[0])
            done = _done(self.queued[name].resource)
            if self.late_operations:
                self.operations[done.name] = done
                return operations_pb2.Operation(name=done.name)
            return done

    def GetQueuedResource(self, request: Any) -> Any:  # noqa: N802
        with self.lock:
            one = self.queued.get(request.name)
            if one is None or self._hidden(one):
                raise Refusal(grpc.StatusCode.NOT_FOUND, f"{request.name} is not found")
            found = tpu.QueuedResource(one.resource)
            self._advance(request.name, one)
            return found

    def ListQueuedResources(self, request: Any) -> Any:  # noqa: N802
        with self.lock:
            seen = {name: one for name, one in self.queued.items() if not self._hidden(one)}
            found = [tpu.QueuedResource(one.resource) for one in seen.values()]
            for name, one in seen.items():
                if one.resource.state.state == State.DELETING:
                    self._advance(name, one)
            return tpu.ListQueuedResourcesResponse(queued_resources=found)

    def DeleteQueuedResource(self, request: Any) -> Any:  # noqa: N802
        with self.lock:
            one = self.queued.get(request.name)
            if one is None:
                raise Refusal(grpc.StatusCode.NOT_FOUND, f"{request.name} is not found")
            still = one.nodes and one.resource.state.state != State.SUSPENDED
            if still and not request.force:
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "it has nodes; say force")
            one.become("DELETING")
            one.coming = collections.deque(["gone"])
            return operations_pb2.Operation(name="operations/delete")

    def ListNodes(self, request: Any) -> Any:  # noqa: N802
        with self.lock:
            nodes = [node for one in self.queued.values() for node in one.nodes]
            return tpu.ListNodesResponse(nodes=nodes)

    def ListAcceleratorTypes(self, request: Any) -> Any:  # noqa: N802
        found = [tpu.AcceleratorType(type_=name) for name in TYPES]
        return tpu.ListAcceleratorTypesResponse(accelerator_types=found)

    def ListRuntimeVersions(self, request: Any) -> Any:  # noqa: N802
        found = [tpu.RuntimeVersion(version=name) for name in RUNTIMES]
        return tpu.ListRuntimeVersionsResponse(runtime_versions=found)

    def ListLocations(self, request: Any) -> Any:  # noqa: N802
        found = [locations_pb2.Location(location_id=name) for name in ZONES]
        return locations_pb2.ListLocationsResponse(locations=found)

    def GetOperation(self, request: Any) -> Any:  # noqa: N802
        return self.operations[request.name]

    def GetQuotaInfo(self, request: Any) -> Any:  # noqa: N802
        name = request.name.rpartition("/")[2]
        value = self.quotas.get(name, 4096)
        if value is None:
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "Cloud Quotas API is disabled")
        infos = [
            {"dimensions": {"zone": "mars-a"}, "details": {"value": 1}},
            {"details": {"value": value}, "applicable_locations": [*ZONES, "us-west4"]},
        ]
        return cloudquotas.QuotaInfo(name=request.name, quota_id=name, dimensions_infos=infos)

    # --- What becomes of requests --------------------------------------------------------------

    def _hidden(self, one: Queued) -> bool:
        one.hidden = max(one.hidden - 1, -1)
        return one.hidden >= 0

    def _advance(self, name: str, one: Queued) -> None:
        if not one.coming:
            return
        state = one.coming.popleft()
        if state == "gone":
            self._end(name)
            return
        one.become(state)
        if state == "PROVISIONING":
            self._nodes(name, one)
        if state == "ACTIVE":
            for node in one.nodes:
                node.state, node.health = tpu.Node.State.READY, tpu.Node.Health.HEALTHY
            if self.with_hosts:
                self._start(one)

    def _nodes(self, name: str, one: Queued) -> None:
        [spec] = one.resource.tpu.node_spec
        count = spec.multi_node_params.node_count or 1
        for number in range(count):
            node = tpu.Node(spec.node)
            identifier = spec.node_id or f"{spec.multi_node_params.node_id_prefix}-{number}"
            node.name = f"{spec.parent}/nodes/{identifier}"
            node.queued_resource, node.state = name, tpu.Node.State.CREATING
            one.nodes.append(node)

    def _start(self, one: Queued) -> None:
        """The hosts find each other as in a pod of GKE, by the variables that JAX reads there: on a
        machine without a TPU it does not ask the metadata server. JAX_FORCE_TPU_INIT is its own
        way to say that this is a host of a TPU."""
        each = machines.named(one.nodes[0].accelerator_type).hosts
        port = str(free_port())
        for number, node in enumerate(one.nodes):
            slices = ""
            if len(one.nodes) > 1:
                slices = (
                    f"MEGASCALE_NUM_SLICES: '{len(one.nodes)}'\nMEGASCALE_SLICE_ID: '{number}'\n"
                    "MEGASCALE_COORDINATOR_ADDRESS: 'localhost'\n"
                )
            for worker in range(each):
                extra = {
                    "JAX_PLATFORMS": "cpu",
                    "JAX_FORCE_TPU_INIT": "1",
                    "JAX_COORDINATOR_PORT": port,
                    "TPU_WORKER_ID": str(worker),
                    "TPU_WORKER_HOSTNAMES": ",".join(["localhost"] * each),
                    **self.environment,
                }
                attributes = {"agent-worker-number": str(worker), "tpu-env": f"A: 'b'\n{slices}"}
                folder = self.folder / node.name.rpartition("/")[2] / str(worker)
                script = node.metadata["startup-script"]
                one.hosts.append(Host(folder, script, attributes, extra))

    def _end(self, name: str) -> None:
        for host in self.queued.pop(name).hosts:
            if host.thread.is_alive():
                host.kill()


def _done(resource: tpu.QueuedResource) -> operations_pb2.Operation:
    done = operations_pb2.Operation(name="operations/it", done=True)
    done.response.Pack(tpu.QueuedResource.pb(resource))
    return done


class Refusal(Exception):  # noqa: N818
    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code, self.message = code, message


def _handlers(cloud: FakeCloudTpu) -> grpc.GenericRpcHandler:
    found = {}
    for name in vars(FakeCloudTpu):
        if not re.fullmatch("[A-Z][A-Za-z]+", name):
            continue
        kinds = {
            "ListLocations": ("google.cloud.location.Locations", locations_pb2),
            "GetOperation": ("google.longrunning.Operations", operations_pb2),
            "GetQuotaInfo": ("google.api.cloudquotas.v1.CloudQuotas", cloudquotas),
        }
        service, module = kinds.get(name, (SERVICE, tpu))
        request = getattr(module, f"{name}Request")
        read = getattr(request, "deserialize", None) or request.FromString
        found[f"/{service}/{name}"] = grpc.unary_unary_rpc_method_handler(
            _answering(cloud, name), read, _written
        )

    class Handlers(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            return found.get(handler_call_details.method)

    return Handlers()


def _written(answer: Any) -> bytes:
    made = getattr(type(answer), "serialize", None)
    return made(answer) if made else answer.SerializeToString()


def _answering(cloud: FakeCloudTpu, name: str) -> Any:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        cloud.calls.append((name, request))
        try:
            if cloud.faults[name]:
                raise Refusal(*cloud.faults[name].popleft())
            if name in cloud.held:
                cloud.held[name].wait(PATIENCE)
            if cloud.failed_operations[name]:
                code, message = cloud.failed_operations[name].popleft()
                error = status_pb2.Status(code=code, message=message)
                return operations_pb2.Operation(name="operations/it", done=True, error=error)
            if cloud.ignored[name]:
                cloud.ignored[name] -= 1
                return _done(tpu.QueuedResource())
            found = getattr(cloud, name)(request)
            if cloud.lost[name]:
                cloud.lost[name] -= 1
                raise Refusal(grpc.StatusCode.UNAVAILABLE, "connection reset by peer")
            return found
        except Refusal as error:
            context.abort(error.code, error.message)

    return answer
