"""No key, no token and no name of anybody's project stands in a file that git tracks."""

import re

import pytest

from tests.conftest import ROOT
from tests.test_structure import tracked

PATTERNS = {
    "a private key": "-----BEGIN ([A-Z]+ )*PRIVATE KEY",
    "an API key of Google": "AIza[0-9A-Za-z_-]{35}",
    "an OAuth token of Google": r"ya29\.[0-9A-Za-z_-]{20}",
    "the key of a service account": r'"type":\s*"service_account"',
    "a service account": r"@[\w.-]*(?<!@my-project\.iam\.)gserviceaccount\.com",
    "a token of GitHub": "gh[pousr]_[0-9A-Za-z]{36}",
    "a token of Hugging Face": r"\bhf_[A-Za-z]{34}\b",
    "a key of Amazon": r"\bAKIA[0-9A-Z]{16}\b",
}
PROJECT = r"(?:--project[= ]|\bproject=[\"']|\bprojects/|\.pkg\.dev/)['\"]?([a-z][-a-z0-9.:]{5,})"
OURS = {"my-project"}


def found_in(text: str) -> list[str]:
    secrets = [name for name, pattern in PATTERNS.items() if re.search(pattern, text)]
    projects = {name for name in re.findall(PROJECT, text) if name.strip(".:") not in OURS}
    return [*secrets, *(f"the project {name}" for name in sorted(projects))]


def test_no_file_has_a_secret():
    found = {}
    for name in tracked():
        path = ROOT / name
        if not path.is_file() or path.suffix in (".gz", ".zst", ".png", ".model"):
            continue
        if secrets := found_in(path.read_text(errors="replace")):
            found[name] = secrets
    assert not found


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("-----BEGIN " + "RSA PRIVATE KEY-----", "a private key"),
        ("-----BEGIN " + "PRIVATE KEY-----", "a private key"),
        ("AIza" + "b" * 35, "an API key of Google"),
        ("Bearer ya29." + "a0" * 20, "an OAuth token of Google"),
        ('{"type": ' + '"service_account"}', "the key of a service account"),
        ("runner@their-lab.iam." + "gserviceaccount.com", "a service account"),
        ("123-compute@developer." + "gserviceaccount.com", "a service account"),
        ("--project" + "=their-lab", "the project their-lab"),
        ("projects" + "/their-lab/locations", "the project their-lab"),
        ("hf_" + "a" * 34, "a token of Hugging Face"),
    ],
)
def test_what_is_looked_for_is_found(text, name):
    assert found_in(text) == [name]


def test_what_may_stand_is_not():
    assert not found_in("--project=my-project projects/my-project/locations/us-west4-a --project=P")
    assert not found_in("trainer@my-project.iam." + "gserviceaccount.com projects/{launch.project}")
