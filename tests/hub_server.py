"""A Hub on the loopback: as much of its HTTP interface as huggingface_hub and datasets use to create, fill and fetch.

It keeps everything in memory, remembers every request, and fails on demand. A data set is the repository
"datasets/user/name".
"""

import base64
import hashlib
import io
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_CanaryCanaryCanaryCanary"
LARGE = (".safetensors", ".png")


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def known(files: dict[str, bytes]) -> set[str]:
    """The files and all folders that hold some."""
    return set(files) | {str(parent) for name in files for parent in Path(name).parents} - {"."}


def entry(name: str, files: dict[str, bytes]) -> dict:
    """A file, or a folder of files, as the Hub lists it."""
    if name not in files:
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    found = {"type": "file", "path": name, "size": len(files[name]), "oid": git_oid(files[name])}
    if name.endswith(LARGE):
        found["lfs"] = {"oid": hashlib.sha256(files[name]).hexdigest(), "size": len(files[name]), "pointerSize": 134}
    return found


class Hub:
    """The state: `repos[name][commit]` is {path: bytes}; `refs[name][branch]` is a commit."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
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

    def missing(self, what: str, status: int = 404) -> None:
        text = f"{what} not found"
        self.answer(status, {"error": text}, {"X-Error-Code": what, "X-Error-Message": text})

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
                and "/paths-info/" not in path
            ):
                self.answer(401, {"error": "Invalid credentials"})
            elif any(f"/{name}/" in f"{path}/" for name in self.hub.private) and "Authorization" not in self.headers:
                self.missing("RepoNotFound", 401)
            elif any(f"/{name}/resolve/" in path for name in self.hub.gated):
                self.missing("GatedRepo", 403)
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
        if match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", path):
            return self.resolve(*match.groups())
        if match := re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/([a-z\-]+)/(refs/pr/\d+|[^/]+)(?:/(.*))?)?", path
        ):
            kind, repo, what, revision, rest = match.groups()
            repo = repo if kind == "models" else f"datasets/{repo}"
            if repo not in hub.repos:
                return self.missing("RepoNotFound")
            found = hub.find(repo, revision or "main")
            if found is None:
                return self.missing("RevisionNotFound")
            if what == "tree":
                return self.tree(found[1], rest or "")
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
        headers = {"ETag": f'"{git_oid(content)}"', "X-Repo-Commit": commit}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.answer(206, content[first : last + 1], headers)
        return self.answer(200, content, headers)

    def tree(self, files: dict[str, bytes], folder: str) -> None:
        """The files and folders in `folder`, with `recursive` those below it too."""
        names = {name for name in known(files) if not folder or name.startswith(f"{folder}/")}
        if folder and not names:
            return self.missing("EntryNotFound")
        if parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() not in ("true", "1"):
            names = {name for name in names if str(Path(name).parent) == (folder or ".")}
        return self.answer(200, [entry(name, files) for name in sorted(names)])

    def repository(self, repo: str, what: str, revision: str, commit: str, tree: dict[str, bytes], body: bytes) -> None:
        if what == "revision":
            siblings = [{"rfilename": name} for name in sorted(tree)]
            about = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": [], "downloads": 0}
            return self.answer(200, {**about, "private": repo in self.hub.private})
        if what == "paths-info":
            asked = {name.strip("/") for name in parse_qs(body.decode()).get("paths", [])}
            there = asked & known(tree)
            return self.answer(200, [entry(name, tree) for name in sorted(there)])
        if what == "preupload":
            files = []
            for item in json.loads(body)["files"]:
                large, old = item["path"].endswith(LARGE), tree.get(item["path"])
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


def point_datasets_at(hub: Hub, monkeypatch, cache: str) -> None:
    """The same for this process's `datasets`, after `point_client_at`."""
    from datasets import config

    monkeypatch.setattr(config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(config, "HUB_DATASETS_URL", hub.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", Path(cache))
    monkeypatch.setattr(config, "DOWNLOADED_DATASETS_PATH", Path(cache) / "downloads")


def environment_at(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """The environment of a new process that talks to `hub` and keeps its caches in `home`."""
    left_out = ("HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "LATENTIA_CACHE", "HF_HUB_OFFLINE")
    kept = {key: value for key, value in os.environ.items() if key not in left_out}
    return {
        **kept,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def image_dataset(count: int = 32, shards: int = 1, seed: int = 0) -> dict[str, bytes]:
    """A data set repository as `push_to_hub` of `datasets` lays it out: grey 8 x 8 images, dark and light ones."""
    import datasets
    import numpy as np
    from PIL import Image

    draw, files = np.random.default_rng(seed), {}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])})
    for split, parts in (("train", shards), ("test", 1)):
        rows = []
        for i in range(count):
            pixels = draw.integers(0, 128, (8, 8), dtype=np.uint8) + np.uint8(127 * (i % 2))
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, format="PNG")
            rows.append({"image": {"bytes": content.getvalue(), "path": f"{i}.png"}, "label": i % 2})
        for part in range(parts):
            content = io.BytesIO()
            table = datasets.Dataset.from_list(
                rows[part * count // parts : (part + 1) * count // parts], features=features
            )
            table.to_parquet(content)
            files[f"data/{split}-{part:05d}-of-{parts:05d}.parquet"] = content.getvalue()
    configs = "configs:\n- config_name: default\n  data_files:\n" + "".join(
        f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "test")
    )
    files["README.md"] = f"---\nlicense: cc0-1.0\n{configs}---\n\n# Pictures\n".encode()
    files[".gitattributes"] = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"
    return files
