"""References: what people write to name a model."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from ggufdeploy.errors import BadValue
from ggufdeploy.hub.catalog import is_safe_path
from ggufdeploy.hub.companion import is_gguf_name
from ggufdeploy.hub.quantization import canonical_quantization, looks_like_quantization, parse_quantization

_EXAMPLES = (
    "write mixtral-8x22b, mixtral-8x22b:Q4_K_M, owner/repository:Q4_K_M, owner/repository/file.gguf or ./file.gguf"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
# Source: huggingface_hub utils/_validators.py, validate_repo_id: 96 characters, no "--", no "..", no "-" or "." last.
_REPO_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})


@dataclass(frozen=True)
class NameRef:
    """A profile's name or alias."""

    name: str
    quantization: str | None = None


@dataclass(frozen=True)
class RepoRef:
    """A repository on the Hub. file: path of one file in it; revision: branch, tag or commit, None for main."""

    repo: str
    quantization: str | None = None
    file: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class PathRef:
    """A file or directory on this machine."""

    path: Path


ModelRef = NameRef | RepoRef | PathRef


def parse_ref(text: str) -> ModelRef:
    """Return what `text` names. Looks at the disk: an existing .gguf file, or a directory with some, is a path.

    Raises BadValue for anything malformed; nothing of it reaches a URL or a path unchecked.
    """
    if not text.strip() or not text.isprintable() or text.startswith("-") or len(text) > 1024:
        raise _bad(text, "is not a model reference")
    text = text.strip()
    if _is_path(text):
        return PathRef(Path(text).expanduser() if text == "~" or text.startswith("~/") else Path(text))
    if any(" " in part for part in text.split("/")[:2]):
        raise _several_words(text)
    head, _, rest = text.partition("/")
    if "://" in text:
        return _parse_url(text)
    if head.lower() in _HOSTS:
        return _parse_url(f"https://{text}")
    if head.lower().startswith("hf:"):
        return parse_ref(text[3:])
    return _parse_repo(text, text) if rest else _parse_name(text)


def _several_words(text: str) -> BadValue:
    """Return the error for a pasted command line ("ollama run hf.co/owner/repo:Q4_0"), naming the model in it."""
    for word in text.split():
        try:
            reference = parse_ref(word)
        except BadValue:
            continue
        if isinstance(reference, RepoRef):
            return _bad(text, "is more than a model reference", f"write the model alone: {word}")
    return _bad(text, "is not a model reference")


def _bad(text: str, problem: str, hint: str = _EXAMPLES) -> BadValue:
    return BadValue("MODEL", f"{text[:200]!r} {problem}", hint=hint)


def _is_path(text: str) -> bool:
    if "://" in text:
        return False
    if text in (".", "..", "~") or text.startswith(("./", "../", "/", "~/")):
        return True
    if text.lower().endswith(".gguf") and text.count("/") < 2 and ":" not in text:
        return True
    if os.path.isdir(text):  # noqa: PTH112  # pathlib's raises for a name that is too long or may not be read
        return any(Path(text).glob("*.gguf")) or any(Path(text).glob("*/*.gguf"))
    return is_gguf_name(text) and os.path.isfile(text)  # noqa: PTH113  # as above


def _parse_name(text: str) -> NameRef:
    """Split off a quantization; other text after a colon belongs to the name, as in the alias "mixtral:8x22b"."""
    if not _NAME.fullmatch(text):
        raise _bad(text, "is not a model name")
    name, colon, tag = text.rpartition(":")
    if not tag or (colon and not name):
        raise _bad(text, "ends in the middle")
    if colon and looks_like_quantization(tag):
        return NameRef(name, canonical_quantization(tag) or tag)
    return NameRef(text)


def _parse_repo(text: str, whole: str) -> RepoRef:
    """Parse owner/repository[@revision][:QUANT or :file.gguf] or owner/repository[@revision]/path."""
    owner, _, rest = text.partition("/")
    name, slash, path = rest.removesuffix("/").partition("/")
    name, at, revision = name.partition("@")
    if slash:
        quantization, file = _path_in_repo(path, whole)
        return RepoRef(_repo(owner, name, whole), quantization, file, _revision(revision, whole) if at else None)
    tagged, colon, tag = (revision if at else name).partition(":")
    name, revision = (name, tagged) if at else (tagged, "")
    file = tag if tag.lower().endswith(".gguf") and is_safe_path(tag) else None
    return RepoRef(
        _repo(owner, name, whole),
        _quantization(tag, whole) if colon and file is None else None,
        file,
        _revision(revision, whole) if at else None,
    )


def _path_in_repo(path: str, whole: str) -> tuple[str | None, str | None]:
    """Return the quantization that a folder is named after, or the file."""
    if is_gguf_name(path) or not is_safe_path(path):
        _check_file(path, whole)
        return None, path
    quantization = parse_quantization(path)
    if quantization is None:
        raise _bad(whole, f"names neither a .gguf file nor the folder of a quantization: {path[:100]!r}")
    return quantization, None


def _repo(owner: str, name: str, whole: str) -> str:
    for part in (owner, name):
        if not _REPO_PART.fullmatch(part) or "--" in part or ".." in part:
            raise _bad(whole, f"does not name a repository: {part[:100]!r} is not an owner or repository name")
    return f"{owner}/{name}"


def _quantization(tag: str, whole: str) -> str:
    if not _TAG.fullmatch(tag):
        raise _bad(whole, f"has {tag[:40]!r} where a quantization such as Q4_K_M belongs")
    return canonical_quantization(tag) or tag


def _revision(revision: str, whole: str) -> str:
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise _bad(whole, f"has {revision[:100]!r} where a branch, tag or commit belongs")
    return revision


def _check_file(file: str, whole: str) -> None:
    if not is_gguf_name(file) or not is_safe_path(file):
        raise _bad(whole, f"does not name a .gguf file: {file[:100]!r}")


def _parse_url(text: str) -> RepoRef:
    try:
        url = urlsplit(text)
        host = url.hostname or ""
    except ValueError as error:
        raise _bad(text, f"is not a URL: {error}") from error
    if url.scheme in ("hf", "huggingface"):
        return _parse_repo((url.netloc + unquote(url.path)).strip("/").removeprefix("models/"), text)
    if url.scheme not in ("https", "http") or host not in _HOSTS or url.username is not None:
        raise _bad(
            text, "is not a Hugging Face URL", "write owner/repository; for a mirror set HF_ENDPOINT to its address"
        )
    parts = [unquote(part) for part in url.path.strip("/").split("/")]
    if len(parts) < 2 or parts[0] in ("datasets", "spaces", "collections", "models"):
        raise _bad(text, "does not point to a model repository")
    shown = parse_qs(url.query).get("show_file_info")
    if len(parts) == 2:
        if shown:
            _check_file(shown[0], text)
            return RepoRef(_repo(parts[0], parts[1], text), None, shown[0])
        return _parse_repo("/".join(parts), text)
    return _parse_view(parts, shown[0] if shown else None, text)


def _parse_view(parts: list[str], shown: str | None, text: str) -> RepoRef:
    """Parse /owner/repository/VIEW/revision[/path], as in the address bar of the Hub's web pages."""
    owner, name, view, *rest = parts
    repo = _repo(owner, name.partition("@")[0], text)
    if view not in ("tree", "blob", "resolve", "raw"):
        if is_gguf_name(parts[-1]) or parse_quantization("/".join(parts[2:])):
            return _parse_repo("/".join(parts), text)  # "hf.co/owner/repository/file.gguf", as people shorten it
        raise _bad(text, "does not point to a model repository")
    n_parts = 3 if rest and rest[0] == "refs" else 1
    revision, path = _revision("/".join(rest[:n_parts]), text), shown or "/".join(rest[n_parts:])
    if view == "tree" and not shown:
        quantization, file = _path_in_repo(path, text) if path else (None, None)
        return RepoRef(repo, quantization, file, revision)
    _check_file(path, text)
    return RepoRef(repo, None, path, revision)
