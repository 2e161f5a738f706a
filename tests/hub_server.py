"""A Hub on the loopback: as much of its HTTP interface as huggingface_hub uses to create, fill and fetch a repository.

It keeps everything in memory, remembers every request, and fails on demand.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_CanaryCanaryCanaryCanary"


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """The state: `repos[name][commit]` is {path: bytes}; `refs[name][branch]` is a commit."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}  # by sha256
        self.requests: list[tuple[str, str]] = []  # (method, path), in order of arrival
        self.bodies: list[bytes] = []
        self.faults: list[tuple[str, int, int, int]] = []
        self.lock = threading.Lock()
        self.endpoint = ""

    def fail(self, pattern: str, status: int, first: int = 1, times: int = 1) -> None:
        """From the `first` request on whose "METHOD path" matches `pattern`, answers `times` of them with `status`."""
        self.faults.append((pattern, status, first, times))
        self.requests.clear()

    def fault(self, line: str) -> int | None:
        for pattern, status, first, times in self.faults:
            if re.search(pattern, line):
                seen = sum(bool(re.search(pattern, " ".join(request))) for request in self.requests)
                if first <= seen < first + times:
                    return status
        return None

    def put(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commits `files` on top of `branch`, and returns the commit."""
        commits, refs = self.repos.setdefault(repo, {}), self.refs.setdefault(repo, {})
        tree = {**commits.get(refs.get(branch, refs.get("main", "")), {}), **files}
        seed = json.dumps([len(commits), sorted((k, git_oid(v)) for k, v in tree.items())])
        commit = hashlib.sha1(seed.encode()).hexdigest()
        commits[commit], refs[branch] = tree, commit
        return commit

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repos.get(repo, {})
        commit = self.refs.get(repo, {}).get(revision, revision)
        return (commit, commits[commit]) if commit in commits else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_args) -> None: ...

    def answer(self, status: int, body: bytes | dict | list = b"", headers: dict[str, str] | None = None) -> None:
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})}
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, what: str) -> None:
        self.answer(404, {"error": f"{what} not found"}, {"X-Error-Code": what, "X-Error-Message": f"{what} not found"})

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            self.hub.bodies.append(body)
            status = self.hub.fault(f"{self.command} {path}")
            if status is not None:
                self.answer(status, {"error": f"injected {status}"})
            elif (
                self.command in ("POST", "PUT")
                and self.headers.get("Authorization") != f"Bearer {TOKEN}"
                and (not path.startswith(("/large/", "/api/validate-yaml")))
            ):
                self.answer(401, {"error": "Invalid credentials"})
            else:
                self.route(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def route(self, path: str, body: bytes) -> None:
        hub = self.hub
        if path == "/api/whoami-v2":
            return self.answer(200, {"name": "user", "type": "user", "orgs": [], "auth": {"type": "access_token"}})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'user'}/{asked['name']}"
            if repo in hub.repos:
                return self.answer(409, {"error": "exists", "url": f"{hub.endpoint}/{repo}"})
            hub.put(repo, {})
            if asked.get("visibility") == "private" or asked.get("private"):
                hub.private.add(repo)
            return self.answer(200, {"url": f"{hub.endpoint}/{repo}", "name": repo, "id": "1"})
        if match := re.fullmatch(r"/large/([0-9a-f]{64})", path):
            if hashlib.sha256(body).hexdigest() != match[1]:
                return self.answer(400, {"error": "sha256"})
            hub.large[match[1]] = body
            return self.answer(200)
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = []
            for item in json.loads(body)["objects"]:
                here = item["oid"] in hub.large
                action = {"actions": {"upload": {"href": f"{hub.endpoint}/large/{item['oid']}"}}}
                objects.append(item if here else {**item, **action})
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", path):
            return self.resolve(*match.groups())
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z\-]+)/(refs/pr/\d+|[^/]+)(?:/(.*))?)?", path):
            repo, what, revision, _rest = match.groups()
            if repo not in hub.repos:
                return self.missing("RepoNotFound")
            found = hub.find(repo, revision or "main")
            if found is None:
                return self.missing("RevisionNotFound")
            return self.repository(repo, what or "revision", revision or "main", *found, body)
        return self.missing("EntryNotFound")

    def resolve(self, repo: str, revision: str, name: str) -> None:
        if repo not in self.hub.repos:
            return self.missing("RepoNotFound")
        found = self.hub.find(repo, revision)
        if found is None:
            return self.missing("RevisionNotFound")
        commit, tree = found
        if name not in tree:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = tree[name]
        return self.answer(200, content, {"ETag": f'"{git_oid(content)}"', "X-Repo-Commit": commit})

    def repository(self, repo: str, what: str, revision: str, commit: str, tree: dict[str, bytes], body: bytes) -> None:
        if what == "revision":
            siblings = [{"rfilename": name} for name in sorted(tree)]
            about = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": [], "downloads": 0}
            return self.answer(200, {**about, "private": repo in self.hub.private})
        if what == "tree":
            return self.answer(
                200,
                [{"type": "file", "path": k, "size": len(v), "oid": git_oid(v)} for k, v in sorted(tree.items())],
            )
        if what == "preupload":
            files = []
            for item in json.loads(body)["files"]:
                large, old = item["path"].endswith((".safetensors", ".png")), tree.get(item["path"])
                oid = None if old is None else hashlib.sha256(old).hexdigest() if large else git_oid(old)
                mode = "lfs" if large else "regular"
                files.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            return self.answer(200, {"files": files})
        if what == "commit":
            files = {}
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
            request = "create_pr=1" in self.path
            branch = "refs/pr/1" if request else revision
            oid = self.hub.put(repo, files, branch)
            answer = {"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid, "success": True}
            pull = {"pullRequestUrl": f"{self.hub.endpoint}/{repo}/discussions/1"} if request else {}
            return self.answer(200, {**answer, **pull})
        return self.missing("EntryNotFound")


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def point_client_at(hub: Hub, monkeypatch, cache: str) -> None:
    """Makes this process's huggingface_hub talk to `hub`; a new process needs HF_ENDPOINT and its kin instead."""
    from huggingface_hub import constants, hf_api

    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
