# shellcheck shell=bash
# Get llama-cpp-python at the pinned version into the virtual environment and prove that it works; install.sh sources it.
#
# The CPU build and every CUDA build share one file name and version, so pip cannot tell them apart: the manifest does, and
# every installation says --force-reinstall. PyPI holds the sources only, so a plain `pip install` would compile silently.

WHEEL_INDEX_BASE=${LLAMA_CPP_WHEEL_INDEX:-https://abetlen.github.io/llama-cpp-python/whl}
ENGINE_WHEEL=""     # the file to install; empty when the installed one stays
ENGINE_SOURCE=""    # "source", or the index or file it came from
CHECK_REPORT=""     # what check_engine.py printed
CHECK_PROBLEM=""    # why the check failed

install_engine() {
    if engine_is_current; then
        ENGINE_SOURCE=$(manifest_get engine-source)
        say "engine: llama-cpp-python $ENGINE_VERSION ($BACKEND) is there already"
    else
        obtain_engine
        put_engine
    fi
}

engine_is_current() {
    ((DRY_RUN == 0)) && [[ -z "$GIVEN_WHEEL" ]] || return 1
    [[ "$(manifest_get engine-version)" == "$ENGINE_VERSION" && "$(manifest_get engine-backend)" == "$BACKEND" ]] || return 1
    ((FROM_SOURCE == 0)) || [[ "$(manifest_get engine-key)" == "$(engine_key)" ]] || return 1
    "$VENV/bin/python" -c 'import importlib.metadata as m, sys; sys.exit(m.version("llama-cpp-python") != sys.argv[1])' \
        "$ENGINE_VERSION" 2>/dev/null
}

obtain_engine() {
    if [[ -n "$GIVEN_WHEEL" ]]; then
        check_wheel_name "$GIVEN_WHEEL" || die "$GIVEN_WHEEL is not a wheel of llama-cpp-python $ENGINE_VERSION"
        ENGINE_WHEEL=$GIVEN_WHEEL ENGINE_SOURCE=$GIVEN_WHEEL
        return
    fi
    if ((FROM_SOURCE == 0)) && download_wheel; then return; fi
    if ((DRY_RUN)) || can_build "$BACKEND"; then
        build_wheel
    elif [[ "$REQUESTED_BACKEND" == auto && "$BACKEND" != cpu ]]; then
        fall_back_to_cpu
    else
        die "llama-cpp-python $ENGINE_VERSION for $BACKEND has no wheel for this machine and cannot be built here" \
            "install what is named above, then run install.sh again"
    fi
}

fall_back_to_cpu() {
    note "the GPU is not used: its $BACKEND build of llama-cpp-python could neither be downloaded nor built (see above);" \
        "mend that and run install.sh again"
    choose_backend cpu
    BACKEND_WHY="no build for the GPU could be had"
    if ! engine_is_current; then obtain_engine; fi
}

# Each index in turn. The index alone answers: the user's other indexes may hold a build for another backend, or another
# version. No retries, so that a machine without network goes on to the next way within seconds.
download_wheel() {
    local index folder="$TMP/wheel"
    for index in $WHEEL_INDEXES; do
        if run_quietly "fetching the wheel from $WHEEL_INDEX_BASE/$index" \
            env -u PIP_EXTRA_INDEX_URL -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null "$VENV/bin/python" -m pip download \
            --no-deps --only-binary llama-cpp-python --no-cache-dir --timeout 10 --retries 0 \
            --index-url "$WHEEL_INDEX_BASE/$index" --dest "$folder" "llama-cpp-python==$ENGINE_VERSION"; then
            if ((DRY_RUN)); then printf '# if that index has no such wheel:\n'; continue; fi
            ENGINE_WHEEL=$(one_wheel "$folder") || exit 1
            ENGINE_SOURCE="$WHEEL_INDEX_BASE/$index"
            return 0
        fi
        ((DRY_RUN)) || say "  no ready wheel at $WHEEL_INDEX_BASE/$index ($(pip_error))"
    done
    return 1
}

# The last thing pip complained about, short enough for a line.
pip_error() {
    { grep -E 'ERROR|WARNING: Retrying|Connection' "$LOG" || tail -n 1 "$LOG"; } | tail -n 1 | cut -c 1-120
}

one_wheel() {
    local wheels=("$1"/*.whl)
    if ((${#wheels[@]} != 1)) || ! check_wheel_name "${wheels[0]}"; then
        die "pip brought unexpected files: ${wheels[*]##*/}"
    fi
    echo "${wheels[0]}"
}

check_wheel_name() { [[ -f "$1" && "${1##*/}" == "llama_cpp_python-$ENGINE_VERSION-py3-none-"*.whl ]]; }

# What a build depends on: two machines sharing a home directory, or two sets of flags, never share a wheel. pip's own
# cache knows nothing of CMAKE_ARGS.
engine_key() {
    local processor
    processor=$(grep -m 1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null || sysctl -n machdep.cpu.brand_string 2>/dev/null) ||
        processor=unknown
    printf '%s\n' "$CMAKE_FLAGS" "$(<"$CHECKOUT/scripts/install/build.cmake")" "$(uname -sm)" "$processor" "$PYTHON_TAG" |
        sha256 | cut -c 1-12
}

sha256() {
    if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1
}

build_wheel() {
    local folder wheel built="$TMP/built"
    folder="$CACHE/wheels/$ENGINE_VERSION-$BACKEND-$(engine_key)"
    ENGINE_SOURCE=source
    if ((DRY_RUN)); then printf '# built once, then taken from %s\n' "$folder"; fi
    wheel=$(cached_wheel "$folder") && { ENGINE_WHEEL=$wheel; say "engine: taking the wheel built here before, $wheel"; return; }
    local jobs nvcc environment
    jobs=$(build_jobs)
    # A copy, because CMAKE_ARGS is split at blanks and the checkout's path may have some.
    run cp "$CHECKOUT/scripts/install/build.cmake" "$TMP/build.cmake"
    environment=("CMAKE_ARGS=$CMAKE_FLAGS -DCMAKE_PROJECT_llama_cpp_INCLUDE=$TMP/build.cmake" "CMAKE_BUILD_PARALLEL_LEVEL=$jobs")
    if [[ "$BACKEND" == cuda ]] && nvcc=$(find_nvcc); then environment+=("CUDACXX=$nvcc"); fi
    say "engine: building llama-cpp-python $ENGINE_VERSION for $BACKEND with $jobs jobs; on two cores this takes about six minutes"
    run_quietly "building" env "${environment[@]}" "$VENV/bin/python" -m pip wheel --verbose --no-deps \
        --no-binary llama-cpp-python --no-cache-dir --wheel-dir "$built" "llama-cpp-python==$ENGINE_VERSION" ||
        log_and_die "the build failed" "mend what is printed above, or ./install.sh --backend cpu"
    if ((DRY_RUN)); then return; fi
    wheel=$(one_wheel "$built")
    mkdir -p "$folder"
    manifest_add made-tree "$folder"
    mv "$wheel" "$folder/"
    ENGINE_WHEEL="$folder/${wheel##*/}"
    sha256 <"$ENGINE_WHEEL" >"$folder/SHA256"
}

# cached_wheel FOLDER: the wheel built earlier, if it is whole.
cached_wheel() {
    local wheels=("$1"/*.whl)
    ((REBUILD == 0)) && [[ -f "${wheels[0]}" && -f "$1/SHA256" ]] || return 1
    [[ "$(sha256 <"${wheels[0]}")" == "$(<"$1/SHA256")" ]] || return 1
    echo "${wheels[0]}"
}

# One job per core, but no more than one per 1.5 GiB of memory: the compiler takes up to that much for one file.
build_jobs() {
    local cores memory_mib
    cores=$(getconf _NPROCESSORS_ONLN)
    memory_mib=$(awk '/^MemAvailable/ {print int($2 / 1024)}' /proc/meminfo 2>/dev/null) || memory_mib=""
    [[ -n "$memory_mib" ]] || memory_mib=$((cores * 1536))
    local jobs=$((memory_mib / 1536))
    ((jobs < cores)) || jobs=$cores
    echo $((jobs > 1 ? jobs : 1))
}

put_engine() {
    if [[ -z "$ENGINE_WHEEL" ]] && ((DRY_RUN == 0)); then return; fi
    run_quietly "installing the engine" "$VENV/bin/python" -m pip install --force-reinstall --no-deps \
        "${ENGINE_WHEEL:-THE_WHEEL}" || pip_failed
    if [[ "$ENGINE_SOURCE" == */cu[0-9]* ]]; then add_cuda_runtime "${ENGINE_SOURCE##*/cu}"
    elif ((DRY_RUN && FROM_SOURCE == 0)) && [[ "$BACKEND" == cuda ]]; then add_cuda_runtime "${WHEEL_INDEXES#cu}"; fi
    manifest_put engine-version "$ENGINE_VERSION"
    manifest_put engine-backend "$BACKEND"
    manifest_put engine-source "$ENGINE_SOURCE"
    manifest_put engine-key "$(if [[ "$ENGINE_SOURCE" == source ]]; then engine_key; else echo none; fi)"
    if ((DRY_RUN)); then return; fi
    manifest_put engine-wheel "${ENGINE_WHEEL##*/}"
    manifest_put engine-sha256 "$(sha256 <"$ENGINE_WHEEL")"
}

# add_cuda_runtime 124: the CUDA wheels leave out libcudart and libcublas. They come from pip and are linked beside the
# engine's own libraries, which look there first ($ORIGIN), so no process needs LD_LIBRARY_PATH.
add_cuda_runtime() {
    local major=${1:0:2} tool="$CHECKOUT/scripts/install/cuda_libraries.py"
    if ((DRY_RUN)); then
        printf '# with a ready wheel, unless the CUDA %s libraries are on this machine:\n' "$major"
    elif "$VENV/bin/python" "$tool" present "$major"; then
        return
    fi
    local packages=("nvidia-cuda-runtime-cu$major" "nvidia-cublas-cu$major")
    if ((major >= 13)); then packages=("nvidia-cuda-runtime==$major.*" "nvidia-cublas==$major.*"); fi
    run_quietly "fetching the CUDA $major libraries" "$VENV/bin/python" -m pip install "${packages[@]}" || pip_failed
    run "$VENV/bin/python" "$tool" link
}

# Run the check. What does not work here is built here, once; failing that, `auto` falls back to the CPU.
verify_engine() {
    if engine_works; then return; fi
    warn "the engine does not work on this machine: $CHECK_PROBLEM"
    if building_may_help && can_build "$BACKEND"; then
        build_wheel
    elif [[ "$REQUESTED_BACKEND" == auto && "$BACKEND" != cpu ]]; then
        fall_back_to_cpu
    else
        die "no working engine for $BACKEND could be had" "./install.sh --from-source, or ./install.sh --backend cpu"
    fi
    put_engine
    engine_works || die "the engine built here does not work either: $CHECK_PROBLEM" "./install.sh --backend cpu"
}

# A ready wheel may be for another processor or driver, and so may one that was built before on another machine.
building_may_help() {
    [[ -z "$GIVEN_WHEEL" ]] || return 1
    if [[ "$ENGINE_SOURCE" == source ]]; then
        REBUILD=1
        [[ "$CHECK_PROBLEM" == illegal* ]]
    fi
}

# A child process, because an illegal instruction or a driver's abort kills whoever loads the library.
engine_works() {
    if ((DRY_RUN)); then
        run "$VENV/bin/python" "$CHECKOUT/scripts/install/check_engine.py"
        return
    fi
    local status=0
    { "$VENV/bin/python" "$CHECKOUT/scripts/install/check_engine.py" >"$TMP/check" 2>"$TMP/check-errors"; } 2>/dev/null || status=$?
    CHECK_REPORT=$(<"$TMP/check")
    case $status in
        0) CHECK_PROBLEM="" ;;
        132) CHECK_PROBLEM="illegal instruction: it was built for another processor" ;;
        *) CHECK_PROBLEM="exit status $status: $(tail -n 1 "$TMP/check-errors")" ;;
    esac
    if [[ -z "$CHECK_PROBLEM" && "$BACKEND" != cpu && "$(check_value gpu)" != yes ]]; then
        CHECK_PROBLEM="it sees no GPU, though it is meant for $BACKEND"
    fi
    [[ -z "$CHECK_PROBLEM" ]]
}

check_value() { sed -n "s/^$1 //p" <<<"$CHECK_REPORT"; }
