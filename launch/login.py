"""Who asks Google Cloud: the credentials of `google.auth.default`, which are never shown."""

from google.auth import default
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request

from launch.checks import Check

SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def credentials() -> Check:
    """Whether there are any that Google takes: a login can have expired."""
    try:
        found, _ = default(scopes=[SCOPE])
        found.refresh(Request())
    except GoogleAuthError as error:
        return Check("credentials", "wrong", refused(error))
    return Check("credentials", "ok", "Google takes them")


def refused(error: Exception) -> str:
    """What to do about an error of google.auth, for a person."""
    return (
        f"there are no credentials for Google Cloud, or it does not take them any more "
        f"({' '.join(str(error).split())[:200]}); log in with gcloud auth application-default "
        "login, or let GOOGLE_APPLICATION_CREDENTIALS name the file of a service account"
    )
