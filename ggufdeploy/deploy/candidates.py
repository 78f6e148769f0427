"""A source's quantizations as candidates for a plan."""

from __future__ import annotations

from ggufdeploy.deploy.sources import Headers, Source
from ggufdeploy.errors import NotFound
from ggufdeploy.gguf.model import ModelInfo, model_info
from ggufdeploy.gguf.reader import HeaderPrefix
from ggufdeploy.gguf.shape import estimate_info
from ggufdeploy.hub.catalog import Artifact
from ggufdeploy.planner.request import Candidate, HeaderSource, PlanFile
from ggufdeploy.planner.scale import Shape, derive, scale

_UNIFORM_BITS = {"F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5}
"""Bits per weight of the quantizations that treat all matrices alike, so that a file's size tells the parameters."""


class Candidates:
    """The source's quantizations as candidates; each becomes exact when its header is read.

    Until then it is estimated: scaled from the header nearest in size, else from the shape in the first 64 KiB of any
    file, else from the profile.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._headers: dict[str, Headers] = {}
        self._infos: dict[str, ModelInfo] = {}
        self._prefix: HeaderPrefix | None = None
        self._prefix_origin: HeaderSource = "file"
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

    def read_shape(self, quantization: str) -> bool:
        """Read the first 64 KiB of this quantization. Returns False when they cannot be had, or say too little."""
        artifact, before = self.artifacts[quantization], self._source.traffic
        prefix = self._source.prefix(artifact)
        if prefix is None or estimate_info(prefix, artifact.total_bytes) is None:
            return False
        self._prefix = prefix
        remote: HeaderSource = "cache" if self._source.traffic == before else "remote"
        self._prefix_origin = "file" if self._source.repo is None else remote
        return True

    @property
    def n_params(self) -> int | None:
        """The model's parameters, from a header, the profile, or the size of an unmixed quantization; None: unknown."""
        if self._infos:
            return next(iter(self._infos.values())).n_params
        facts = self._source.profile.facts if self._source.profile else None
        if facts is not None and facts.n_params is not None:
            return facts.n_params
        return next(
            (
                int(self.artifacts[name].total_bytes * 8 / bits)
                for name, bits in _UNIFORM_BITS.items()
                if name in self.artifacts
            ),
            None,
        )

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
            known = self._nearest(artifact)
            info = scale(self._infos[known], artifact.total_bytes)
            return Candidate(name, files, info, False, self._headers[known].origin)
        if self._prefix is not None:
            estimate = estimate_info(self._prefix, artifact.total_bytes, self.n_params)
            assert estimate is not None  # read_shape has made sure
            return Candidate(name, files, estimate, False, self._prefix_origin)
        return Candidate(name, files, derive(self._shape(), artifact.total_bytes), False, "profile")

    def _nearest(self, artifact: Artifact) -> str:
        """Return the quantization of known header that is nearest in size: it mixes its types most alike."""

        def ratio(name: str) -> float:
            sizes = sorted((self.artifacts[name].total_bytes, artifact.total_bytes))
            return sizes[1] / max(sizes[0], 1)

        return min(self._infos, key=ratio)

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
