"""Buckets: where they are, and what it costs if that is elsewhere than the machines."""

from collections.abc import Callable

from biomedlm_jax.entry import UserError
from launch import prices
from launch.checks import Check
from launch.spec import BUCKET, Launch

# Where a bucket of several regions is: on a continent, or in two of its regions. Google's page
# "Bucket locations".
CONTINENTS = {"us": "us-", "eu": "europe-", "asia": "asia-"}
PAIRS = {
    "nam4": ("us-central1", "us-east1"),
    "eur4": ("europe-north1", "europe-west4"),
    "eur5": ("europe-west1", "europe-west2"),
    "eur7": ("europe-west2", "europe-west3"),
    "eur8": ("europe-west3", "europe-west6"),
    "asia1": ("asia-northeast1", "asia-northeast2"),
}
NOT_IN_EU = ("europe-west2", "europe-west6")  # London and Zurich, of which "eu" has nothing


def placed(
    launch: Launch, setting: str, name: str, where: Callable[[str], str], costs: str
) -> Check:
    """Whether a bucket is where the machines are.

    setting: that names it, with its value. name: of the check. costs: in words, what is paid for
    if it is not.

    Raises:
      UserError: it is elsewhere, and launch.cross_region does not allow that; it is not there.
    """
    bucket = setting.partition("=")[2].removeprefix("gs://").split("/")[0]
    if not BUCKET.fullmatch(bucket):
        raise UserError(f"{setting}: {bucket!r} is no name of a bucket")
    try:
        found = where(bucket)
    except UserError as error:
        raise UserError(f"{setting}: {error}") from error
    regions = PAIRS.get(found, tuple(found.split("+")))
    if launch.region in regions:
        return Check(name, "ok", f"gs://{bucket} is in {found}")
    around = launch.region.startswith(CONTINENTS.get(found, "?"))
    if around and not (found == "eu" and launch.region in NOT_IN_EU):
        return Check(name, "note", f"gs://{bucket} is in several regions ({found}), from which a "
                     f"GB that is read may cost ${prices.EGRESS_GB}: {costs}")  # fmt: skip
    said = f"{setting} is in {found}, the machines in {launch.region}: {costs}"
    if launch.cross_region:
        return Check(name, "note", said)
    raise UserError(f"{said}; take a bucket in {launch.region}, or say --cross_region")


def location(project: str) -> Callable[[str], str]:
    """Where a bucket is, asked by `project`, in small letters: a region, two with a + between them,
    or as "us" or "nam4" several.

    Raises, when it is called:
      UserError: there is none, or it may not be seen, or Google does not answer.
    """
    from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage

    def asked(bucket: str) -> str:
        try:
            found = storage.Client(project=project or None).get_bucket(bucket, timeout=60)
        except NotFound as error:
            raise UserError(
                f"there is no bucket gs://{bucket}; make it with gcloud storage buckets create "
                f"gs://{bucket} --location=REGION, or name another"
            ) from error
        except Forbidden as error:
            raise UserError(
                f"you may not see gs://{bucket}; let its owner give you the role Storage Legacy "
                "Bucket Reader (roles/storage.legacyBucketReader), or name another"
            ) from error
        except (GoogleAPIError, GoogleAuthError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"gs://{bucket} can not be asked about now: {reason}") from error
        return "+".join(found.data_locations or [found.location]).lower()

    return asked
