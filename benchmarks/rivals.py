"""One question to ggufdeploy and to other planners: Mixtral 8x22B on one H100 80 GB at 8k, 32k and 64k tokens.

    python -m benchmarks.rivals FOLDER      # FOLDER keeps their installations and the model files; not in a checkout

Each tool is installed from PyPI or npm into a place of its own below FOLDER and asked as its help says. The model files
have the true tensor table and holes instead of weights; a stand-in for nvidia-smi tells of the card; where a tool asks
the Hub and can be pointed elsewhere, it asks the stand-in Hub on loopback. Prints the Markdown of docs/benchmarks.md:
what each answered, its own lines, and what llama.cpp's dry run says to that answer.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ggufdeploy.engine.dryrun import DryRun
from ggufdeploy.engine.request import EngineConfig, KvType
from ggufdeploy.hardware.catalog import find_gpu
from ggufdeploy.units import GIB
from tests.deploy.conftest import REPO, SHARDS
from tests.gguf_writer import write_mixtral_8x22b
from tests.rpc_device import rpc_device
from tests.standin_hub import StandinHub

CONTEXTS = (8192, 32768, 65536)
LADDER = ("Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K")
"""Best first; tools that take one file are asked about each."""
F16: tuple[KvType, KvType] = ("f16", "f16")
Q8_0: tuple[KvType, KvType] = ("q8_0", "q8_0")
_TIMEOUT_S = 300
# What nvidia-smi says about an idle H100 SXM; memory as in hardware/gpus.csv.
_NVIDIA_SMI = """\
#!{python}
import sys
FACTS = {{
    "name": "NVIDIA H100 80GB HBM3", "gpu_name": "NVIDIA H100 80GB HBM3", "memory.total": "81559",
    "memory.free": "81038", "memory.used": "521", "index": "0", "uuid": "GPU-0", "compute_cap": "9.0", "count": "1",
    "driver_version": "570.86.15", "utilization.gpu": "0",
}}
query = next((word.split("=", 1)[1] for word in sys.argv if word.startswith("--query-gpu=")), None)
if query is not None:
    unit = "" if "nounits" in " ".join(sys.argv) else " MiB"
    names = [name.strip() for name in query.split(",")]
    if "noheader" not in " ".join(sys.argv):
        print(", ".join(names))
    print(", ".join(FACTS.get(n, "[N/A]") + (unit if n.startswith("memory") else "") for n in names))
elif "-L" in sys.argv:
    print("GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)")
elif not any(word.startswith("--query") for word in sys.argv):
    print("NVIDIA-SMI 570.86.15   Driver Version: 570.86.15   CUDA Version: 12.8")
"""
_XLLAMACPP = """\
import sys, xllamacpp
gpu = {"name": "cuda", "memory_free": int(sys.argv[3]), "memory_total": int(sys.argv[3])}
print(xllamacpp.estimate_gpu_layers([gpu], sys.argv[1], [], int(sys.argv[2]), 512, 1, ""))
"""


@dataclass(frozen=True)
class Answer:
    """quantization: what it chose, None when it chose nothing. whole: all of it in VRAM. quotes: its own lines.

    kv_types: of keys and values.
    """

    quantization: str | None
    whole: bool
    quotes: tuple[str, ...]
    kv_types: tuple[KvType, KvType] = F16
    note: str = ""


@dataclass
class Box:
    """Where everything is, and how programs are run: with the stand-ins, and a home of their own."""

    folder: Path
    hub_url: str
    free_bytes: int
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        fake = self.folder / "bin" / "nvidia-smi"
        fake.parent.mkdir(parents=True, exist_ok=True)
        fake.write_text(_NVIDIA_SMI.format(python=sys.executable), encoding="utf-8")
        fake.chmod(0o755)
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        self.environment = {
            "PATH": f"{fake.parent}:{os.environ['PATH']}", "HOME": str(home), "HF_ENDPOINT": self.hub_url,
            "NO_COLOR": "1", "COLUMNS": "160", "LANG": "C.UTF-8",
        }  # fmt: skip

    def model(self, quantization: str) -> Path:
        """Return a file of the real shape."""
        path = self.folder / "models" / f"Mixtral-8x22B-Instruct-v0.1.{quantization}.gguf"
        return path if path.exists() else write_mixtral_8x22b(path, quantization)

    def pypi(self, *packages: str) -> Path:
        """Install into a venv named after the first package; return its folder of programs."""
        place = self.folder / packages[0].partition("==")[0]
        if not (place / "installed").exists():
            venv.create(place, with_pip=True)
            quiet = ["-q", "--disable-pip-version-check"]
            subprocess.run([place / "bin" / "python", "-m", "pip", "install", *quiet, *packages], check=True)
            (place / "installed").touch()
        return place / "bin"

    def npm(self, package: str) -> Path:
        """Install into a folder named after the package; return its folder of programs."""
        place = self.folder / package.partition("@")[0]
        if not (place / "node_modules").exists():
            place.mkdir(parents=True, exist_ok=True)
            (place / "package.json").write_text("{}", encoding="utf-8")
            subprocess.run(["npm", "install", "--silent", package], cwd=place, check=True)
        return place / "node_modules" / ".bin"

    def run(self, *command: str | Path) -> list[str]:
        """Return the lines a program prints, whatever its exit code."""
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, env=self.environment, timeout=_TIMEOUT_S,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return [line.rstrip() for line in done.stdout.replace("\r", "\n").splitlines()]


def matching(lines: list[str], *patterns: str) -> tuple[str, ...]:
    """Return the lines that match any of the patterns, without the space around."""
    return tuple(" ".join(line.split()) for line in lines if any(re.search(pattern, line) for pattern in patterns))


def first_whole(ask: Callable[[str], Answer]) -> Answer:
    """Ask about each file, best first, until one is said to be whole in VRAM."""
    answer = Answer(None, False, ())
    for quantization in LADDER:
        answer = ask(quantization)
        if answer.whole:
            break
    return answer


def ask_ggufdeploy(box: Box, context: int) -> Answer:
    """plan mixtral-8x22b --gpu h100-sxm."""
    state = {f"GGUFDEPLOY_{n}_DIR": str(box.folder / "ggufdeploy" / n.lower()) for n in ("CONFIG", "CACHE", "STATE")}
    box.environment |= state | {"PYTHONPATH": str(Path(__file__).parents[1])}
    words = ["plan", "mixtral-8x22b", "--gpu", "h100-sxm", "--ctx", str(context)]
    lines = box.run(sys.executable, "-m", "ggufdeploy", *words)
    plan = json.loads("\n".join(box.run(sys.executable, "-m", "ggufdeploy", *words, "--json")))
    quotes = matching(lines, r"^\S+ \S+: ", r"^n_gpu_layers", r"^  used")[:3]
    whole = plan["verdict"] == "gpu"
    kv_types = plan["kv_cache"]["key_type"], plan["kv_cache"]["value_type"]
    return Answer(plan["quantization"]["name"], whole, quotes, kv_types)


def ask_mdl(box: Box, context: int) -> Answer:
    """mdl fit hf:REPO, with the context as floor and ceiling; the starred row is its choice."""
    tokens = f"{context // 1024}k"
    words = ["fit", f"hf:{REPO}", "--profile", "chat", "--min-ctx", tokens, "--max-ctx", tokens, "--no-oracle"]
    lines = box.run(box.pypi("llama-mdl==0.14.0") / "mdl", *words)
    (row,) = matching(lines, r"\.gguf .*★") or ("",)
    found = re.search(r"\.(\w+)\.gguf", row)
    whole = " all " in row
    others = tuple(line for line in matching(lines, r"\.gguf .* all ") if not whole)[:1]
    return Answer(found[1] if found else None, whole, (row, *others), note="KV may be q8_0")


def ask_oldiron(box: Box, context: int) -> Answer:
    """oldiron fit FILE; the first file it puts wholly on the GPU."""
    program = box.pypi("oldiron==0.1.0") / "oldiron"

    def ask(quantization: str) -> Answer:
        lines = box.run(program, "fit", box.model(quantization), "--ctx", str(context), "--no-table", "--plain")
        quotes = matching(lines, r"^Plan", r"headroom", r"^Speed")
        whole = bool(quotes) and quotes[0].endswith("-ngl all")
        kv = re.search(r"KV cache (\w+)/(\w+),", quotes[0]) if quotes else None
        return Answer(quantization, whole, quotes, (kv[1], kv[2]) if kv else F16)  # type: ignore[arg-type]

    return first_whole(ask)


def ask_llmfit(box: Box, context: int) -> Answer:
    """llmfit info NAME; its "Best Quant"."""
    program = box.pypi("llmfit==1.1.17") / "llmfit"
    lines = box.run(program, "--max-context", str(context), "info", "mistralai/Mixtral-8x22B-Instruct-v0.1")
    quotes = matching(lines, r"^Best Quant", r"Memory Utilization", r"Run Mode", r"Baseline Est\. Speed")
    found = re.search(r"Best Quant: (\S+)", "\n".join(quotes))
    return Answer(found[1] if found else None, "Run Mode: GPU" in quotes, quotes)


def ask_ggufit(box: Box, context: int) -> Answer:
    """ggufit NAME; the row "With the GPU"."""
    words = ["mixtral-8x22b", "--context", str(context), "--offline", "--tokens-per-sec"]
    quotes = matching(
        box.run(box.pypi("ggufit==0.3.0") / "ggufit", *words), r"With the GPU", r"GPU .*weights", r"› \d+%"
    )
    found = re.search(r"· (\d+) of (\d+) layers", "\n".join(quotes))
    return Answer("Q4_K_M", found is not None and found[1] == found[2], quotes, note='"Q4", counted as Q4_K_M')


def ask_modelinfo(box: Box, context: int) -> Answer:
    """modelinfo FILE --gpu H100; the first file that it says fits."""
    program = box.pypi("modelinfo-cli==1.4.4") / "modelinfo"

    def ask(quantization: str) -> Answer:
        lines = box.run(program, box.model(quantization), "--context", str(context), "--gpu", "H100")
        quotes = matching(lines, r"VRAM \(est\)", r"Weights:", r"Hardware Fit")
        return Answer(quantization, any("✓" in line for line in quotes), quotes)

    return first_whole(ask)


def ask_quantprobe(box: Box, context: int) -> Answer:
    """quantprobe plan --gguf FILE; the first file whose starred row is all in VRAM."""
    program = box.pypi("quantprobe==1.37.0") / "quantprobe"

    def ask(quantization: str) -> Answer:
        lines = box.run(program, "plan", "--gguf", box.model(quantization), "--ctx", str(context))
        quotes = tuple(line[:110] for line in matching(lines, r"^  model ", r"^  \* "))
        return Answer(quantization, any("all in VRAM" in line for line in quotes), quotes)

    return first_whole(ask)


def ask_xllamacpp(box: Box, context: int) -> Answer:
    """estimate_gpu_layers(); the first file that gets all 57 layers."""
    program = box.pypi("xllamacpp==2026.10.11549", "gguf") / "python"

    def ask(quantization: str) -> Answer:
        lines = box.run(program, "-c", _XLLAMACPP, box.model(quantization), str(context), str(box.free_bytes))
        quotes = matching(lines, r"layers=")
        return Answer(quantization, any("layers=57" in line for line in quotes), quotes)

    return first_whole(ask)


def ask_node_llama_cpp(box: Box, context: int) -> Answer:
    """inspect estimate on the CPU: bytes only, so the first file whose bytes are less than the card's."""
    program = box.npm("node-llama-cpp@3.22.1") / "node-llama-cpp"

    def ask(quantization: str) -> Answer:
        words = ["inspect", "estimate", box.model(quantization), "--gpu", "false", "--contextSize", str(context)]
        quotes = matching(box.run(program, *words), r"Resolved config")
        found = re.search(r"RAM usage: ([\d.]+)GB", "\n".join(quotes))
        whole = found is not None and float(found[1]) * GIB <= box.free_bytes
        return Answer(quantization, whole, quotes, note="bytes only; the comparison with the card is ours")

    return first_whole(ask)


TOOLS: Mapping[str, Callable[[Box, int], Answer]] = {
    "ggufdeploy": ask_ggufdeploy,
    "llama-mdl 0.14.0": ask_mdl,
    "oldiron 0.1.0": ask_oldiron,
    "node-llama-cpp 3.22.1": ask_node_llama_cpp,
    "xllamacpp 2026.10": ask_xllamacpp,
    "llmfit 1.1.17": ask_llmfit,
    "quantprobe 1.37.0": ask_quantprobe,
    "modelinfo-cli 1.4.4": ask_modelinfo,
    "ggufit 0.3.0": ask_ggufit,
}


class Oracle:
    """What llama.cpp's dry run puts on one GPU with all 57 layers there: weights, KV cache and compute."""

    def __init__(self, box: Box, dry_run: DryRun, endpoint: str) -> None:
        self._box, self._dry_run, self._endpoint = box, dry_run, endpoint
        self._known: dict[tuple[str, KvType, KvType, int], int] = {}

    def spare_bytes(self, quantization: str, kv_types: tuple[KvType, KvType], context: int) -> int:
        """Return what stays free on the card; negative when it does not fit."""
        key = (quantization, *kv_types, context)
        if key not in self._known:
            self._known[key] = self._ask(*key)
        return self._box.free_bytes - self._known[key]

    def _ask(self, quantization: str, key_type: KvType, value_type: KvType, context: int) -> int:
        config = EngineConfig(
            model_path=str(self._box.model(quantization)), context_tokens=context, slots=1, n_gpu_layers=57,
            n_batch=512, n_ubatch=512, key_type=key_type, value_type=value_type, flash_attention=True,
            split_mode="none", tensor_split=(1.0,), overrides=(), load_mode="none", threads=1,
            rpc_endpoints=(self._endpoint,),
        )  # fmt: skip
        (device,) = self._dry_run.ask(config).devices
        return device.weights_bytes + device.kv_bytes + device.compute_bytes


def verdict(answer: Answer, context: int, oracle: Oracle) -> str:
    """Say what the dry run makes of an answer, in numbers."""
    if answer.quantization is None:
        return "no answer"
    if not answer.whole:
        best = next(name for name in LADDER if oracle.spare_bytes(name, F16, context) >= 0)
        return f"{answer.quantization}, part in RAM; {best} would be whole"
    spare = oracle.spare_bytes(answer.quantization, answer.kv_types, context) / GIB
    kv = "" if answer.kv_types == F16 else f" with KV {'/'.join(answer.kv_types)}"
    return f"{answer.quantization}{kv}: " + (
        f"whole, {spare:.2f} GiB to spare" if spare >= 0 else f"{-spare:.2f} GiB too much"
    )


def report(folder: Path) -> str:
    """Ask everything and return the Markdown."""
    hub_root = folder / "hub"
    (hub_root / REPO).mkdir(parents=True, exist_ok=True)
    for quantization, shards in SHARDS.items():
        if not list((hub_root / REPO).glob(f"*.{quantization}-*")):
            write_mixtral_8x22b(hub_root / REPO, quantization, shards=shards)
    with StandinHub(hub_root) as hub:
        box = Box(folder, hub.url, find_gpu("h100-sxm").llama_free_bytes)
        answers = {name: [ask(box, context) for context in CONTEXTS] for name, ask in TOOLS.items()}
        with rpc_device() as endpoint, DryRun() as dry_run:
            oracle = Oracle(box, dry_run, endpoint)
            return "\n".join([*_truth(oracle, box.free_bytes), "", *_table(answers, oracle), "", *_quotes(answers)])


def _truth(oracle: Oracle, free_bytes: int) -> list[str]:
    columns = [(context, kv_types) for context in CONTEXTS for kv_types in (F16, Q8_0)]
    heads = [f"{context:,} {kv_types[0]}" for context, kv_types in columns]
    lines = [f"| GiB of {free_bytes / GIB:.2f} free | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name in LADDER:
        spare = [oracle.spare_bytes(name, kv_types, context) for context, kv_types in columns]
        sizes = [f"{(free_bytes - each) / GIB:.2f}" for each in spare]
        cells = [f"**{size}**" if each >= 0 else size for size, each in zip(sizes, spare, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _table(answers: Mapping[str, list[Answer]], oracle: Oracle) -> list[str]:
    lines = [f"| tool | {' | '.join(f'{context:,}' for context in CONTEXTS)} |", "|---|---|---|---|"]
    for name, given in answers.items():
        cells = [verdict(answer, context, oracle) for answer, context in zip(given, CONTEXTS, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _quotes(answers: Mapping[str, list[Answer]]) -> list[str]:
    lines = ["```text"]
    for name, given in answers.items():
        notes = {answer.note for answer in given if answer.note}
        lines.append(f"{name}" + (f"   ({'; '.join(sorted(notes))})" if notes else ""))
        for answer, context in zip(given, CONTEXTS, strict=True):
            for quote in answer.quotes:
                lines.append(f"  {context:>6,}  {textwrap.shorten(quote, 140, placeholder=' ...')}")
    return [*lines, "```"]


if __name__ == "__main__":
    print(report(Path(sys.argv[1]).absolute()))
