"""What `install.sh --dry-run` would do, on machines made of stand-in probe programs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.install.machine import CHECKOUT, StandInMachine

pytestmark = pytest.mark.slow

INDEX = "https://abetlen.github.io/llama-cpp-python/whl"
COMMON_FLAGS = {"-DGGML_RPC=ON", "-DLLAVA_BUILD=OFF", "-DLLAMA_OPENSSL=OFF"}


@dataclass(frozen=True)
class Choice:
    """What a dry run said it would do."""

    indexes: list[str]
    cmake_flags: set[str]
    output: str


def choice_of(result: subprocess.CompletedProcess[str]) -> Choice:
    assert result.returncode == 0, result.stdout + result.stderr
    commands = [shlex.split(line[2:]) for line in result.stdout.splitlines() if line.startswith("+ ")]
    indexes = [words[words.index("--index-url") + 1] for words in commands if "--index-url" in words]
    flags = [word.removeprefix("CMAKE_ARGS=") for words in commands for word in words if word.startswith("CMAKE_ARGS=")]
    assert len(flags) == 1, result.stdout
    recipe = [flag for flag in flags[0].split() if flag.startswith("-DCMAKE_PROJECT_llama_cpp_INCLUDE=")]
    assert len(recipe) == 1
    names = [index.removeprefix(f"{INDEX}/") for index in indexes]
    return Choice(names, set(flags[0].split()) - set(recipe), result.stdout)


def nvidia_smi(driver: str, cuda: str, *capabilities: str, field_name: str = "CUDA Version") -> str:
    """Return the text of a program that answers as nvidia-smi does for these GPUs."""
    rows = "".join(f"NVIDIA Test GPU, {driver}, {capability}\\n" for capability in capabilities)
    banner = f"| NVIDIA-SMI {driver}    Driver Version: {driver}    {field_name}: {cuda}     |"
    return f'case "$*" in *--query-gpu*) printf "{rows}" ;; *) echo "{banner}" ;; esac'


@pytest.fixture
def machine(tmp_path: Path) -> StandInMachine:
    return StandInMachine(tmp_path)


def test_a_machine_without_gpu_gets_the_cpu_build(machine: StandInMachine) -> None:
    choice = choice_of(machine.install("--dry-run"))
    assert choice.indexes == ["cpu"]
    assert choice.cmake_flags == COMMON_FLAGS


# driver, newest CUDA it supports (0: unknown), lowest compute capability -> indexes
CUDA_TABLE = {
    (580, 1300, 90): "cu130 cu125 cu124",
    (595, 1302, 120): "cu132 cu130 cu125 cu124",
    (580, 1300, 70): "cu125 cu124",  # CUDA 13 has no code for Volta
    (570, 1208, 90): "cu125 cu124",
    (550, 1204, 80): "cu124",
    (545, 1203, 89): "cu123",
    (535, 1202, 86): "cu122",
    (525, 1200, 80): "cu121",  # minor versions of CUDA 12 are compatible
    (580, 0, 90): "cu130 cu121",
    (515, 1107, 86): "cu118",
    (470, 1104, 61): "cu118",
    (460, 1102, 0): "cu118",
    (515, 1107, 90): "",  # the CUDA 11.8 build has no code for Hopper
    (470, 1104, 35): "",
    (440, 1002, 75): "",
}


def test_the_driver_and_the_gpu_decide_the_cuda_wheel() -> None:
    calls = "\n".join(f"cuda_indexes {driver} {cuda} {capability}" for driver, cuda, capability in CUDA_TABLE)
    source = shlex.quote(str(CHECKOUT / "scripts/install/backend.sh"))
    result = subprocess.run(["bash", "-euc", f"source {source}\n{calls}"], capture_output=True, text=True, check=True)
    assert dict(zip(CUDA_TABLE, result.stdout.splitlines(), strict=True)) == CUDA_TABLE


@pytest.mark.parametrize(
    ("driver", "cuda", "capability", "indexes"),
    [("580.65.06", "13.0", "9.0", ["cu130", "cu125", "cu124"]), ("550.54.14", "12.4", "8.0", ["cu124"])],
)
def test_an_nvidia_gpu_gets_a_cuda_wheel_or_a_build_for_its_architecture(
    machine: StandInMachine, driver: str, cuda: str, capability: str, indexes: list[str]
) -> None:
    machine.programs["nvidia-smi"] = nvidia_smi(driver, cuda, capability)
    choice = choice_of(machine.install("--dry-run"))
    assert choice.indexes == indexes
    expected = {"-DGGML_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={capability.replace('.', '')}-real"}
    assert choice.cmake_flags == COMMON_FLAGS | expected
    assert f"driver {driver}, CUDA {cuda}" in choice.output


def test_a_gpu_that_no_build_supports_gets_the_cpu_build_and_a_warning(machine: StandInMachine) -> None:
    machine.programs["nvidia-smi"] = nvidia_smi("440.33.01", "10.2", "7.5")
    result = machine.install("--dry-run")
    assert choice_of(result).indexes == ["cpu"]
    assert "the GPU is not used" in result.stderr
    assert "440.33.01" in result.stderr


def test_asking_for_cuda_where_it_cannot_run_is_an_error(machine: StandInMachine) -> None:
    result = machine.install("--dry-run", "--backend", "cuda")
    assert result.returncode == 1
    assert "no NVIDIA GPU" in result.stderr
    assert "hint: ./install.sh --backend cpu" in result.stderr


def test_the_banner_of_new_drivers_is_understood(machine: StandInMachine) -> None:
    machine.programs["nvidia-smi"] = nvidia_smi("610.43.02", "13.3", "9.0", field_name="CUDA UMD Version")
    assert choice_of(machine.install("--dry-run")).indexes[0] == "cu132"


def test_an_old_nvidia_smi_that_knows_no_compute_capability_is_understood(machine: StandInMachine) -> None:
    machine.programs["nvidia-smi"] = (
        'case "$*" in *compute_cap*) echo "not a valid field"; exit 2 ;; '
        '*--query-gpu*) echo "Tesla P100, 460.32.03" ;; *) echo "CUDA Version: 11.2" ;; esac'
    )
    choice = choice_of(machine.install("--dry-run"))
    assert choice.indexes == ["cu118"]
    assert "-DCMAKE_CUDA_ARCHITECTURES=native" in choice.cmake_flags


def test_an_nvidia_smi_without_driver_counts_as_no_gpu(machine: StandInMachine) -> None:
    machine.programs["nvidia-smi"] = (
        'echo "NVIDIA-SMI has failed because it couldn\'t communicate with the driver."; exit 9'
    )
    assert choice_of(machine.install("--dry-run")).indexes == ["cpu"]


def test_mixed_gpus_are_all_built_for_and_the_oldest_decides_the_wheel(machine: StandInMachine) -> None:
    machine.programs["nvidia-smi"] = nvidia_smi("580.65.06", "13.0", "9.0", "7.0", "9.0")
    choice = choice_of(machine.install("--dry-run"))
    assert choice.indexes == ["cu125", "cu124"]
    assert "-DCMAKE_CUDA_ARCHITECTURES=70-real;90-real" in choice.cmake_flags
    assert "3 x NVIDIA Test GPU" in choice.output


def test_cuda_wheels_come_with_the_runtime_libraries_of_their_major_version(machine: StandInMachine) -> None:
    machine.programs["nvidia-smi"] = nvidia_smi("550.54.14", "12.4", "8.0")
    assert "nvidia-cuda-runtime-cu12 nvidia-cublas-cu12" in machine.install("--dry-run").stdout
    machine.programs["nvidia-smi"] = nvidia_smi("580.65.06", "13.0", "9.0")
    assert "nvidia-cuda-runtime==13.* nvidia-cublas==13.*" in machine.install("--dry-run").stdout


def test_an_amd_gpu_gets_the_rocm_build_for_its_target(machine: StandInMachine) -> None:
    machine.programs["rocminfo"] = (
        'printf "  Name:                    AMD EPYC\\n  Name:                    gfx1100\\n"'
    )
    choice = choice_of(machine.install("--dry-run"))
    assert choice.indexes == ["rocm72"]
    assert choice.cmake_flags == COMMON_FLAGS | {"-DGGML_HIP=ON", "-DGPU_TARGETS=gfx1100"}


def test_an_amd_gpu_is_found_without_rocm_too(machine: StandInMachine) -> None:
    for node, version in (("0", 0), ("1", 90010), ("2", 110003)):
        folder = machine.folder / "tools" / "kfd" / node
        folder.mkdir(parents=True)
        (folder / "properties").write_text(f"simd_count 4\ngfx_target_version {version}\n", encoding="utf-8")
    choice = choice_of(machine.install("--dry-run"))
    assert "-DGPU_TARGETS=gfx1103;gfx90a" in choice.cmake_flags


def test_a_mac_with_apple_silicon_gets_metal(machine: StandInMachine) -> None:
    machine.programs["uname"] = 'case "$1" in -s) echo Darwin ;; -m) echo arm64 ;; *) echo Darwin arm64 ;; esac'
    choice = choice_of(machine.install("--dry-run"))
    assert choice.indexes == ["metal"]
    assert choice.cmake_flags == COMMON_FLAGS | {"-DGGML_METAL=ON"}


def test_vulkan_is_taken_for_a_discrete_gpu_and_not_for_a_software_renderer(machine: StandInMachine) -> None:
    summary = 'printf "GPU0:\\n\\tdeviceType = PHYSICAL_DEVICE_TYPE_{}\\n\\tdeviceName = {}\\n"'
    machine.programs["vulkaninfo"] = summary.format("CPU", "llvmpipe")
    assert choice_of(machine.install("--dry-run")).indexes == ["cpu"]
    machine.programs["vulkaninfo"] = summary.format("DISCRETE_GPU", "Arc B580")
    choice = choice_of(machine.install("--dry-run"))
    assert choice.indexes == ["vulkan"]
    assert "Arc B580" in choice.output


@pytest.mark.parametrize("backend", ["cpu", "metal", "vulkan", "rocm"])
def test_a_named_backend_wins_over_what_was_found(machine: StandInMachine, backend: str) -> None:
    machine.programs["nvidia-smi"] = nvidia_smi("580.65.06", "13.0", "9.0")
    choice = choice_of(machine.install("--dry-run", "--backend", backend))
    assert choice.indexes == ["rocm72" if backend == "rocm" else backend]
    assert "-DGGML_CUDA=ON" not in choice.cmake_flags


def test_from_source_asks_no_wheel_index(machine: StandInMachine) -> None:
    assert choice_of(machine.install("--dry-run", "--from-source")).indexes == []


def test_the_users_cmake_args_are_kept_and_mean_a_build_from_source(machine: StandInMachine) -> None:
    machine.environment["CMAKE_ARGS"] = "-DGGML_NATIVE=OFF"
    choice = choice_of(machine.install("--dry-run"))
    assert choice.indexes == []
    assert choice.cmake_flags == COMMON_FLAGS | {"-DGGML_NATIVE=OFF"}


def test_every_set_of_build_flags_has_its_own_place_in_the_cache(machine: StandInMachine) -> None:
    def cache_folder(*arguments: str) -> str:
        found = re.search(
            r"^# built once, then taken from (.*)$", machine.install("--dry-run", *arguments).stdout, re.M
        )
        assert found
        return found[1]

    plain = cache_folder("--backend", "cpu")
    assert plain.startswith(str(machine.home / ".cache/ggufdeploy/wheels/"))
    assert cache_folder("--backend", "cpu") == plain
    assert cache_folder("--backend", "vulkan") != plain
    machine.environment["CMAKE_ARGS"] = "-DGGML_NATIVE=OFF"
    assert cache_folder("--backend", "cpu") != plain


def test_the_version_is_the_one_that_pyproject_pins(machine: StandInMachine) -> None:
    pinned = re.search(r"llama-cpp-python==[0-9.]+", (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pinned
    downloads = [line for line in machine.install("--dry-run").stdout.splitlines() if "pip download" in line]
    assert len(downloads) == 1
    assert downloads[0].endswith(pinned[0])
    assert "--no-deps --only-binary llama-cpp-python" in downloads[0]


def test_the_wheel_index_can_be_a_mirror(machine: StandInMachine) -> None:
    machine.environment["LLAMA_CPP_WHEEL_INDEX"] = "https://mirror.example/whl"
    assert choice_of(machine.install("--dry-run")).indexes == ["https://mirror.example/whl/cpu"]


@pytest.mark.parametrize("mode", [[], ["--demo"], ["--uninstall"], ["--uninstall", "--purge"]])
def test_a_dry_run_makes_no_file(machine: StandInMachine, mode: list[str]) -> None:
    result = machine.install("--dry-run", *mode)
    assert result.returncode == 0, result.stderr
    assert machine.files() == []


def test_the_test_mode_shows_its_steps_and_builds_with_rpc(machine: StandInMachine) -> None:
    choice = choice_of(machine.install("--dry-run", "--test"))
    assert choice.indexes == []
    assert "-DGGML_RPC=ON" in choice.cmake_flags
    for step in ("ruff check", "ruff format", "mypy", "shellcheck", "pytest -m 'engine or slow'", "pytest -m install"):
        assert re.search(rf"^\+ .*{step}", choice.output, re.M), step
    assert machine.files() == []


def test_a_prefix_moves_everything_but_the_cache(machine: StandInMachine) -> None:
    prefix = machine.folder / "elsewhere"
    output = machine.install("--dry-run", "--prefix", str(prefix)).stdout
    assert f"+ ln -s {prefix}/venv/bin/ggufdeploy {prefix}/bin/ggufdeploy" in output
    assert ".local" not in output
    machine.environment["GGUFDEPLOY_PREFIX"] = str(prefix)
    assert machine.install("--dry-run").stdout == output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--bogus"], "unknown option --bogus"),
        (["install"], "unknown option install"),
        (["--backend", "cuda12"], "--backend is auto, cpu, cuda, metal, vulkan or rocm, not cuda12"),
        (["--backend"], "--backend needs a value"),
        (["--demo", "--test"], "--demo and --test exclude each other"),
        (["--purge"], "--purge goes with --uninstall"),
        (["--wheel", "nowhere.whl"], "--wheel nowhere.whl: there is no such file"),
    ],
)
def test_wrong_usage_says_what_is_wrong_and_exits_2(
    machine: StandInMachine, arguments: list[str], complaint: str
) -> None:
    result = machine.install(*arguments)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert "usage: ./install.sh" in result.stderr
    assert machine.files() == []


def test_help_goes_to_stdout(machine: StandInMachine) -> None:
    result = machine.install("--help")
    assert result.returncode == 0
    assert "--uninstall" in result.stdout
    assert result.stderr == ""


def test_a_script_cut_short_does_nothing(machine: StandInMachine) -> None:
    """What a broken download or a piped script that stops half-way leaves: definitions, and no action."""
    lines = (CHECKOUT / "install.sh").read_text(encoding="utf-8").splitlines(keepends=True)
    assert lines[-1] == 'main "$@"\n'
    for keep in (len(lines) // 3, len(lines) * 2 // 3, len(lines) - 1):
        cut = machine.folder / "tools-cut.sh"
        cut.write_text("".join(lines[:keep]), encoding="utf-8")
        result = machine.install("--dry-run", script=cut)
        cut.unlink()
        assert result.stdout == ""
        assert machine.files() == []


def test_outside_a_checkout_it_says_so(machine: StandInMachine) -> None:
    alone = machine.folder / "tools"
    alone.mkdir()
    (alone / "install.sh").write_bytes((CHECKOUT / "install.sh").read_bytes())
    result = machine.install(script=alone / "install.sh")
    assert result.returncode == 1
    assert "hint: git clone" in result.stderr


def test_a_python_that_is_too_old_is_named_with_what_to_install(machine: StandInMachine) -> None:
    bare = machine.folder / "tools"
    bare.mkdir()
    for name in ("dirname", "sed", "uname", "bash", "cat"):
        (bare / name).symlink_to(next(path for path in (Path("/usr/bin") / name, Path("/bin") / name) if path.exists()))
    machine.programs = {"python3": "exit 1", "apt-get": "exit 1"}
    machine.environment["PATH"] = str(bare)
    bash = os.fspath(bare / "bash")
    result = subprocess.run([bash, "-c", "exit 0"], env={"PATH": str(bare)}, check=False)
    assert result.returncode == 0
    answer = machine.install("--dry-run")
    assert answer.returncode == 1
    assert "Python 3.10 or newer" in answer.stderr
    assert "sudo apt-get install python3 python3-venv" in answer.stderr
