"""What is asked of the Cloud TPU API, as its own messages."""

import datetime
import hashlib
import re

try:
    from google.cloud import tpu_v2alpha1 as tpu
except ImportError as missing:
    raise SystemExit(
        f'error: launch.tpu needs google-cloud-tpu ({missing}): pip install -e ".[gcp]"'
    ) from None

from launch.login import SCOPE
from launch.spec import Launch

RUN, WORKDIR = "biomedlm-run", "biomedlm-workdir"  # labels of nodes: `labels`
SCRIPT = "startup-script"


def parent(launch: Launch) -> str:
    return f"projects/{launch.project}/locations/{launch.zone}"


def attempt_id(launch: Launch, number: int) -> str:
    """The name of the request of that attempt, from 1."""
    return f"{launch.name}-a{number}"


def number_of(launch: Launch, identifier: str) -> int | None:
    """Of a request's name or path; None for one that is not of this launch."""
    found = re.fullmatch(rf"{re.escape(launch.name)}-a([1-9]\d*)", identifier.rpartition("/")[2])
    return int(found[1]) if found else None


def labels(launch: Launch) -> dict[str, str]:
    """Whose nodes they are: a label can not hold a path, so it holds what that hashes to."""
    workdir = hashlib.sha256(launch.workdir.rstrip("/").encode()).hexdigest()[:16]
    return {RUN: launch.name, WORKDIR: workdir}


def foreign(launch: Launch, request: tpu.QueuedResource) -> bool:
    """Whether a request is that of a launch with another workdir, by its labels."""
    found = {spec.node.labels.get(WORKDIR) for spec in request.tpu.node_spec}
    return not found <= {None, labels(launch)[WORKDIR]}


def path(launch: Launch, identifier: str) -> str:
    return f"{parent(launch)}/queuedResources/{identifier}"


def create(
    launch: Launch, identifier: str, script: str, request_id: str = "(a new UUID)"
) -> tpu.CreateQueuedResourceRequest:
    """For all slices of an attempt.

    script: what each host runs when it starts. request_id: by which the API knows a request again
    whose answer was lost.
    """
    node = tpu.Node(
        accelerator_type=launch.machine.api_type,
        runtime_version=launch.runtime or launch.machine.runtime,
        network_config=tpu.NetworkConfig(
            network=launch.network,
            subnetwork=launch.subnetwork,
            enable_external_ips=launch.external_ips,
        ),
        service_account=tpu.ServiceAccount(email=launch.service_account, scope=[SCOPE]),
        labels=labels(launch),
        metadata={SCRIPT: script},
    )
    spec = tpu.QueuedResource.Tpu.NodeSpec(parent=parent(launch), node=node)
    if launch.slices == 1:
        spec.node_id = identifier
    else:
        kinds = tpu.QueuedResource.Tpu.NodeSpec.MultiNodeParams
        spec.multi_node_params = kinds(
            node_count=launch.slices,
            node_id_prefix=identifier,
            workload_type=kinds.WorkloadType.THROUGHPUT_OPTIMIZED,
        )
    queued = tpu.QueuedResource(
        tpu=tpu.QueuedResource.Tpu(node_spec=[spec]),
        queueing_policy=tpu.QueuedResource.QueueingPolicy(
            valid_until_duration=datetime.timedelta(hours=launch.queue_hours)
        ),
    )
    match launch.capacity:
        case "spot":
            queued.spot = tpu.QueuedResource.Spot()
        case "best-effort":
            queued.best_effort = tpu.QueuedResource.BestEffort()
        case "reserved":
            queued.guaranteed = tpu.QueuedResource.Guaranteed(reserved=True)
            queued.reservation_name = f"{parent(launch)}/reservations/{launch.reservation}"
    return tpu.CreateQueuedResourceRequest(
        parent=parent(launch),
        queued_resource_id=identifier,
        queued_resource=queued,
        request_id=request_id,
    )


def get(launch: Launch, identifier: str) -> tpu.GetQueuedResourceRequest:
    return tpu.GetQueuedResourceRequest(name=path(launch, identifier))


def list_all(launch: Launch) -> tpu.ListQueuedResourcesRequest:
    return tpu.ListQueuedResourcesRequest(parent=parent(launch))


def list_nodes(launch: Launch) -> tpu.ListNodesRequest:
    return tpu.ListNodesRequest(parent=parent(launch))


def delete(launch: Launch, identifier: str) -> tpu.DeleteQueuedResourceRequest:
    """With its nodes."""
    return tpu.DeleteQueuedResourceRequest(name=path(launch, identifier), force=True)


def shown(request: object) -> str:
    """A request as JSON under its name; the script of hosts is left out, for it is long."""
    kind = type(request)
    # Sorted, for labels come in another order in each process.
    text = kind.to_json(  # pyright: ignore
        request, always_print_fields_with_no_presence=False, sort_keys=True
    )
    text = re.sub(rf'("{SCRIPT}": )"(?:[^"\\]|\\.)*"', r'\1"(the script below)"', text)
    return f"{kind.__name__} {text}"
