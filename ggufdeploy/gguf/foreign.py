"""What a file is that was expected to be GGUF and is not, told by its first bytes."""

from __future__ import annotations

_SIGNATURES = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file it points to"),
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x80\x02", "a Python pickle (a PyTorch checkpoint?)"),
    (b"tjgg", "a GGML file from before GGUF (ggjt)"),
    (b"fmgg", "a GGML file from before GGUF (ggmf)"),
    (b"lmgg", "a GGML file from before GGUF"),
    (b"{", "a JSON document"),
    (b"[", "a JSON document"),
)


def looks_like(start: bytes) -> str:
    """Return what a file that begins with these bytes, and is not GGUF, seems to be; completes "it is ..."."""
    if not start:
        return "empty"
    if not start.strip(b"\0"):
        return "a run of zero bytes (a download that was reserved but not written?)"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page (a login or error page instead of the file?)"
    if text.startswith(b"<"):
        return "an XML document (an error answer instead of the file?)"
    if start[4:9] == b"\0\0\0\0{":
        return "a safetensors file; convert it to GGUF or choose a GGUF repository"
    for signature, name in _SIGNATURES:
        if start.startswith(signature):
            return name
    return f"not GGUF: it starts with the bytes {start[:8].hex(' ')}"
