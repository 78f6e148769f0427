"""A source and one quantization of it, described for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggufdeploy.deploy.sources import Source
    from ggufdeploy.hub.catalog import Artifact


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
