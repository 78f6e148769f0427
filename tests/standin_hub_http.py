"""The two HTTP servers of tests/standin_hub.py: the Hub's API with /resolve, and its CDN."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

if TYPE_CHECKING:
    from tests.standin_hub import StandinHub

_CHUNK_BYTES = 64 << 10
_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|refs|paths-info|auth-check)(?:/([^/]+)(?:/(.*))?)?)?")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Logged:
    """One request as received. server: "hub" or "cdn"; range and authorization: the headers, None when absent."""

    server: str
    method: str
    path: str
    range: str | None
    authorization: str | None


class Server(ThreadingHTTPServer):
    """A loopback server that ends its connections and threads when stopped."""

    daemon_threads = False

    def __init__(self, hub: StandinHub, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # the client closed it first
                continue
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when a client hangs up; anything else is a bug of this file."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """What both servers share: logging, answers, bodies with ranges and faults."""

    protocol_version = "HTTP/1.1"
    side = ""
    server: Server

    @property
    def hub(self) -> StandinHub:
        return self.server.hub

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing to stderr; `StandinHub.requests` has it."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        headers = self.headers
        self.hub.log(Logged(self.side, self.command, self.path, headers["Range"], headers["Authorization"]))
        self.answer(unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query))

    def do_POST(self) -> None:
        self.form = parse_qs(self.rfile.read(int(self.headers["Content-Length"] or 0)).decode())
        self.do_GET()

    def answer(self, path: str, query: dict[str, list[str]]) -> None:
        raise NotImplementedError

    def send_json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(key, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_refusal(self, status: int, code: str, message: str, **headers: str) -> None:
        self.send_json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message, **headers})

    def sent_status_fault(self, name: str) -> bool:
        """Answer with a "status" fault for `name`, if there is one."""
        fault = self.hub.take_fault(name, "status")
        if fault:
            self.send_json({"error": "fault"}, fault.status, fault.headers)
        return fault is not None

    def send_file(self, name: str, headers: Mapping[str, str]) -> None:
        """Send the file, or the range asked for, with whatever faults apply."""
        path = self.hub.root / name
        size = path.stat().st_size
        asked = None if self.command == "HEAD" else self.headers["Range"]
        if asked and self.hub.take_fault(name, "ignore_range"):
            asked = None
        bounds = _parse_range(asked, size) if asked else (0, size)
        if bounds is None:
            self.send_json({"error": "range"}, 416, {"Content-Range": f"bytes */{size}"})
            return
        start, end = bounds
        self.send_response(206 if asked else 200)
        if asked:
            shift = 1 if self.hub.take_fault(name, "wrong_range") else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{end - 1 + shift}/{size}")
        if self.hub.take_fault(name, "gzip"):
            self.send_header("Content-Encoding", "gzip")
        extra = bytes(1000 if self.hub.take_fault(name, "oversize") else 0)
        length = str(end - start + len(extra))
        for key, text in {**headers, "Accept-Ranges": "bytes", "Content-Length": length}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(name, path, start, end)
            self.wfile.write(extra)

    def _send_body(self, name: str, path: Path, start: int, end: int) -> None:
        fault = self.hub.take_fault(name, "cut", "stall", "slow")
        corrupt = self.hub.take_fault(name, "corrupt")
        limit = min(end, start + fault.at) if fault and fault.kind != "slow" else end
        for position, chunk in _chunks(path, start, limit):
            if corrupt and position <= corrupt.at < position + len(chunk):
                index = corrupt.at - position
                chunk = chunk[:index] + bytes([chunk[index] ^ 0xFF]) + chunk[index + 1 :]
            if fault and fault.kind == "slow" and self.hub.closing.wait(fault.seconds):
                limit = position
                break
            self.wfile.write(chunk)
        if limit < end:
            self.wfile.flush()
            if fault and fault.kind == "stall":
                self.hub.closing.wait(fault.seconds)
            self.close_connection = True


def _chunks(path: Path, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as stream:
        stream.seek(start)
        while start < end and (chunk := stream.read(min(_CHUNK_BYTES, end - start))):
            yield start, chunk
            start += len(chunk)


def _parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Return [start, end) for one range; None when it cannot be satisfied."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", text)
    if match is None or match[0] == "bytes=-":
        return 0, size
    if not match[1]:
        return max(0, size - int(match[2])), size
    start, end = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
    return (start, end) if start < end else None


class CdnHandler(_Handler):
    """Serves bytes at /blob/owner/repository/path, under an ETag of its own, as the Hub's CDN does."""

    side = "cdn"

    def answer(self, path: str, query: dict[str, list[str]]) -> None:
        name = path.removeprefix("/blob/")
        if self.hub.take_fault(name, "expired"):
            self.send_json({"error": "expired"}, 403)
        elif not self.sent_status_fault(name):
            self.send_file(name, {"ETag": f'"{hashlib.md5(name.encode()).hexdigest()}-22"'})


class HubHandler(_Handler):
    """Serves the API and /resolve."""

    side = "hub"

    def answer(self, path: str, query: dict[str, list[str]]) -> None:
        if path == "/api/agent-harnesses":
            self.send_json({"standardEnvVars": [], "harnesses": {}})
        elif path == "/api/models":
            self._search(query)
        elif match := _API.fullmatch(urlsplit(self.path).path):
            self._api(match[1], match[2] or "revision", unquote(match[3] or "main"), unquote(match[4] or ""), query)
        elif match := _RESOLVE.fullmatch(urlsplit(self.path).path):
            self._resolve(match[1], unquote(match[2]), unquote(match[3]))
        else:
            self.send_refusal(404, "EntryNotFound", f"no such page: {path}")

    def _token_known(self) -> bool:
        return (self.headers["Authorization"] or "").removeprefix("Bearer ") in self.hub.tokens

    def _commit_or_refusal(self, repo: str, revision: str) -> str | None:
        """Return the commit, or None after having answered that there is none."""
        hidden = repo in self.hub.private and not self._token_known()
        if hidden or not (self.hub.root / repo).is_dir():
            self.send_refusal(404 if self.headers["Authorization"] else 401, "RepoNotFound", "Repository not found")
            return None
        commit = self.hub.resolve_commit(repo, revision)
        if commit is None:
            self.send_refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _api(self, repo: str, what: str, revision: str, folder: str, query: dict[str, list[str]]) -> None:
        if self.sent_status_fault(f"{repo}/{what}"):
            return
        commit = self._commit_or_refusal(repo, revision)
        if commit is None:
            return
        if what == "tree":
            self._tree(repo, revision, folder, query)
        elif what == "refs":
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}
            self.send_json({"branches": [branch], "tags": [], "converts": []})
        elif what == "paths-info":
            wanted = self.form.get("paths", [])
            self.send_json([self._entry(repo, path) for path in self.hub.files(repo) if path in wanted])
        elif what == "auth-check":
            self._refuse_gated(repo) or self.send_json({})
        else:
            self.send_json(self._info(repo, commit, blobs="blobs" in query))

    def _info(self, repo: str, commit: str, *, blobs: bool) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in self.hub.files(repo)]
        if blobs:
            for sibling in siblings:
                entry = self._entry(repo, sibling["rfilename"])
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if "lfs" in entry:
                    sibling["lfs"] = {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 135}
        return {
            "id": repo, "modelId": repo, "sha": commit, "private": repo in self.hub.private, "downloads": 0,
            "gated": "manual" if repo in self.hub.gated else False, "tags": ["gguf"], "siblings": siblings,
        }  # fmt: skip

    def _entry(self, repo: str, path: str) -> dict[str, Any]:
        name = f"{repo}/{path}"
        size, oid = (self.hub.root / name).stat().st_size, self.hub.oid(name)
        if not self.hub.is_lfs(path):
            return {"type": "file", "path": path, "size": size, "oid": oid}
        pointer = hashlib.sha1(oid.encode()).hexdigest()
        lfs = {"oid": oid, "size": size, "pointerSize": 135}
        return {"type": "file", "path": path, "size": size, "oid": pointer, "lfs": lfs}

    def _tree(self, repo: str, revision: str, folder: str, query: dict[str, list[str]]) -> None:
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in self.hub.files(repo) if path.startswith(prefix)]
        tops = {path: prefix + path.removeprefix(prefix).split("/")[0] for path in inside}
        folders = sorted({top for path, top in tops.items() if top != path})
        entries: list[dict[str, Any]] = [{"type": "directory", "path": top, "oid": "0" * 40} for top in folders]
        entries += [self._entry(repo, path) for path in inside if recursive or tops[path] == path]
        self._send_page(entries, query, f"/api/models/{repo}/tree/{quote(revision, safe='')}?recursive={recursive}")

    def _search(self, query: dict[str, list[str]]) -> None:
        if self.sent_status_fault("search"):
            return
        words = query.get("search", [""])[0].lower().split()
        owner = query.get("author", [""])[0]
        found = [
            {"id": repo, "modelId": repo, "downloads": 0, "tags": ["gguf"], "private": False}
            for repo in self.hub.repos()
            if repo not in self.hub.private
            and all(word in repo.lower() for word in words)
            and repo.startswith(f"{owner}/" if owner else "")
        ]
        self._send_page(found, query, "/api/models?x=0")

    def _send_page(self, entries: list[dict[str, Any]], query: dict[str, list[str]], next_path: str) -> None:
        start = int(query.get("cursor", ["0"])[0])
        end = start + min(self.hub.page_size, int(query.get("limit", ["1000"])[0]))
        link = {"Link": f'<{self.hub.url}{next_path}&cursor={end}>; rel="next"'} if end < len(entries) else {}
        self.send_json(entries[start:end], headers=link)

    def _refuse_gated(self, repo: str) -> bool:
        if repo not in self.hub.gated or self._token_known():
            return False
        message = f"Access to model {repo} is restricted. You must have access to it and be authenticated."
        self.send_refusal(403 if self.headers["Authorization"] else 401, "GatedRepo", message)
        return True

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self._commit_or_refusal(repo, revision)
        if commit is None or self._refuse_gated(repo):
            return
        name = f"{repo}/{path}"
        if path not in self.hub.files(repo):
            self.send_refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
            return
        etag = self.hub.oid(name)
        if not self.hub.is_lfs(path):
            self.send_file(name, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})
            return
        if self.hub.take_fault(name, "wrong_etag"):
            etag = hashlib.sha256(etag.encode()).hexdigest()
        self.send_response(302)
        self.send_header("Location", f"{self.hub.cdn_url}/blob/{quote(name)}?Signature=secret")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-Etag", f'"{etag}"')
        self.send_header("X-Linked-Size", str((self.hub.root / name).stat().st_size))
        self.send_header("Content-Length", "0")
        self.end_headers()
