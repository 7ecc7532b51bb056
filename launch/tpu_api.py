"""The Cloud TPU API through Google's client: what a launcher asks of it, with passing errors tried
again and the others made for people.

Credentials are those of `google.auth.default`. Where the environment has BIOMEDLM_TPU_ENDPOINT, a
host:port, the server there is spoken to instead of Google's, in the clear and without credentials.
"""

import concurrent.futures
import dataclasses
import os
import sys
import uuid
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
from google.api_core import exceptions
from google.api_core.retry import Retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import tpu_v2alpha1 as tpu
from google.cloud.tpu_v2alpha1.services.tpu.transports import TpuGrpcTransport

from biomedlm_jax.entry import UserError
from launch import login, refusals, requests
from launch.spec import Launch

ENDPOINT = "BIOMEDLM_TPU_ENDPOINT"


class StockOut(UserError):  # noqa: N818 (it may go well later)
    """There are no such chips in the zone now."""


class Unanswered(UserError):  # noqa: N818
    """Errors that pass have not passed for `Patience.whole`."""


class NotNow(UserError):  # noqa: N818
    """It can not be done in the state in which the thing is."""


@dataclasses.dataclass(frozen=True)
class Patience:
    """Seconds: of the first pause after a passing error, of the longest, and of all together; how
    long the answer to one request, and the end of what it began, are waited for."""

    first: float = 2.0
    longest: float = 60.0
    whole: float = 600.0
    answer: float = 60.0


class Tpus:
    """Of one project and zone.

    Raises, from all methods:
      UserError: what is asked is refused.
      Unanswered: the API does not answer, or asks to come again later, for `patience.whole`.
    """

    def __init__(self, launch: Launch, patience: Patience = Patience()):
        self.launch, self.patience = launch, patience
        try:
            self.client = tpu.TpuClient(transport=_transport())
        except GoogleAuthError as error:
            raise UserError(login.refused(error)) from error

    def create(self, identifier: str, script: str) -> None:
        """Returns when the request is in the queue.

        Raises:
          StockOut: it can not be, for lack of chips.
          UserError: also where there is one of that name, of another run.
        """

        request = requests.create(self.launch, identifier, script, str(uuid.uuid4()))

        def asked() -> None:
            try:
                operation = self.client.create_queued_resource(request=request, **self._once())
                operation.result(timeout=self.patience.answer)
            except exceptions.AlreadyExists:
                # By a request whose answer was lost, for names are of one attempt; or of another
                # run, which was started under this name when there was nothing to see.
                there = self.get(identifier)
                if there is not None:
                    self._check_own(there)
                return
            except concurrent.futures.TimeoutError:
                return  # its state says what becomes of it

        self._call(f"ask for {identifier}", asked)

    def get(self, identifier: str) -> tpu.QueuedResource | None:
        """None where there is none of that name."""
        try:
            return self._call(
                f"look at {identifier}",
                lambda: self.client.get_queued_resource(
                    request=requests.get(self.launch, identifier), **self._once()
                ),
                absent=True,
            )
        except exceptions.NotFound:
            return None

    def of_launch(self, strict: bool = True) -> dict[int, tpu.QueuedResource]:
        """{attempt: request} of what is there by this launch's name, the oldest first.

        strict: another run's of the same name are not passed over.

        Raises:
          UserError: with `strict`, also where there is one of another run.
        """
        pager = self._call(
            "list queued resources",
            lambda: list(
                self.client.list_queued_resources(
                    request=requests.list_all(self.launch), **self._once()
                )
            ),
        )
        numbers = {requests.number_of(self.launch, one.name): one for one in pager}
        found = {number: numbers[number] for number in sorted(n for n in numbers if n is not None)}
        if not strict:
            return {n: one for n, one in found.items() if not requests.foreign(self.launch, one)}
        for one in found.values():
            self._check_own(one)
        return found

    def _check_own(self, there: tpu.QueuedResource) -> None:
        if requests.foreign(self.launch, there):
            raise UserError(
                f"{there.name} is of a run in another --workdir than {self.launch.workdir}; "
                "give this one another --name"
            )

    def nodes(self, identifier: str) -> list[tpu.Node]:
        """Of a request, those that are there."""
        owner = requests.path(self.launch, identifier)
        pager = self._call(
            "list nodes",
            lambda: list(
                self.client.list_nodes(request=requests.list_nodes(self.launch), **self._once())
            ),
        )
        return [node for node in pager if _same(node.queued_resource, owner)]

    def delete(self, identifier: str) -> None:
        """Begins to delete a request and its nodes; nothing where there is none. One that can not
        go in its present state stays, which is said: whoever wants it gone looks and asks again."""
        try:
            self._call(
                f"delete {identifier}",
                lambda: self.client.delete_queued_resource(
                    request=requests.delete(self.launch, identifier), **self._once()
                ),
                absent=True,
            )
        except exceptions.NotFound:
            return
        except NotNow as error:
            print(f"{error}; trying again later", file=sys.stderr, flush=True)

    def zones(self) -> list[str]:
        """That have TPUs."""
        found = self._call(
            "list zones",
            lambda: self.client.list_locations(
                request={"name": f"projects/{self.launch.project}", "page_size": 500},
                **self._once(),
            ),
        )
        return sorted(one.location_id for one in found.locations)

    def accelerator_types(self) -> list[str]:
        return self._listed("list_accelerator_types", "type_")

    def runtimes(self) -> list[str]:
        return self._listed("list_runtime_versions", "version")

    def _listed(self, method: str, field: str) -> list[str]:
        def asked() -> list[str]:
            request = {"parent": requests.parent(self.launch)}
            pager = getattr(self.client, method)(request=request, **self._once())
            return sorted(getattr(one, field) for one in pager)

        return self._call(method.replace("_", " "), asked)

    def _once(self) -> dict[str, Any]:
        return {"retry": None, "timeout": self.patience.answer}

    def _call(self, doing: str, asked: Callable[[], Any], absent: bool = False) -> Any:
        """absent: NotFound is for the caller, not a mistake."""

        def say(error: Exception) -> None:
            print(f"could not {doing}: {words(error)}; trying again", file=sys.stderr, flush=True)

        retry = Retry(
            predicate=_passing,
            initial=self.patience.first,
            maximum=self.patience.longest,
            timeout=self.patience.whole,
            on_error=say,
        )
        try:
            return retry(asked)()
        except exceptions.RetryError as error:
            self._refused(doing, error.cause or error)
        except exceptions.NotFound as error:
            if absent:
                raise
            self._refused(doing, error)
        except (exceptions.GoogleAPICallError, GoogleAuthError) as error:
            self._refused(doing, error)

    def _refused(self, doing: str, error: Exception) -> NoReturn:
        if isinstance(error, GoogleAuthError):
            raise UserError(login.refused(error)) from error
        number, message = code(error), words(error)
        said = f"could not {doing} in {self.launch.zone} of {self.launch.project}: {message}"
        kinds = {"stock-out": StockOut, "passing": Unanswered, "not now": NotNow}
        made = kinds.get(refusals.kind(number, message), UserError)
        raise made(f"{said}; {refusals.advice(number, message)}") from error


def code(error: Exception) -> int:
    """Of google.rpc.Code."""
    status = getattr(error, "grpc_status_code", None)
    return status.value[0] if isinstance(status, grpc.StatusCode) else refusals.UNKNOWN


def name_of(value: Any) -> str:
    """Of an enum's value, which is a number where Google has made it after this client."""
    return getattr(value, "name", str(value))


def words(error: Exception) -> str:
    text = getattr(error, "message", "") or str(error) or type(error).__name__
    return " ".join(text.split())[:400]


def elsewhere() -> bool:
    """Whether another server than Google's is spoken to, without credentials."""
    return ENDPOINT in os.environ


def _passing(error: Exception) -> bool:
    return isinstance(error, exceptions.GoogleAPICallError) and (
        refusals.kind(code(error), words(error)) == "passing"
    )


def _same(one: str, other: str) -> bool:
    """Whether two paths name one thing: the API may write a project's number for its name."""
    return one.split("/")[2:] == other.split("/")[2:]


def _transport() -> Any:
    if endpoint := os.environ.get(ENDPOINT):
        return TpuGrpcTransport(channel=grpc.insecure_channel(endpoint))
    return None
