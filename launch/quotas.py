"""How many chips a project may have, by the Cloud Quotas API, which knows before anything is asked
for: what the Cloud TPU API refuses for lack of quota it refuses only then.

A quota is of a generation, apart for chips that may be preempted, and stands for a zone and for its
region; both hold. Google counts TensorCores of v4 and v5p in some and chips in others, so that less
than the chips is certainly too little, and only that is refused. Google's page "Cloud TPU quotas".
"""

import functools
import os
from collections.abc import Callable

try:
    import grpc
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import cloudquotas_v1
    from google.cloud.cloudquotas_v1.services.cloud_quotas.transports import (
        CloudQuotasGrpcTransport,
    )
except ImportError as missing:
    raise SystemExit(
        f'error: launch.tpu needs google-cloud-quotas ({missing}): pip install -e ".[gcp]"'
    ) from None

from biomedlm_jax.entry import UserError
from launch import refusals
from launch.checks import Check
from launch.spec import Launch
from launch.tpu_api import ENDPOINT, words

SERVICE = "tpu.googleapis.com"
SECONDS = 30.0  # for one answer
AREAS = ("Zone", "Region")


class Unknown(UserError):  # noqa: N818
    """The quota can not be read, which says nothing of how much it is."""


class Quotas:
    """Of a launch's project, zone and region."""

    def __init__(self, launch: Launch):
        self.launch = launch

    @functools.cached_property
    def client(self) -> cloudquotas_v1.CloudQuotasClient:
        return cloudquotas_v1.CloudQuotasClient(transport=_transport())

    def limit(self, name: str) -> int | None:
        """Of a quota, where the launch is; None where there is no limit.

        Raises:
          Unknown: it is not to be seen.
        """
        path = f"projects/{self.launch.project}/locations/global/services/{SERVICE}/quotaInfos"
        try:
            found = self.client.get_quota_info(name=f"{path}/{name}", retry=None, timeout=SECONDS)
        except (exceptions.GoogleAPICallError, GoogleAuthError) as error:
            raise Unknown(words(error)) from error
        for info in sorted(found.dimensions_infos, key=lambda info: -len(info.dimensions)):
            places = {self.launch.zone, self.launch.region}
            if set(info.dimensions.values()) <= places and (
                not info.applicable_locations or places & set(info.applicable_locations)
            ):
                return info.details.value if info.details.value >= 0 else None
        raise Unknown(f"{name} says nothing of {self.launch.zone}")


def names(launch: Launch) -> list[str]:
    """Of the quotas of which one has to suffice, without the area at the end; none for a
    reservation, which counts apart."""
    machine = launch.machine
    if not machine.quota or launch.capacity == "reserved":
        return []
    found = [machine.quota.format("" if launch.capacity == "on-demand" else "Preemptible")]
    if machine.kind == "v5e" and machine.hosts == 1:  # slices of one host may count as for serving
        found.append(f"{found[0]}Serving")
    return found


def whole(name: str, area: str) -> str:
    """As the API calls it. area: of `AREAS`."""
    return f"{name}PerProjectPer{area}ForTPUAPI"


def check(launch: Launch, limit: Callable[[str], int | None]) -> Check:
    """Whether a launch has the quota. limit: of `Quotas`.

    Raises:
      UserError: it has not.
    """
    if not (found := names(launch)):
        return Check("quota", "ok", "that of the reservation, which counts apart")
    least, low, unknown = launch.chips, list[str](), ""
    for name in found:
        limits = dict[str, int | None]()
        for area in AREAS:
            try:
                limits[whole(name, area)] = limit(whole(name, area))
            except Unknown as error:
                unknown = unknown or str(error)
        less = {called: n for called, n in limits.items() if n is not None and n < least}
        if limits and not less:
            said = f"{' and '.join(limits)} suffice for {least} chips, if all of it is free"
            return Check("quota", "ok", said)
        low += [f"{called} is {n} in {launch.zone}" for called, n in less.items()]
        if not limits:
            low.clear()  # the one that is not known may suffice
            break
    if not low:
        said = f"not known before it is asked for: {unknown}"
        return Check("quota", "note", f"{said}; {least} chips of {launch.machine.kind} are needed; "
                     "see IAM & Admin > Quotas of the console")  # fmt: skip
    raise UserError(
        f"--accelerator={launch.accelerator} needs {least} chips, and the project's quota "
        f"{' and '.join(low)}; {refusals.advice(refusals.EXHAUSTED, 'quota')}"
    )


def _transport() -> CloudQuotasGrpcTransport | None:
    if endpoint := os.environ.get(ENDPOINT):
        return CloudQuotasGrpcTransport(channel=grpc.insecure_channel(endpoint))
    return None
