"""Why Google Cloud did not do what was asked, by the code and the words of its answer: whether the
same may go well later, and what a person can do."""

import re
from typing import Literal

Kind = Literal["passing", "stock-out", "quota", "login", "not now", "refused"]

# Codes of google.rpc.Code.
INVALID, DEADLINE, NOT_FOUND, EXISTS, DENIED, EXHAUSTED = 3, 4, 5, 6, 7, 8
PRECONDITION, ABORTED, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 9, 10, 13, 14, 16
UNKNOWN = 2

CAPACITY = re.compile(
    "capacity|stock ?-?out|resource pool|not enough resources|insufficient|does not have enough",
    re.IGNORECASE,
)
RATE = re.compile(
    "per minute|per second|(?<![a-z])rate(?![a-z])|too many requests|concurrent", re.IGNORECASE
)
QUOTA = re.compile(r"\bquotas?\b|\blimit\b", re.IGNORECASE)
# The client has no token to send, which gRPC reports as the server being away.
LOGIN = re.compile(
    "reauth|invalid_grant|invalid_rapt|default credentials|expired or revoked", re.IGNORECASE
)


def kind(code: int, message: str) -> Kind:
    """passing: the same request may go well in a minute. stock-out: there are no chips now. quota:
    the project may not have so many. login: whoever asks has to say anew who they are. not now: the
    thing is in a state in which it can not be done. refused: it will be refused again.

    code: of google.rpc.Code. One code, RESOURCE_EXHAUSTED, stands for three of these.
    """
    if code == UNAUTHENTICATED or LOGIN.search(message):
        return "login"
    if code in (EXHAUSTED, PRECONDITION, DENIED) and "quota" in message.lower():
        return "passing" if code == EXHAUSTED and RATE.search(message) else "quota"
    if code in (EXHAUSTED, UNAVAILABLE) and CAPACITY.search(message):
        return "stock-out"
    if code == EXHAUSTED:
        return "quota" if QUOTA.search(message) and not RATE.search(message) else "passing"
    if code == PRECONDITION:
        return "not now"
    if code in (UNAVAILABLE, INTERNAL, DEADLINE, ABORTED, UNKNOWN):
        return "passing"
    return "refused"


def advice(code: int, message: str) -> str:
    """What to do about it, for a person."""
    match kind(code, message):
        case "quota":
            return (
                "ask for more at IAM & Admin > Quotas of the console (Cloud TPU API), or name a "
                "smaller --accelerator, another --zone, or --spot, which has a quota of its own"
            )
        case "stock-out":
            return "wait, or name another --zone or --accelerator"
        case "passing" | "not now":
            return "try again in a while"
        case "login":
            return "log in: gcloud auth application-default login"
    match code:
        case 7:
            return (
                "let an owner of the project give you the role TPU Admin (roles/tpu.admin), and "
                "see that the Cloud TPU API is enabled: gcloud services enable tpu.googleapis.com"
            )
        case 5:
            return "see that --project and --zone are right"
    return "change what it names"
