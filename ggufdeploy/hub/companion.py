"""Files beside a model that are no model themselves, told by their names; and raw pieces of files."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal

from ggufdeploy.hub.quantization import find_quantization

CompanionKind = Literal["projector", "draft", "imatrix", "vocabulary", "adapter"]

MEANINGS: dict[CompanionKind, str] = {
    "projector": "a vision projector, which accompanies a model",
    "draft": "a draft model, which accompanies a model",
    "imatrix": "an importance matrix, not a model",
    "vocabulary": "only a vocabulary",
    "adapter": "a LoRA adapter, which accompanies a model",
}

SHARD = re.compile(r"(?P<prefix>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
"""Source: llama.cpp src/llama.cpp, llama_split_path: "<prefix>-00001-of-00003.gguf", counted from 1."""

# ".gguf.part1of2", ".gguf-split-a", ".gguf.00001", ".gguf.aa" of split(1); "-chunk-001-of-018.gguf", "-part1of2.gguf".
_PIECE = re.compile(
    r"(?P<whole>.*\.gguf)(?:[._-]?(?:part(?!ial)|split|chunk|cat)[\w.-]*|[._-](?:\d{1,5}|a?[a-z]))"
    r"|(?P<stem>.*)[-_.](?:part|chunk|piece)[-_.]?\d+[-_.]?of[-_.]?\d+\.gguf",
    re.IGNORECASE,
)
# The first words of names. Source: llama.cpp common/download.cpp leaves out the same when it looks for a model.
_DRAFT_FIRST = frozenset({"mtp", "eagle3", "dflash", "dspark", "draft", "drafter"})
# These name a method that only draft models use, so they count anywhere; "MTP" and "DRAFT" also stand in models' names.
_DRAFT_ANYWHERE = frozenset({"eagle3", "dflash", "dflash2", "dspark"})
_FOLDERS: dict[str, CompanionKind] = {
    "mmproj": "projector", "mtp": "draft", "draft": "draft", "drafter": "draft", "eagle3": "draft", "dflash": "draft",
    "vocab": "vocabulary", "lora": "adapter", "loras": "adapter", "adapter": "adapter", "adapters": "adapter",
}  # fmt: skip


def companion_kind(path: str) -> CompanionKind | None:
    """Return what kind of companion a .gguf file is, going by its name and folder; None for a model.

    An importance matrix or adapter is told from a model made with one by the quantization: "m-Q4_K_M-imatrix.gguf" and
    "m-lora-Q4_K_M.gguf" are models, "m.imatrix.gguf" and "m-F16-LoRA.gguf" are not.
    Source: ggml docs/gguf.md, naming convention (the types "LoRA" and "vocab" stand last).
    """
    *folders, name = path.split("/")
    if folders and folders[-1].lower() in _FOLDERS:
        return _FOLDERS[folders[-1].lower()]
    shard = SHARD.fullmatch(name)
    stem = (shard["prefix"] if shard else re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE)).lower()
    words = re.split(r"[^a-z0-9]+", stem)
    quantization = find_quantization(name)
    recipe = quantization is not None and quantization.kind == "full"
    if re.search(r"(?<![a-z])mm[-_]?proj(?![a-z])", stem):
        return "projector"
    if words[0] == "imatrix" or ("imatrix" in words and not recipe):
        return "imatrix"
    if words[0] in _DRAFT_FIRST or not _DRAFT_ANYWHERE.isdisjoint(words):
        return "draft"
    if "vocab" in (words[0], words[-1]) or words[:2] == ["ggml", "vocab"]:
        return "vocabulary"
    if words[-1] == "lora" or words[0] in ("lora", "adapter") or (not recipe and {"lora", "adapter"} & set(words)):
        return "adapter"
    return None


def whole_of_piece(path: str) -> str | None:
    """Return the file that a raw piece belongs to, None when the path is no piece.

    llama.cpp cannot load pieces: only the first has a header, and the rest are bytes from the middle of tensors.
    """
    if SHARD.fullmatch(path):
        return None
    match = _PIECE.fullmatch(path)
    return (match["whole"] or f"{match['stem']}.gguf") if match else None


def is_gguf_name(path: str) -> bool:
    """Whether a path names a GGUF file or a raw piece of one."""
    return PurePosixPath(path).name.lower().endswith(".gguf") or whole_of_piece(path) is not None
