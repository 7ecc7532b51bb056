"""A run as a JobSet: on TPUs a Job for each slice, on GPUs one Job, with a pod for each host.

A pod does what a Cloud TPU host does (`startup.sh`, and `pod.sh` besides). One that ends with 2, an
error of the user's, or with 1, one of the program, fails the JobSet. After any other end (75:
preempted; 76: another host is lost; a node that is gone) all pods begin again.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from biomedlm_jax.entry import USER_ERROR, UserError
from biomedlm_jax.lock import COUNTS
from launch import startup
from launch.spec import Launch

RESTARTS = 100  # JobSet counts them all, also those after which the run got on
GRACE_SECONDS = 300  # from SIGTERM to SIGKILL, for a save; a Spot VM gives 25 of them at most
JOB, CONTAINER, PORT = "slice", "main", 8476
SPOT = "cloud.google.com/gke-spot"
OF_POD = {  # environment of a pod: the label or annotation that JobSet and Job give it
    "SLICE": "metadata.labels['jobset.sigs.k8s.io/job-index']",
    "HOST": "metadata.annotations['batch.kubernetes.io/job-completion-index']",
    "RESTARTS": "metadata.labels['jobset.sigs.k8s.io/restart-attempt']",
}


def jobset(launch: Launch, script: str) -> dict[str, Any]:
    """The manifest. script: of `pod_script`."""
    machine = launch.machine
    # GPUs have no slices: all their machines are one Job.
    replicas, pods = (launch.slices, machine.hosts) if machine.tpu else (1, launch.hosts)
    annotations = {}
    if machine.tpu:  # a Job has a node pool, which is one slice, to itself
        annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    labels = {"kueue.x-k8s.io/queue-name": launch.gke.queue} if launch.gke.queue else {}
    job = {
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": pods,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": CONTAINER,
                        "operator": "In",
                        "values": [1, USER_ERROR],
                    },
                }
            ]
        },
        "template": {"spec": _pod(launch, script)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _given(name=launch.name, labels=labels, annotations=annotations),
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": RESTARTS,
                "rules": [
                    {
                        "name": "mistake",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": JOB, "replicas": replicas, "template": {"spec": job}}],
        },
    }


def pod_script(launch: Launch, settings: Sequence[str], archive: str, sha256: str) -> str:
    """What a pod does: `startup.sh`, and `pod.sh` before its first command.

    settings: of the run. archive, sha256: as `startup.script` takes them.
    """
    coordinator = ""
    if not launch.machine.tpu and launch.hosts > 1:
        coordinator = f"{launch.name}-{JOB}-0-0.{launch.name}:{PORT}"
    values = {"COORDINATOR": coordinator, "PROCESSES": launch.hosts, "LEASE": f"{COUNTS:g}"}
    lines = [f"{name}={shlex.quote(str(value))}" for name, value in values.items()]
    own = "\n".join([*lines, Path(__file__).with_name("pod.sh").read_text()])
    whole = startup.script(launch, settings, launch.name, archive, sha256)
    first = "set -euo pipefail\n"
    assert whole.count(first) == 1
    return whole.replace(first, f"{first}\n{own}")


def _pod(launch: Launch, script: str) -> dict[str, Any]:
    machine = launch.machine
    resource = {"google.com/tpu" if machine.tpu else "nvidia.com/gpu": str(machine.chips_of_host)}
    if machine.tpu:
        where = {
            "cloud.google.com/gke-tpu-accelerator": machine.gke_label,
            "cloud.google.com/gke-tpu-topology": machine.topology,
        }
    else:
        where = {
            "cloud.google.com/gke-accelerator": machine.gke_label,
            "node.kubernetes.io/instance-type": machine.machine_type,
        }
    tolerations = []
    if launch.capacity == "spot":
        where[SPOT] = "true"
        tolerations = [{"key": SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
    if launch.capacity == "reserved":
        where["cloud.google.com/reservation-name"] = launch.reservation
    environment = [
        *({"name": k, "valueFrom": {"fieldRef": {"fieldPath": v}}} for k, v in OF_POD.items()),
        {"name": "NAME", "value": "$(SLICE)-$(HOST)"},
        {"name": "SHOW", "value": "yes"},
        # Without it JAX would go on without a word on the CPU of a host whose chips it can not use.
        {"name": "JAX_PLATFORMS", "value": "tpu,cpu" if machine.tpu else "cuda,cpu"},
    ]
    memory = []
    if not machine.tpu:
        environment.append({"name": "LD_LIBRARY_PATH", "value": "/usr/local/nvidia/lib64"})
        memory = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]  # for NCCL
    container = _given(
        name=CONTAINER,
        image=launch.gke.image,
        command=["bash", "-c", script],
        env=environment,
        resources={"limits": resource},
        volumeMounts=[{"name": volume["name"], "mountPath": "/dev/shm"} for volume in memory],
    )
    return _given(
        restartPolicy="Never",
        terminationGracePeriodSeconds=GRACE_SECONDS,
        serviceAccountName=launch.gke.service_account,
        nodeSelector=where,
        tolerations=tolerations,
        containers=[container],
        volumes=memory,
    )


def _given(**fields: Any) -> dict[str, Any]:
    """Without those that are empty."""
    return {name: value for name, value in fields.items() if value}


class _Dumper(yaml.SafeDumper):
    """Scripts as they are read, line by line."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def rendered(manifest: dict[str, Any]) -> str:
    """As YAML."""
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=100)


def validated(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, when it is one by the schemas of JobSet and Kubernetes.

    Raises:
      UserError: a field that they do not have, or of another type.
    """
    try:
        import pydantic
        from kubeflow_trainer_api.models import jobset_v1alpha2_job_set as schema  # 1 s
    except ImportError as missing:
        raise UserError(
            f'launch.gke needs JobSet\'s schema ({missing}): pip install -e ".[gcp]"'
        ) from None

    try:
        read = schema.JobsetV1alpha2JobSet.from_dict(manifest)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"the manifest is no JobSet: {where}: {first['msg']}") from error
    assert read is not None
    if lost := _differences(manifest, read.to_dict()):  # it drops what it does not know
        raise UserError(f"the manifest is no JobSet: {lost[0]} is no field of it")
    return manifest


def _differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where they differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = [*ours, *(name for name in theirs if name not in ours)]
        pairs = [(f"{path}.{name}", ours.get(name), theirs.get(name)) for name in names]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    else:
        return [] if ours == theirs else [path.lstrip(".")]
    return [found for where, a, b in pairs for found in _differences(a, b, where)]
