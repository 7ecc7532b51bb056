"""A Kubernetes API server that has JobSets, as much of it as kubectl asks for, on this machine."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from biomedlm_jax.entry import UserError
from launch.jobset import validated

GROUP = {"group": "jobset.x-k8s.io", "version": "v1alpha2"}
BASE = "/apis/jobset.x-k8s.io/v1alpha2"
# By this kubectl sees that the server looks for fields that are none, and asks it to.
STRICT = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
ITEM = {
    "patch": {"parameters": [STRICT], "x-kubernetes-group-version-kind": GROUP | {"kind": "JobSet"}}
}
DISCOVERED: dict[str, Any] = {
    "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {
                "name": GROUP["group"],
                "versions": [{"groupVersion": "/".join(GROUP.values()), "version": "v1alpha2"}],
            }
        ],
    },
    BASE: {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "/".join(GROUP.values()),
        "resources": [
            {
                "name": "jobsets",
                "singularName": "jobset",
                "namespaced": True,
                "kind": "JobSet",
                "verbs": ["create", "delete", "get", "list"],
            }
        ],
    },
    "/openapi/v3": {"paths": {BASE[1:]: {"serverRelativeURL": f"/openapi/v3{BASE}"}}},
    f"/openapi/v3{BASE}": {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.33.0"},
        "paths": {f"{BASE}/namespaces/{{namespace}}/jobsets/{{name}}": ITEM},
    },
}


class Server:
    """jobsets: {name: manifest} of what was created. refusing: why nothing is created; "" is that
    it is."""

    def __init__(self) -> None:
        self.jobsets: dict[str, dict[str, Any]] = {}
        self.refusing = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if path in DISCOVERED:
            return 200, DISCOVERED[path]
        name = path.rpartition("/")[2]
        if method == "GET":
            found = self.jobsets.get(name)
            return (200, found) if found else _status(404, "NotFound", f"{name} not found")
        manifest = json.loads(body)
        if self.refusing:
            return _status(403, "Forbidden", self.refusing)
        try:
            validated(manifest)
        except UserError as error:
            return _status(400, "BadRequest", str(error))
        self.jobsets[manifest["metadata"]["name"]] = manifest
        return 201, manifest


def _status(code: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return code, status | {"reason": reason, "message": message, "code": code}


@contextlib.contextmanager
def serving(config: Path, context: str) -> Iterator[Server]:
    """A server, and `config`, a file for KUBECONFIG that knows it by the name of `context`."""
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, found = server.answer(self.command, self.path.partition("?")[0], body)
            content = json.dumps(found).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = respond  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{listening.server_address[1]}"
        known = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": address}}],
            "contexts": [{"name": context, "context": {"cluster": "here", "user": ""}}],
        }
        config.write_text(yaml.safe_dump(known))
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()
