"""A source's quantizations as candidates for a plan."""

from __future__ import annotations

from ggufdeploy.deploy.sources import Headers, Source
from ggufdeploy.errors import NotFound
from ggufdeploy.gguf.model import ModelInfo, model_info
from ggufdeploy.hub.catalog import Artifact
from ggufdeploy.planner.request import Candidate, PlanFile
from ggufdeploy.planner.scale import Shape, derive, scale


class Candidates:
    """The source's quantizations as candidates; each becomes exact when its header is read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._headers: dict[str, Headers] = {}
        self._infos: dict[str, ModelInfo] = {}
        self.artifacts = {artifact.quantization: artifact for artifact in source.artifacts}
        if not self.artifacts:
            raise NotFound("quantization", source.name, f"{source.name} offers no GGUF quantization")

    def read(self, quantization: str) -> bool:
        """Read this quantization's own header. Returns False when it cannot be had before the download."""
        if quantization in self._infos:
            return True
        headers = self._source.headers(self.artifacts[quantization])
        if headers is None:
            return False
        self._headers[quantization] = headers
        self._infos[quantization] = model_info([shard.header for shard in headers.shards])
        return True

    def headers(self, quantization: str) -> Headers | None:
        """Return the headers read so far for this quantization."""
        return self._headers.get(quantization)

    def all(self) -> list[Candidate]:
        """Return every quantization, exact where its header was read."""
        return [self._candidate(artifact) for artifact in self.artifacts.values()]

    def _candidate(self, artifact: Artifact) -> Candidate:
        name = artifact.quantization
        files = tuple(PlanFile(file.path, file.n_bytes, file.sha256) for file in artifact.files)
        if name in self._infos:
            return Candidate(name, files, self._infos[name], True, self._headers[name].origin)
        if self._infos:
            known, info = next(iter(self._infos.items()))
            return Candidate(name, files, scale(info, artifact.total_bytes), False, self._headers[known].origin)
        return Candidate(name, files, derive(self._shape(), artifact.total_bytes), False, "profile")

    def _shape(self) -> Shape:
        profile = self._source.profile
        facts = profile.facts if profile else None
        if (
            profile is None
            or facts is None
            or not (facts.n_layers and facts.n_heads and facts.n_kv_heads and facts.head_size and facts.n_params)
        ):
            raise NotFound(
                "model",
                self._source.name,
                f"nothing is known about the shape of {self._source.name} without its header",
                hint="connect to the Hub, or name a local file",
            )
        return Shape(
            facts.architecture, profile.name, facts.n_layers, facts.n_heads, facts.n_kv_heads, facts.head_size,
            facts.n_experts or 0, facts.n_experts_used or 0, facts.n_params, facts.n_active_params,
            facts.context_train_tokens,
        )  # fmt: skip
