"""What the two servers say: the Hub's API with /resolve, and its CDN."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.standin_hub.body import FileHandler
from tests.standin_hub.faults import Fault

_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|refs|paths-info|auth-check)(?:/([^/]+)(?:/(.*))?)?)?")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class CdnHandler(FileHandler):
    """Serves bytes at /blob/owner/repository/path, under an ETag of its own, as the Hub's CDN does."""

    side = "cdn"

    def answer(self, path: str, query: dict[str, list[str]]) -> None:
        """Send the file, unless the link has expired."""
        name = path.removeprefix("/blob/")
        owner, _, rest = name.partition("/")
        repo, _, file = rest.partition("/")
        if file not in self.hub.files(f"{owner}/{repo}"):
            self.send_json({"error": "no such file"}, 404)
        elif self.hub.faults.take(name, "expired") or self.hub.is_expired(name, query.get("Signature", [""])[0]):
            self.send_json({"error": "expired"}, 403)
        elif fault := self.hub.faults.take(name, "status"):
            self.send_json({"error": "fault"}, fault.status, fault.headers)
        else:
            self.send_file(name, {"ETag": f'"{hashlib.md5(name.encode()).hexdigest()}-22"'})


class HubHandler(FileHandler):
    """Serves the API and /resolve."""

    side = "hub"

    def answer(self, path: str, query: dict[str, list[str]]) -> None:
        """Find out what is asked for."""
        raw = urlsplit(self.path).path
        if path == "/api/agent-harnesses":
            self.send_json({"standardEnvVars": [], "harnesses": {}})
        elif path == "/api/whoami-v2":
            self._whoami()
        elif path == "/api/models":
            self._search(query)
        elif match := _API.fullmatch(raw):
            self._api(match[1], match[2] or "revision", unquote(match[3] or "main"), unquote(match[4] or ""), query)
        elif match := _RESOLVE.fullmatch(raw):
            self._resolve(match[1], unquote(match[2]), unquote(match[3]))
        elif path in ("/_log", "/_fault", "/_reset") and self.hub.controlled:
            self._control(path)
        else:
            self.send_refusal(404, "EntryNotFound", f"no such page: {path}")

    def _control(self, path: str) -> None:
        """Read the log, add a fault, forget both: the test's side of a stand-in in another process."""
        if (path == "/_log") != (self.command == "GET"):
            self.send_json({"error": "GET /_log, POST /_fault, POST /_reset"}, 405)
        elif path == "/_log":
            self.send_json([dataclasses.asdict(each) for each in self.hub.requests if each.path[:2] != "/_"])
        elif path == "/_reset":
            self.hub.reset()
            self.send_json({})
        else:
            try:
                fault = Fault(**json.loads(self.posted))
            except (TypeError, ValueError) as error:
                self.send_json({"error": str(error)}, 400)
                return
            self.hub.faults.add(fault)
            self.send_json(dataclasses.asdict(fault))

    def _whoami(self) -> None:
        if self._token_known():
            self.send_json({"type": "user", "name": "stand-in", "auth": {"type": "access_token"}, "orgs": []})
        else:
            self.send_refusal(401, "InvalidToken", "Invalid username or password.")

    def _token_known(self) -> bool:
        return (self.headers["Authorization"] or "").removeprefix("Bearer ") in self.hub.tokens

    def _commit_or_refusal(self, repo: str, revision: str) -> str | None:
        """Return the commit, or None after having answered that there is none."""
        hidden = repo in self.hub.private and not self._token_known()
        if hidden or not self.hub.has_repo(repo):
            self.send_refusal(404 if self.headers["Authorization"] else 401, "RepoNotFound", "Repository not found")
            return None
        commit = self.hub.resolve_commit(repo, revision)
        if commit is None:
            self.send_refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _api(self, repo: str, what: str, revision: str, folder: str, query: dict[str, list[str]]) -> None:
        if fault := self.hub.faults.take(f"{repo}/{what}", "status"):
            self.send_json({"error": "fault"}, fault.status, fault.headers)
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
            wanted = parse_qs(self.posted).get("paths", [])
            self.send_json([self._entry(repo, path) for path in self.hub.files(repo) if path in wanted])
        elif what == "auth-check":
            if not self._refuse_gated(repo):
                self.send_json({})
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
        if fault := self.hub.faults.take("search", "status"):
            self.send_json({"error": "fault"}, fault.status, fault.headers)
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
        link = {"Link": f'<{self.base_url()}{next_path}&cursor={end}>; rel="next"'} if end < len(entries) else {}
        self.send_json(entries[start:end], headers=link)

    def _refuse_gated(self, repo: str) -> bool:
        if repo not in self.hub.gated or self._token_known():
            return False
        message = f"Access to model {repo} is restricted. You must have access to it and be authenticated."
        self.send_refusal(403 if self.headers["Authorization"] else 401, "GatedRepo", message)
        return True

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        name = f"{repo}/{path}"
        if fault := self.hub.faults.take(name, "resolve_status"):
            self.send_json({"error": "fault"}, fault.status, fault.headers)
            return
        commit = self._commit_or_refusal(repo, revision)
        if commit is None or self._refuse_gated(repo):
            return
        if path not in self.hub.files(repo):
            self.send_refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
            return
        headers = self._identity(name, path, commit)
        if not self.hub.is_lfs(path) or not self.hub.redirect:
            self.send_file(name, headers)
            return
        host = urlsplit(self.base_url()).hostname
        headers.pop("ETag", None)
        headers["Location"] = f"http://{host}:{self.hub.port('cdn')}/blob/{quote(name)}?{self.hub.sign(name)}"
        self.send_response(302)
        for key, text in {**headers, "Content-Length": "0"}.items():
            self.send_header(key, text)
        self.end_headers()

    def _identity(self, name: str, path: str, commit: str) -> dict[str, str]:
        """Return the headers that say which file of which commit this is, with the faults that apply to them."""
        take = self.hub.faults.take
        oid = self.hub.oid(name)
        if take(name, "wrong_etag"):
            oid = hashlib.sha256(oid.encode()).hexdigest()
        if take(name, "other_commit"):
            commit = hashlib.sha1(commit.encode()).hexdigest()
        headers = {} if take(name, "no_commit") else {"X-Repo-Commit": commit}
        if not take(name, "no_etag"):
            headers["ETag"] = f'"{oid}"'
            if self.hub.is_lfs(path):
                headers["X-Linked-Etag"] = f'"{oid}"'
        if self.hub.is_lfs(path):
            headers["X-Linked-Size"] = str((self.hub.root / name).stat().st_size)
        return headers
