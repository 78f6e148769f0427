"""One quantization of a source: found by name, and described for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufdeploy.errors import NotFound, nearest

if TYPE_CHECKING:
    from ggufdeploy.deploy.sources import Source
    from ggufdeploy.hub.catalog import Artifact


def find_artifact(source: Source, quantization: str) -> Artifact:
    """Return the source's quantization of this name, ignoring case.

    Raises NotFound, naming the nearest, or why the Hub could not be asked whether it has it.
    """
    for artifact in source.artifacts:
        if artifact.quantization.upper() == quantization.upper():
            return artifact
    if source.reason is not None:
        raise source.reason
    names = [artifact.quantization for artifact in source.artifacts]
    close = nearest(quantization, names)
    hint = f"did you mean {close}? " if close else ""
    raise NotFound(
        "quantization",
        quantization,
        f"{source.name} has no quantization {quantization}",
        hint=f"{hint}There are: {', '.join(names) or 'none'}",
    )


def describe_source(source: Source) -> dict[str, object]:
    """Return what a document says of where a model comes from; null: not from the Hub."""
    return {"schema_version": 1, "name": source.name, "repo": source.repo, "revision": source.revision}


def describe_artifact(artifact: Artifact) -> dict[str, object]:
    """Return what a document says of one quantization; a null sha256 is unknown."""
    return {
        "quantization": artifact.quantization,
        "total_bytes": artifact.total_bytes,
        "files": [{"path": file.path, "bytes": file.n_bytes, "sha256": file.sha256} for file in artifact.files],
    }
