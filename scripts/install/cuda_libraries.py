"""Find or link the CUDA run-time libraries that llama-cpp-python's CUDA wheels leave out; install.sh runs it.

`cuda_libraries.py present MAJOR`: exit status 0 when libcudart and libcublas of that major version (11, 12 or 13) can
be loaded as they are. `cuda_libraries.py link`: put links to those that pip installed beside the engine's libraries.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run one of the two commands; returns the exit status."""
    match arguments:
        case ["present", major]:
            return 0 if present(major) else 1
        case ["link"]:
            engine = _package_folder("llama_cpp")
            return 0 if link(_package_folder("nvidia"), engine / "lib") else 1
        case _:
            sys.stderr.write(f"{__doc__}\n")
            return 2


def present(major: str) -> bool:
    """Say whether the loader finds both libraries. CUDA 11 alone numbers its libcudart 11.0."""
    try:
        ctypes.CDLL(f"libcudart.so.{'11.0' if major == '11' else major}")
        ctypes.CDLL(f"libcublas.so.{major}")
    except OSError:
        return False
    return True


def link(packages: Path, libraries: Path) -> list[Path]:
    """Link every libcudart and libcublas below `packages` into `libraries`; returns the links."""
    links = []
    for pattern in ("libcudart.so.*", "libcublas.so.*", "libcublasLt.so.*"):
        for library in sorted(packages.rglob(pattern)):
            path = libraries / library.name
            path.unlink(missing_ok=True)
            path.symlink_to(library)
            links.append(path)
    return links


def _package_folder(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {name} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
