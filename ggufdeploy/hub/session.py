"""The one way to the Hub: endpoint, token policy, questions and ranges of files."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from ggufdeploy import __version__
from ggufdeploy.errors import NotFound, Offline, Unreachable
from ggufdeploy.hub.cache import find_cached, list_cached
from ggufdeploy.hub.catalog import GgufFile
from ggufdeploy.hub.endpoint import Endpoint
from ggufdeploy.hub.retry import FOR_DOWNLOADS, FOR_QUESTIONS, RetryPolicy, retrying
from ggufdeploy.settings import DEFAULT_ENDPOINT, Settings

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

T = TypeVar("T")
_NAME = "ggufdeploy"
_NAMED = 3  # models of the cache that an error names
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@functools.cache
def _http() -> ModuleType:
    """Import and configure the HTTP side on first use. Writes two variables that huggingface_hub reads at import."""
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # plain ranges resume; the Xet client does not
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from ggufdeploy.hub import http

    http.install()
    return http


@dataclass(frozen=True)
class Body:
    """Part of a file on its way. offset: of its first byte in the file; chunks: as they arrive, to be read once.

    hang_up: ends the connection, so that waiting for the next chunk raises Unreachable; may be called by any thread.
    """

    offset: int
    chunks: Iterator[bytes]
    hang_up: Callable[[], None]


class HubClient:
    """Asks one endpoint. Cheap to make; the connection and the libraries come with the first question.

    The token goes only to an endpoint that may have it (see Endpoint), and never along with a redirect or a link to
    another host. Raises BadValue for an endpoint that is not encrypted. May be used by several threads.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        questions: RetryPolicy = FOR_QUESTIONS,
        downloads: RetryPolicy = FOR_DOWNLOADS,
    ) -> None:
        self.settings, self.questions, self.downloads = settings, questions, downloads
        self._endpoint = Endpoint.of(settings)
        self.endpoint = self._endpoint.url
        self._token = settings.hf_token if self._endpoint.gets_token else None
        self._revisions: dict[tuple[str, str], str] = {}

    def resolve_commit(self, repo: str, revision: str | None = None) -> str:
        """Return the commit that a branch or tag (None: main) names now; a commit is returned as it is.

        Raises NotFound, AccessDenied, Unreachable, Offline, RateLimited.
        """
        name = revision or "main"
        if _COMMIT.fullmatch(name):
            return name
        commit = self._ask(repo, lambda api: api.model_info(repo, revision=name).sha) or ""
        if not _COMMIT.fullmatch(commit):
            raise Unreachable(self.endpoint, f"{self.endpoint} names no commit for {repo}: it is not a Hub")
        self._revisions[repo, commit] = name
        return commit

    def revision_of(self, repo: str, commit: str) -> str | None:
        """Return the branch or tag that this client resolved to `commit`, None when it was given as a commit."""
        return self._revisions.get((repo, commit))

    def list_files(self, repo: str, commit: str) -> list[GgufFile]:
        """Return all files of a repository with bytes and checksums. Raises as resolve_commit."""
        from huggingface_hub.hf_api import RepoFile

        def listing(api: HfApi) -> list[GgufFile]:
            entries = api.list_repo_tree(repo, recursive=True, revision=commit)
            return [_listed(entry) for entry in entries if isinstance(entry, RepoFile)]

        return self._ask(repo, listing)

    def search(self, query: str, limit: int) -> list[str]:
        """Return up to `limit` GGUF repositories whose names contain `query`, most downloaded first."""

        def found(api: HfApi) -> list[str]:
            return [m.id for m in api.list_models(search=query, filter="gguf", sort="downloads", limit=limit)]

        return self._ask(query, found)

    @contextlib.contextmanager
    def open_range(self, repo: str, commit: str, file: GgufFile, start: int, end: int) -> Iterator[Body]:
        """Open bytes [start, end) of a file at a pinned commit; one attempt, resolving the file's address anew.

        A server that ignores ranges gives a Body that starts at 0. The body may be longer or shorter than asked for.
        Raises Unreachable for everything worth another attempt, also from `chunks`; NotFound, AccessDenied, Offline.
        """
        http = self._online(repo)
        url = f"{self.endpoint}/{repo}/resolve/{commit}/{quote(file.path)}"
        sent = http.build_hf_headers(token=False, library_name=_NAME, library_version=__version__)
        headers = {**sent, "Accept-Encoding": "identity"}
        if start > 0 or end < file.n_bytes:
            headers["Range"] = f"bytes={start}-{end - 1}"
        session = http.get_session()
        request = session.build_request("GET", url, headers=headers)
        with http.token_for(self.endpoint, self._token):
            response = session.send(request, stream=True)
        with contextlib.closing(response):
            host = response.url.host
            with http.library_errors(repo, endpoint=self._endpoint, token_hint=self._token_hint()):
                http.hf_raise_for_status(response)
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise http.not_a_file(host, file.path)
            _check_identity(response, file, host)
            offset = _checked_offset(response, start, end, file.n_bytes, host)
            yield Body(offset, _chunks(http, response, host), functools.partial(_hang_up, response))

    def _ask(self, repo: str, question: Callable[[HfApi], T]) -> T:
        http = self._online(repo)
        from huggingface_hub import HfApi

        api = HfApi(self.endpoint, token=False, library_name=_NAME, library_version=__version__)

        def attempt() -> T:
            with (
                http.token_for(self.endpoint, self._token),
                http.library_errors(repo, endpoint=self._endpoint, token_hint=self._token_hint()),
            ):
                return question(api)

        return retrying(self.questions, attempt)

    def _online(self, repo: str) -> ModuleType:
        if self.settings.offline:
            raise _offline(repo, self.settings)
        return _http()

    def _token_hint(self) -> str:
        if self.settings.hf_token is None:
            return "run `hf auth login` or set HF_TOKEN"
        if not self._endpoint.gets_token:
            only = f"only to {DEFAULT_ENDPOINT} and https endpoints named in GGUFDEPLOY_TRUSTED_ENDPOINTS"
            return f"note that your token is not sent to {self.endpoint}, {only}"
        return "check that your token may read it: hf auth whoami"


def _offline(repo: str, settings: Settings) -> Offline:
    """Return the error that says what is here of `repo` (a repository, or what was searched for), and what can run."""
    here = find_cached(repo, settings) if "/" in repo else []
    if here:
        names = ", ".join(model.quantization for model in here)
        message = f"HF_HUB_OFFLINE is set, and of {repo} only this is in the cache: {names}"
        return Offline(settings.hf_endpoint, message, hint=f"ggufdeploy run {repo}:{here[0].quantization}")
    message = f"HF_HUB_OFFLINE is set and {repo} is not in the cache"
    others = list_cached(settings)
    if not others:
        return Offline(settings.hf_endpoint, f"{message}, which holds no model", hint="unset HF_HUB_OFFLINE")
    some = ", ".join(f"{model.repo}:{model.quantization}" for model in others[:_NAMED])
    more = f" and {len(others) - _NAMED} more (ggufdeploy list)" if len(others) > _NAMED else ""
    return Offline(settings.hf_endpoint, message, hint=f"unset HF_HUB_OFFLINE, or run what is here: {some}{more}")


def search_names(query: str, client: HubClient, limit: int = 5) -> list[str]:
    """Return GGUF repositories on the Hub that a mistyped or unknown name may mean, most downloaded first.

    Raises Unreachable, Offline, RateLimited.
    """
    words = re.sub(r"[^A-Za-z0-9.]+", " ", query).strip()
    try:
        return client.search(words, limit) if words else []
    except NotFound:
        return []


def _listed(entry: object) -> GgufFile:
    """Build a GgufFile from the library's RepoFile; checksums that are not hex are dropped: they become file names."""
    path, n_bytes, lfs = getattr(entry, "path", ""), getattr(entry, "size", 0), getattr(entry, "lfs", None)
    if lfs is not None:
        sha256 = str(lfs.sha256)
        return GgufFile(path, n_bytes, sha256 if _SHA256.fullmatch(sha256) else None)
    oid = str(getattr(entry, "blob_id", ""))
    return GgufFile(path, n_bytes, None, oid if _COMMIT.fullmatch(oid) else None)


def _check_identity(response: httpx2.Response, file: GgufFile, host: str) -> None:
    """Refuse a body that is encoded, or that the Hub announces under another sha256 than the listing's."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Unreachable(host, f"{host} sends {file.path} compressed, which cannot be resumed")
    for hop in (*response.history, response):
        linked = hop.headers.get("X-Linked-Etag", "").strip('"')
        if _SHA256.fullmatch(linked) and file.sha256 not in (None, linked):
            raise Unreachable(host, f"the Hub has another {file.path} now: sha256 {linked[:12]}… was not listed")


def _checked_offset(response: httpx2.Response, start: int, end: int, n_bytes: int, host: str) -> int:
    """Return the offset of the body's first byte. A 206 must say exactly the range and size that were asked for."""
    if response.status_code == 206:
        said, expected = response.headers.get("Content-Range", ""), f"bytes {start}-{end - 1}/{n_bytes}"
        if said != expected:
            raise Unreachable(host, f"{host} sends {said[:60]!r} where {expected!r} was asked for")
        return start
    if response.status_code == 200:
        return 0
    raise Unreachable(host, f"{host} answers {response.status_code} to a request for a file")


def _hang_up(response: httpx2.Response) -> None:
    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream is not None else None
    if connection is not None:
        with contextlib.suppress(OSError):  # it has ended by itself
            connection.shutdown(socket.SHUT_RDWR)


def _chunks(http: ModuleType, response: httpx2.Response, host: str) -> Iterator[bytes]:
    with http.transport_errors(host):
        yield from response.iter_raw()
