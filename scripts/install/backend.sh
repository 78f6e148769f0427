# shellcheck shell=bash
# Which accelerator this machine has and which build of llama-cpp-python serves it. Reads only; install.sh sources it.

GPU_KIND=none       # nvidia, amd, apple, vulkan or none
GPU_NAME=""
DRIVER=""           # NVIDIA driver, as nvidia-smi prints it
CUDA_VERSION=""     # the newest CUDA the driver supports, "12.4"; empty when nvidia-smi does not say
COMPUTE_CAPS=""     # one per kind of GPU, lowest first: "8.0 9.0"
AMD_TARGETS=""      # "gfx1100;gfx942"

KFD_NODES=${KFD_NODES:-/sys/class/kfd/kfd/topology/nodes} # where the kernel lists AMD GPUs; the tests have their own

BACKEND=""          # cpu, cuda, metal, vulkan or rocm
BACKEND_WHY=""
WHEEL_INDEXES=""    # names under the wheel index, best first: "cu130 cu125"
CMAKE_FLAGS=""

detect_gpu() {
    if detect_nvidia || detect_amd || detect_apple || detect_vulkan; then return 0; fi
    GPU_KIND=none
}

detect_nvidia() {
    local rows banner
    command -v nvidia-smi >/dev/null || return 1
    rows=$(nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader 2>/dev/null) ||
        rows=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null) || return 1
    [[ "$rows" == *,* ]] || return 1
    GPU_KIND=nvidia
    GPU_NAME=$(cut -d, -f1 <<<"$rows" | sort | uniq -c | sed -E 's/^ *1 //; s/^ *([0-9]+) /\1 x /' | paste -sd, -)
    DRIVER=$(head -n 1 <<<"$rows" | cut -d, -f2 | tr -d ' ')
    COMPUTE_CAPS=$(cut -s -d, -f3 <<<"$rows" | tr -d ' ' | { grep -E '^[0-9]+\.[0-9]+$' || true; } | sort -Vu | paste -sd' ' -)
    # Drivers from 610 on write "CUDA UMD Version".
    banner=$(nvidia-smi 2>/dev/null) || banner=""
    CUDA_VERSION=$(sed -nE 's/.*CUDA (UMD )?Version: *([0-9]+\.[0-9]+).*/\2/p' <<<"$banner" | head -n 1)
}

detect_amd() {
    local targets=""
    [[ -e "$KFD_NODES" ]] || command -v rocminfo >/dev/null || return 1
    if command -v rocminfo >/dev/null; then
        targets=$(rocminfo 2>/dev/null | sed -nE 's/^ *Name: *(gfx[0-9a-f]+) *$/\1/p') || targets=""
    fi
    [[ -n "$targets" ]] || targets=$(kfd_targets)
    [[ -n "$targets" ]] || return 1
    GPU_KIND=amd
    AMD_TARGETS=$(sort -u <<<"$targets" | paste -sd';' -)
    GPU_NAME="AMD GPU (${AMD_TARGETS//;/, })"
}

# The kernel writes 110003 for gfx1103 and 90010 for gfx90a: major, minor and stepping, the last two in hexadecimal.
kfd_targets() {
    local file version
    for file in "$KFD_NODES"/*/properties; do
        [[ -r "$file" ]] || continue
        version=$(sed -n 's/^gfx_target_version //p' "$file")
        [[ "${version:-0}" -gt 0 ]] || continue
        printf 'gfx%d%x%x\n' $((version / 10000)) $((version / 100 % 100)) $((version % 100))
    done
}

detect_apple() {
    [[ "$(uname -s)" == Darwin && "$(uname -m)" == arm64 ]] || return 1
    GPU_KIND=apple
    GPU_NAME="Apple GPU"
}

# Only a discrete GPU: a software renderer answers vulkaninfo too.
detect_vulkan() {
    local summary
    command -v vulkaninfo >/dev/null || return 1
    summary=$(vulkaninfo --summary 2>/dev/null) || return 1
    [[ "$summary" == *PHYSICAL_DEVICE_TYPE_DISCRETE_GPU* ]] || return 1
    GPU_KIND=vulkan
    GPU_NAME=$(grep -B 3 -A 3 PHYSICAL_DEVICE_TYPE_DISCRETE_GPU <<<"$summary" |
        sed -nE 's/^[[:space:]]*deviceName *= *(.*)/\1/p' | head -n 1)
}

# choose_backend auto|cpu|cuda|metal|vulkan|rocm
choose_backend() {
    case $1 in
        auto) choose_automatically ;;
        cuda) [[ "$GPU_KIND" == nvidia ]] || die "no NVIDIA GPU answers nvidia-smi" "./install.sh --backend cpu"
              use_cuda || die "$BACKEND_WHY" "./install.sh --backend cpu, or a newer NVIDIA driver" ;;
        *) BACKEND=$1 BACKEND_WHY="you asked for it" ;;
    esac
    case $BACKEND in
        cpu) WHEEL_INDEXES=cpu ;;
        metal) WHEEL_INDEXES=metal ;;
        vulkan) WHEEL_INDEXES=vulkan ;;
        rocm) WHEEL_INDEXES=rocm72 ;;
    esac
    CMAKE_FLAGS=$(cmake_flags "$BACKEND")
}

choose_automatically() {
    case $GPU_KIND in
        nvidia) use_cuda || { BACKEND=cpu; note "the GPU is not used: $BACKEND_WHY"; } ;;
        amd) BACKEND=rocm BACKEND_WHY=$GPU_NAME ;;
        apple) BACKEND=metal BACKEND_WHY=$GPU_NAME ;;
        vulkan) BACKEND=vulkan BACKEND_WHY="$GPU_NAME, through Vulkan" ;;
        none) BACKEND=cpu BACKEND_WHY="no GPU was found" ;;
    esac
}

# Sets BACKEND, BACKEND_WHY and WHEEL_INDEXES; fails, with BACKEND_WHY saying why, when no CUDA build can run here.
use_cuda() {
    local found="$GPU_NAME, driver $DRIVER, CUDA ${CUDA_VERSION:-unknown}, compute capability ${COMPUTE_CAPS:-unknown}"
    WHEEL_INDEXES=$(cuda_indexes "${DRIVER%%.*}" "$(dotted "$CUDA_VERSION" 100)" "$(dotted "${COMPUTE_CAPS%% *}" 10)")
    if [[ -z "$WHEEL_INDEXES" ]]; then
        BACKEND_WHY="no CUDA build runs on $found"
        return 1
    fi
    BACKEND=cuda BACKEND_WHY=$found
}

# dotted 12.4 100 -> 1204; dotted 9.0 10 -> 90; nothing -> 0
dotted() {
    [[ "$1" == *.* ]] || { echo 0; return; }
    echo $((${1%%.*} * $2 + ${1#*.}))
}

# cuda_indexes DRIVER_MAJOR CUDA(1204) LOWEST_CAPABILITY(90): the wheel indexes that run here, best first; 0 is unknown.
# Driver floors: CUDA 13 needs 580, 12 needs 525, 11 needs 450 (NVIDIA, CUDA Compatibility). Architectures: the CUDA 13
# builds begin at 7.5, the 12 builds at 6.0, the 11.8 build has 6.0 to 8.9 (llama-cpp-python 0.3.36, build-wheels-cuda.yaml).
cuda_indexes() {
    local driver=$1 cuda=$2 capability=$3 found=""
    if [[ ! "$driver" =~ ^[0-9]+$ ]] || ((capability > 0 && capability < 60)); then
        echo
        return
    fi
    if ((driver >= 580 && capability >= 75)); then
        if ((cuda >= 1302)); then found="cu132 "; fi
        found+="cu130 "
    fi
    if ((driver >= 525)); then
        if ((cuda >= 1205)); then found+="cu125 cu124"
        elif ((cuda >= 1202)); then found+="cu12$((cuda - 1200))"
        else found+="cu121"
        fi
    elif ((driver >= 450 && capability < 90)); then
        found=cu118
    fi
    echo "${found% }"
}

# RPC carries the stand-in device of the tests and the cluster; llava and OpenSSL are not used. llama-common, which answers
# the planner's dry run, is always built by llama-cpp-python's own CMakeLists.txt.
cmake_flags() {
    local flags="-DGGML_RPC=ON -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF"
    case $1 in
        cuda) flags+=" -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=$(cuda_architectures)" ;;
        rocm) flags+=" -DGGML_HIP=ON${AMD_TARGETS:+ -DGPU_TARGETS=$AMD_TARGETS}" ;;
        vulkan) flags+=" -DGGML_VULKAN=ON" ;;
        metal) flags+=" -DGGML_METAL=ON" ;;
    esac
    echo "$flags${USER_CMAKE_ARGS:+ $USER_CMAKE_ARGS}"
}

# "8.0 9.0" -> "80-real;90-real": code for exactly these GPUs, a fraction of the build time.
cuda_architectures() {
    [[ -n "$COMPUTE_CAPS" ]] || { echo native; return; }
    sed -E 's/([0-9]+)\.([0-9]+)/\1\2-real/g; s/ /;/g' <<<"$COMPUTE_CAPS"
}

# can_build BACKEND: is everything for a build from source here? Prints what is missing.
can_build() {
    local missing=0
    if ! command -v "${CXX:-c++}" >/dev/null && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then
        warn "a build needs a C++ compiler: $(package_hint build-essential gcc-c++ 'xcode-select --install')"
        missing=1
    fi
    case $1 in
        cuda) find_nvcc >/dev/null || { warn "a CUDA build needs nvcc: https://developer.nvidia.com/cuda-downloads"; missing=1; } ;;
        rocm) command -v hipcc >/dev/null || { warn "a ROCm build needs hipcc: https://rocm.docs.amd.com"; missing=1; } ;;
        vulkan) command -v glslc >/dev/null || {
            warn "a Vulkan build needs glslc: $(package_hint 'libvulkan-dev glslc' 'vulkan-loader-devel glslc' 'brew install shaderc')"
            missing=1
        } ;;
    esac
    return "$missing"
}

find_nvcc() {
    command -v "${CUDACXX:-nvcc}" && return 0
    [[ -x /usr/local/cuda/bin/nvcc ]] && echo /usr/local/cuda/bin/nvcc
}

# package_hint APT DNF MACOS: the command that installs a system package here.
package_hint() {
    if command -v apt-get >/dev/null; then echo "sudo apt-get install $1"
    elif command -v dnf >/dev/null; then echo "sudo dnf install $2"
    elif [[ "$(uname -s)" == Darwin ]]; then echo "$3"
    else echo "install $1 (Debian's names)"
    fi
}
