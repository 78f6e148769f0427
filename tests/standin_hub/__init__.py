"""A stand-in for the Hugging Face Hub: for tests on loopback, for benchmarks, and as a mirror without the internet.

It serves a directory laid out as `ROOT/owner/repository/any/file` over the Hub's API, and large files through a
redirect to a second server, as the Hub's CDN does. The real huggingface_hub talks to it through HF_ENDPOINT.

    with StandinHub(tmp_path / "hub") as hub:
        write_model(hub.root / "acme" / "tiny-GGUF" / "tiny.Q4_0.gguf", TINY_LLAMA, "Q4_0")
        settings = Settings(..., hf_endpoint=hub.url)
        hub.fault("cut", "*.gguf", at=1000)          # the next download of a .gguf file ends after 1,000 bytes
        ...
        assert [r.range for r in hub.requests if r.server == "cdn"] == ["bytes=0-", "bytes=1000-"]

Files may be added or changed while it runs; a repository's commit follows from its files' paths, sizes and times.
Sparse files (ghosts of many GB) are never hashed: they get a stable made-up sha256, or the one given to `declare`.
`hub.gated`, `hub.private` and `hub.tokens` control access; `hub.on_request` is called before every answer;
`hub.refusing("cdn")` lets nobody connect. From the command line: `python -m tests.standin_hub --help`.

Where to add what: a fault's name in faults.py, what it does in body.py (bodies) or handlers.py (answers); an endpoint
in handlers.py; sockets in server.py; checksums in checksums.py.

Source of endpoints and headers: huggingface_hub 2.4 (hf_api.py, file_download.py, utils/_http.py).
"""

from tests.standin_hub.faults import Fault, FaultKind
from tests.standin_hub.hub import StandinHub
from tests.standin_hub.server import Logged, Side

__all__ = ["Fault", "FaultKind", "Logged", "Side", "StandinHub"]
