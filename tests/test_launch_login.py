"""Who may not, whose login has expired, and who has none: one message that says what to do."""

import http.server
import json
import os
import subprocess
import sys
import threading

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from biomedlm_jax.entry import UserError
from launch import login, spec, tpu_api
from launch.tpu_api import Tpus
from tests.conftest import ROOT
from tests.fake_cloud_tpu import FakeCloudTpu
from tests.test_launch_preflight import RIGHT


def test_no_permission_is_one_message(tmp_path, monkeypatch):
    with FakeCloudTpu(tmp_path) as cloud:
        monkeypatch.setenv(tpu_api.ENDPOINT, cloud.endpoint)
        cloud.fail("ListLocations", grpc.StatusCode.PERMISSION_DENIED, "Permission denied on it")
        cloud.fail("ListAcceleratorTypes", grpc.StatusCode.UNAUTHENTICATED, "No token")
        found = Tpus(spec.read(spec.DEFAULT, RIGHT))
        with pytest.raises(
            UserError, match=r"Permission denied on it; let an owner .*roles/tpu.adm"
        ):
            found.zones()
        with pytest.raises(UserError, match="No token; log in: gcloud auth application-default"):
            found.accelerator_types()


def test_no_credentials_is_one_message(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != tpu_api.ENDPOINT}
    environment |= {"HOME": str(tmp_path), "NO_GCE_CHECK": "true", "JAX_PLATFORMS": "cpu"}
    environment.pop("GOOGLE_APPLICATION_CREDENTIALS", None)
    flags = [f"--{name}={value}" for name, value in RIGHT.items()]
    flags.append("--config.data.store=gs://my-bucket/store")
    done = subprocess.run(
        [sys.executable, "-m", "launch.tpu", "create", *flags, "--yes"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "there are no credentials for Google Cloud" in done.stderr
    assert "gcloud auth application-default login" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("expired", [True, False])
def test_a_login_is_tried(expired, tmp_path, monkeypatch):
    """Credentials that are there, and that Google's server does or does not take."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = b'{"access_token": "a", "expires_in": 3600}'
            if expired:
                body = b'{"error": "invalid_grant", "error_description": "reauth is needed"}'
            self.send_response(400 if expired else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = dict(
        type="service_account",
        client_email="me@my-project.iam.gserviceaccount.com",
        private_key=key.decode(),
        token_uri=f"http://127.0.0.1:{server.server_port}/token",
    )
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    check = login.credentials()
    server.shutdown()
    thread.join()
    server.server_close()
    assert check.verdict == ("wrong" if expired else "ok")
    assert ("reauth is needed" in check.said) == expired
    assert ("log in with gcloud auth application-default login" in check.said) == expired
    assert "PRIVATE KEY" not in check.said
