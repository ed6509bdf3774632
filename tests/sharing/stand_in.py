"""A stand-in for the Hugging Face hub: the part of its HTTP interface that huggingface-hub's own client uses, in memory.

It listens on this machine alone. Files that the real hub keeps as LFS objects are kept so here: uploaded by their checksum,
and served by a redirect.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_owner"
_LFS = (".safetensors", ".bin", ".png")
_MOST = 2**26


@dataclass
class Repository:
    """Commits by their hash, and branches as lists of them."""

    is_private: bool = False
    is_gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, list[str]] = field(default_factory=lambda: {"main": []})
    messages: list[str] = field(default_factory=list)

    def add(self, branch: str, files: dict[str, bytes], message: str = "") -> str:
        """A commit on top of a branch."""
        before = self.commits[self.branches[branch][-1]] if self.branches[branch] else {}
        digest = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[digest] = {**before, **files}
        self.branches[branch].append(digest)
        self.messages.append(message)
        return digest

    def commit(self, revision: str) -> str | None:
        """The hash that a branch or a hash stands for."""
        if revision in self.branches:
            return self.branches[revision][-1] if self.branches[revision] else None
        return revision if revision in self.commits else None


class Hub(ThreadingHTTPServer):
    """The server and what it holds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.broken: dict[str, int] = {}  # a part of a path, and the status that it is answered with
        self.then: dict[str, Callable[[], object]] = {}  # what happens after a path that ends so was got

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, method: str) -> list[str]:
        """The paths asked for by a method, in order."""
        return [path for found, path in self.requests if found == method]


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join(10)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"
    timeout = 10

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(min(size, _MOST))
        broken = next((status for part, status in self.server.broken.items() if part in path), None)
        if broken is not None:
            self._json({"error": "the stand-in is told to fail"}, broken)
            return
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            self._api(parts[1:], body)
        elif parts[0] == "objects":
            self._object(parts[1], body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), *parts[3:])
        else:
            self._refuse(404, "EntryNotFound")
        for ending, call in self.server.then.items():
            if self.command == "GET" and path.endswith(ending):
                call()

    @property
    def _is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _api(self, parts: list[str], body: bytes) -> None:
        if parts == ["validate-yaml"]:
            is_wrong = 'license: "no-license-that-the-hub-knows"' in json.loads(body)["content"]
            self._json(
                {"errors": [{"message": '"license" must be one of a list'}] if is_wrong else []}, 400 if is_wrong else 200
            )
        elif self.command == "POST" and not self._is_owner:
            self._refuse(401, "", "Invalid username or password.")
        elif parts == ["repos", "create"]:
            self._create(json.loads(body))
        elif parts[0] == "models":
            self._model("/".join(parts[1:3]), parts[3:], body)
        else:
            self._refuse(404, "")

    def _create(self, asked: dict) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "somebody-else":
            self._refuse(403, "", "You don't have the rights to create a model under the namespace")
        elif name in self.server.repositories:
            self._json({"url": f"{self.server.address}/{name}", "error": "You already created this model repo"}, 409)
        else:
            is_private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.server.repositories[name] = Repository(is_private)
            self._json({"url": f"{self.server.address}/{name}"})

    def _model(self, name: str, what: list[str], body: bytes) -> None:
        repository = self._found(name)
        if repository is None:
            return
        if not what or what[0] == "revision":
            sha = repository.commit(what[1] if what else "main")
            self._json({"id": name, "private": repository.is_private, "sha": sha})
        elif what[0] == "branch":
            repository.branches.setdefault(what[1], list(repository.branches["main"]))
            self._json({})
        elif what[1] not in repository.branches:
            self._refuse(404, "RevisionNotFound")
        elif what[0] == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "lfs" if path.endswith(_LFS) else "regular"} for path in files]
            self._json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif what[0] == "commit":
            self._commit(name, repository, what[1], body)

    def _commit(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        message = next(line["value"]["summary"] for line in lines if line["key"] == "header")
        digest = repository.add(branch, files, message)
        address = f"{self.server.address}/{name}"
        found = {"commitUrl": f"{address}/commit/{digest}", "commitOid": digest, "success": True}
        self._json({**found, "pullRequestUrl": f"{address}/discussions/1"})

    def _batch(self, asked: dict) -> None:
        def action(thing: dict) -> dict:
            upload = {"href": f"{self.server.address}/objects/{thing['oid']}", "header": {}}
            return {"oid": thing["oid"], "size": thing["size"], "actions": {"upload": upload}}

        self._json({"transfer": "basic", "objects": [action(thing) for thing in asked["objects"]]})

    def _object(self, digest: str, body: bytes) -> None:
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != digest:
                self._refuse(400, "")
                return
            self.server.objects[digest] = body
            self._json({})
        else:
            self._send(200, self.server.objects[digest], {"ETag": f'"{digest}"'})

    def _file(self, name: str, revision: str, *rest: str) -> None:
        repository = self._found(name)
        if repository is None:
            return
        commit = repository.commit(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return
        content = repository.commits[commit].get("/".join(rest))
        headers = {"X-Repo-Commit": commit}
        if content is None:
            self._refuse(404, "EntryNotFound", headers=headers)
        elif rest[-1].endswith(_LFS):
            digest = hashlib.sha256(content).hexdigest()
            self.server.objects[digest] = content
            linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            place = self.server.address.replace("127.0.0.1", "localhost")  # another host, as the hub's store of objects is
            self._send(302, b"", {**headers, **linked, "Location": f"{place}/objects/{digest}"})
        else:
            self._send(200, content, {**headers, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _found(self, name: str) -> Repository | None:
        """The repository, or None after a refusal; to strangers the hub does not tell a private one from none."""
        repository = self.server.repositories.get(name)
        if repository is None or (repository.is_private and not self._is_owner):
            if self._is_owner:
                self._refuse(404, "RepoNotFound", "Repository not found")
            else:
                self._refuse(401, "RepoNotFound", "Invalid username or password.")
            return None
        if repository.is_gated and not self._is_owner:
            self._refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
            return None
        return repository

    def _json(self, content: dict, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str = "", headers: dict[str, str] | None = None) -> None:
        said = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, b"{}", {**(headers or {}), **{name: value for name, value in said.items() if value}})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
