"""Time header parsing, count what header reads take over the network, and print the tables of docs/benchmarks.md.

    python -m benchmarks.headers [--rounds 5] [--dir DIR]
    PYTHONPATH=DIR python -m benchmarks.headers     # DIR from: pip install --target DIR gguf numpy

Files have real tensor tables, holes instead of weights, and a vocabulary of the true size with words of about the true
length. Each measurement of a parser is a process of its own, and memory is what its peak adds to the imports;
`gguf.GGUFReader` reads each file once, because that takes long. Bytes and requests are the stand-in Hub's own log.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufdeploy.units import format_bytes, format_file_size
from tests.gguf_mix import tensor_type
from tests.gguf_shapes import GEMMA_3_4B, LLAMA_31_8B, ModelShape, hyperparameters, tensors
from tests.gguf_writer import GgufBuilder, Kind, write_mixtral_8x22b
from tests.standin_hub import StandinHub

REPO = "acme/bench-GGUF"
MIXTRAL = "MaziyarPanahi/Mixtral-8x22B-Instruct-v0.1-GGUF"
SHARDS = {"Q2_K": 3, "Q3_K_M": 2, "Q3_K_L": 2, "IQ4_XS": 2, "Q4_K_S": 2, "Q4_K_M": 2, "Q5_K_M": 4, "Q8_0": 4, "F16": 7}


@dataclass(frozen=True)
class Sample:
    """A header to read. merges: pairs of a byte-pair vocabulary. goal_s: what parsing may take.

    quantization: how the file is called, so that one repository holds all samples.
    """

    title: str
    quantization: str
    shape: ModelShape
    merges: int
    goal_s: float


LLAMA_32K = dataclasses.replace(LLAMA_31_8B, name="llama-2-7b-shape", n_ff=11008, n_kv_heads=32, n_vocab=32_000)
SAMPLES = (
    Sample("32,000 tokens", "Q4_K_M", LLAMA_32K, 0, 0.06),
    Sample("262,144 tokens, 515,000 merges", "Q4_K_S", GEMMA_3_4B, 515_000, 0.5),
)


def words(count: int) -> Iterator[bytes]:
    """Yield distinct words of 3 to 10 bytes, 6.5 on average, as vocabularies of this size have them."""
    for index in range(count):
        yield b"%x" % (index + 0x100) + b"abcdefgh"[: index % 5 + 1]


def build(sample: Sample) -> GgufBuilder:
    """Return the file of a sample, its tensors as holes."""
    shape = sample.shape
    builder = GgufBuilder(shape.architecture).kv("general.type", "model").kv("general.name", shape.name)
    for key, value in hyperparameters(shape).items():
        builder.kv(f"{shape.architecture}.{key}", value)
    n = shape.n_vocab
    builder.kv("tokenizer.ggml.model", "llama")
    builder.kv("tokenizer.ggml.tokens", list(words(n))).kv("tokenizer.ggml.scores", [0.0] * n)
    builder.kv("tokenizer.ggml.token_type", [1] * n, item=Kind.I32)
    if sample.merges:
        pairs = [b"%x %x" % (index % 4096, index) for index in range(sample.merges)]
        builder.kv("tokenizer.ggml.merges", pairs)
    for name, dims in tensors(shape):
        builder.tensor(name, dims, tensor_type(name, dims, "Q4_K_M", shape.mix))
    return builder


def measure(parser: str, path: Path, rounds: int) -> None:
    """Print this process's best time and peak memory for one parser as JSON; imports are not timed."""
    if parser == "ggufdeploy":
        from ggufdeploy.gguf.model import model_info
        from ggufdeploy.gguf.reader import read_header_file

        def read() -> None:
            model_info([read_header_file(path)])
    else:
        import gguf

        def read() -> None:
            gguf.GGUFReader(path)

    times, before = [], memory_bytes("VmRSS")
    for _ in range(rounds):
        begun = time.perf_counter()
        read()
        times.append(time.perf_counter() - begun)
    print(json.dumps({"seconds": min(times), "added_bytes": memory_bytes("VmHWM") - before}))


def memory_bytes(field: str) -> int:
    """Return this process's VmRSS or VmHWM (the peak, unlike getrusage's not that of the process that started it)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measured(parser: str, path: Path, rounds: int) -> dict[str, float] | None:
    """Return "seconds" and "added_bytes" from a fresh process; None when the parser is not installed."""
    command = [sys.executable, "-m", "benchmarks.headers", "--measure", parser, str(path), "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "No module named 'gguf'" in done.stderr:
        return None
    done.check_returncode()
    result: dict[str, float] = json.loads(done.stdout)
    return result


def parsing(files: dict[str, Path], rounds: int) -> Iterator[str]:
    """Yield the table of parsing times."""
    yield "| header | size | ggufdeploy | memory | goal | gguf.GGUFReader | memory | ratio |"
    yield "|---|---|---|---|---|---|---|---|"
    for sample in SAMPLES:
        path = files[sample.title]
        size = format_file_size(len(build(sample).header()))
        ours = measured("ggufdeploy", path, rounds)
        theirs = measured("GGUFReader", path, 1)
        assert ours is not None
        row = f"| {sample.title} | {size} | {_time(ours['seconds'])} | {format_bytes(int(ours['added_bytes']))} "
        row += f"| {_time(sample.goal_s)} "
        if theirs is None:
            yield row + "| not installed | | |"
        else:
            ratio = theirs["seconds"] / ours["seconds"]
            yield row + f"| {_time(theirs['seconds'])} | {format_bytes(int(theirs['added_bytes']))} | {ratio:,.0f} x |"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def sent(hub: StandinHub) -> tuple[int, int]:
    """Return (bytes of files, requests) that the stand-in has logged, and forget them."""
    ranges = [entry.range for entry in hub.requests if entry.range is not None and entry.server == "cdn"]
    pairs = [text.removeprefix("bytes=").split("-") for text in ranges]
    hub.requests.clear()
    return sum(int(last) - int(first) + 1 for first, last in pairs), len(ranges)


def reading(hub: StandinHub, home: Path) -> Iterator[str]:
    """Yield the table of what one file's header takes over loopback."""
    from ggufdeploy.hub.catalog import list_repository
    from ggufdeploy.hub.header import HeaderReader
    from ggufdeploy.hub.session import HubClient
    from ggufdeploy.settings import Settings

    yield "| read | requests | bytes | time over loopback |"
    yield "|---|---|---|---|"
    client = HubClient(Settings.from_environment({**os.environ, "GGUFDEPLOY_CACHE_DIR": str(home / "reading")}))
    catalogue = list_repository(REPO, None, client)
    for sample in SAMPLES:
        file = catalogue.find(sample.quantization).files[0]
        for what in ("shape", "whole header", "whole header again"):
            reader, begun = HeaderReader(client, catalogue.repo, catalogue.commit), time.perf_counter()
            if what == "shape":
                reader.prefix(file)
            else:
                reader.header(file)
            seconds = time.perf_counter() - begun
            n_bytes, requests = sent(hub)
            assert (n_bytes, requests) == (reader.fetched_bytes, reader.requests)
            yield f"| {sample.title}: {what} | {requests} | {format_file_size(n_bytes)} | {_time(seconds)} |"


def planning(hub: StandinHub, home: Path) -> Iterator[str]:
    """Yield the table of what commands on a never-seen repository read."""
    yield "| command, the repository never seen before | chosen | requests | bytes of files | stated |"
    yield "|---|---|---|---|---|"
    commands = ["show mixtral-8x22b", *(f"plan mixtral-8x22b --ctx {context}k" for context in (8, 32, 64))]
    commands.append("plan mixtral-8x22b --ctx 32k --quant Q4_K_M")
    for index, command in enumerate(commands):
        os.environ["GGUFDEPLOY_CACHE_DIR"] = str(home / f"plan-{index}")
        document = run(*command.split(), "--gpu", "h100-sxm", "--ram", "256GiB", "--json")
        n_bytes, requests = sent(hub)
        stated = document["header_fetched_bytes"]
        chosen = document["quantization"]["name"] if "quantization" in document else "-"
        yield (
            f"| `{command} --gpu h100-sxm` | {chosen} | {requests} | {format_file_size(n_bytes)} "
            f"| {'the same' if stated == n_bytes else stated} |"
        )


def run(*args: str) -> Any:
    """Run a command line in this process and return its document."""
    from ggufdeploy.cli import main as ggufdeploy

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = ggufdeploy(list(args))
    assert code == 0, args
    return json.loads(out.getvalue())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where the files are written (sparse); default: a temporary folder")
    parser.add_argument("--measure", nargs=2, metavar=("PARSER", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]), options.rounds)
        return
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        home, root = Path(folder) / "home", Path(folder) / "hub"
        files = {}
        (root / REPO).mkdir(parents=True)
        for sample in SAMPLES:
            files[sample.title] = build(sample).write(root / REPO / f"bench.{sample.quantization}.gguf")
        for quantization, shards in SHARDS.items():
            write_mixtral_8x22b(root / MIXTRAL, quantization, shards=shards)
        os.environ |= {"GGUFDEPLOY_STATE_DIR": str(home), "GGUFDEPLOY_CONFIG_DIR": str(home), "HF_HOME": str(home)}
        print(*parsing(files, options.rounds), sep="\n", end="\n\n")
        with StandinHub(root) as hub:
            os.environ["HF_ENDPOINT"] = hub.url
            print(*reading(hub, home), sep="\n", end="\n\n")
            print(*planning(hub, home), sep="\n")


if __name__ == "__main__":
    main()
