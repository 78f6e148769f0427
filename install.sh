#!/usr/bin/env bash
# Install ggufdeploy from this checkout for the current user: see usage below. Nothing runs before the last line is read.
set -euo pipefail

usage() {
    cat <<'END'
usage: ./install.sh [--demo | --dev | --test | --uninstall [--purge]] [options]

Installs ggufdeploy from this checkout into a virtual environment of its own, for the current user, without root. Running
it again repairs or updates the installation. Drivers and system packages are never touched.

what to do (default: install)
  --demo            install, then fetch a 98 MB model, serve it, ask one question, and stop
  --dev             set up .venv in this checkout for development
  --test            --dev, then run every check and test
  --uninstall       remove what was installed; models stay
  --purge           with --uninstall: caches and learned speeds too; models in the Hugging Face cache, which other
                    programs share, stay (remove them before: ggufdeploy list, ggufdeploy rm MODEL)

options
  --backend NAME    auto, cpu, cuda, metal, vulkan or rocm (default: auto, what this machine has)
  --from-source     build llama-cpp-python here instead of taking a ready wheel (minutes, often faster when it runs)
  --wheel FILE      install this llama-cpp-python wheel (machines without network)
  --prefix DIR      where to install (default: ~/.local/share/ggufdeploy, with a link in ~/.local/bin)
  --dry-run         print every command and change nothing
  -h, --help        this text

environment
  GGUFDEPLOY_PREFIX      as --prefix
  CMAKE_ARGS             more flags for the build; implies --from-source
  LLAMA_CPP_WHEEL_INDEX  a mirror of https://abetlen.github.io/llama-cpp-python/whl
END
}

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
MODE=install
DRY_RUN=0
FROM_SOURCE=0
REBUILD=0
PURGE=0
REQUESTED_BACKEND=""
GIVEN_WHEEL=""
PREFIX=""
USER_CMAKE_ARGS=""

PYTHON=""           # the interpreter the virtual environment is made from
PYTHON_TAG=""       # cpython-312
PYTHON_VERSION=""
ENGINE_VERSION=""   # of llama-cpp-python, as pyproject.toml pins it
VENV=""
LINK=""             # the command; empty in --dev and --test
MANIFEST=""
CACHE=""            # ggufdeploy's cache folder
STATE=""            # what it learned about this machine
TMP=""
LOG=""              # output of the last quiet command
CHILD=""            # process group to end when the script ends; "starting" until its id is known
CHILD_BEFORE=""     # the one before it
NOTES=()
MADE_FOLDERS=()

main() {
    parse "$@"
    prepare
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    case $MODE in
        uninstall) uninstall ;;
        install) install_for_user ;;
        demo) install_for_user; demo ;;
        dev) install_for_development ;;
        test) install_for_development; run_tests ;;
    esac
}

parse() {
    while (($#)); do
        case $1 in
            --demo | --dev | --test | --uninstall) set_mode "${1#--}" ;;
            --purge) PURGE=1 ;;
            --dry-run) DRY_RUN=1 ;;
            --from-source) FROM_SOURCE=1 ;;
            --backend | --prefix | --wheel)
                [[ -n "${2:-}" ]] || wrong_usage "$1 needs a value"
                set_option "$1" "$2"
                shift ;;
            --backend=* | --prefix=* | --wheel=*) set_option "${1%%=*}" "${1#*=}" ;;
            -h | --help) usage; exit 0 ;;
            *) wrong_usage "unknown option $1" ;;
        esac
        shift
    done
    ((PURGE == 0)) || [[ "$MODE" == uninstall ]] || wrong_usage "--purge goes with --uninstall"
}

set_mode() {
    [[ "$MODE" == install || "$MODE" == "$1" ]] || wrong_usage "--$MODE and --$1 exclude each other"
    MODE=$1
}

set_option() {
    case $1 in
        --prefix) PREFIX=$2 ;;
        --wheel)
            [[ -f "$2" ]] || wrong_usage "--wheel $2: there is no such file"
            GIVEN_WHEEL=$(cd "$(dirname "$2")" && pwd -P)/${2##*/} ;;
        --backend)
            case $2 in
                auto | cpu | cuda | metal | vulkan | rocm) REQUESTED_BACKEND=$2 ;;
                *) wrong_usage "--backend is auto, cpu, cuda, metal, vulkan or rocm, not $2" ;;
            esac ;;
    esac
}

wrong_usage() {
    printf 'install.sh: %s\n\n' "$1" >&2
    usage >&2
    exit 2
}

prepare() {
    if [[ ! -f "$CHECKOUT/pyproject.toml" || ! -d "$CHECKOUT/scripts/install" ]]; then
        printf 'error: install.sh works inside a checkout of ggufdeploy, and %s is none\n' "$CHECKOUT" >&2
        printf 'hint: git clone the repository, then ./install.sh\n' >&2
        exit 1
    fi
    # shellcheck source=scripts/install/output.sh
    source "$CHECKOUT/scripts/install/output.sh"
    # shellcheck source=scripts/install/backend.sh
    source "$CHECKOUT/scripts/install/backend.sh"
    # shellcheck source=scripts/install/engine.sh
    source "$CHECKOUT/scripts/install/engine.sh"
    # shellcheck source=scripts/install/manifest.sh
    source "$CHECKOUT/scripts/install/manifest.sh"
    # shellcheck source=scripts/install/after.sh
    source "$CHECKOUT/scripts/install/after.sh"
    [[ -n "${HOME:-}" ]] || die "HOME is not set"
    set_places
    clean_environment
}

# Names the places and cleans the environment. The command line rejects unknown GGUFDEPLOY_ names, so ours ends here.
set_places() {
    PREFIX=${PREFIX:-${GGUFDEPLOY_PREFIX:-}}
    unset GGUFDEPLOY_PREFIX
    if [[ -z "$PREFIX" ]]; then
        PREFIX="$HOME/.local/share/ggufdeploy"
        LINK="$HOME/.local/bin/ggufdeploy"
    else
        [[ "$PREFIX" == /* ]] || PREFIX="$PWD/$PREFIX"
        LINK="$PREFIX/bin/ggufdeploy"
    fi
    VENV="$PREFIX/venv"
    MANIFEST="$PREFIX/manifest"
    if [[ "$MODE" == dev || "$MODE" == test ]]; then
        LINK=""
        VENV="$CHECKOUT/.venv"
        MANIFEST="$VENV/ggufdeploy-manifest"
    fi
    if [[ "$(uname -s)" == Darwin ]]; then
        CACHE="$HOME/Library/Caches/ggufdeploy" STATE="" # there it shares a folder with the user's profiles
    else
        CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/ggufdeploy" STATE="${XDG_STATE_HOME:-$HOME/.local/state}/ggufdeploy"
    fi
    CACHE=${GGUFDEPLOY_CACHE_DIR:-$CACHE} STATE=${GGUFDEPLOY_STATE_DIR:-$STATE}
}

clean_environment() {
    unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX
    export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
    USER_CMAKE_ARGS=${CMAKE_ARGS:-}
    unset CMAKE_ARGS
    if [[ -n "$USER_CMAKE_ARGS" ]]; then FROM_SOURCE=1; fi
    exec </dev/null
}

install_for_user() {
    REQUESTED_BACKEND=${REQUESTED_BACKEND:-auto}
    begin
    make_folder "$PREFIX"
    make_folder "${LINK%/*}"
    record_folders
    manifest_add made-tree "$VENV"
    make_venv
    install_engine
    install_app
    link_command
    verify_engine
    report
}

# The tests need the RPC device, which ready wheels do not have, and no GPU.
install_for_development() {
    if [[ -z "$REQUESTED_BACKEND" ]]; then REQUESTED_BACKEND=cpu; fi
    FROM_SOURCE=1
    begin
    [[ "$BACKEND" != cpu ]] || BACKEND_WHY="the tests need no GPU"
    make_venv
    install_engine
    install_checkout
    verify_engine
    report
}

begin() {
    find_python
    ENGINE_VERSION=$(sed -nE 's/.*"llama-cpp-python==([0-9.]+)".*/\1/p' "$CHECKOUT/pyproject.toml")
    [[ -n "$ENGINE_VERSION" ]] || die "pyproject.toml does not pin llama-cpp-python"
    detect_gpu
    choose_backend "$REQUESTED_BACKEND"
    say "python: $PYTHON_VERSION, $(command -v "$PYTHON")"
    TMP="${TMPDIR:-/tmp}/ggufdeploy-install"
    ((DRY_RUN)) || TMP=$(mktemp -d "$TMP.XXXXXX")
}

# Python 3.10 or newer with venv and pip's bootstrap, which Debian packs separately.
find_python() {
    local candidate facts bare=""
    for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
        facts=$("$candidate" -c 'import sys
from importlib.util import find_spec
whole = find_spec("venv") and find_spec("ensurepip")
print(sys.version_info >= (3, 10), bool(whole), sys.implementation.cache_tag, *sys.version.split()[:1])' 2>/dev/null) || continue
        case $facts in
            "True True "*)
                PYTHON=$candidate
                read -r _ _ PYTHON_TAG PYTHON_VERSION <<<"$facts"
                return ;;
            "True False "*) bare=${bare:-$candidate} ;;
        esac
    done
    [[ -z "$bare" ]] || die "$bare has no venv module" "$(package_hint "$bare-venv" python3 'brew install python')"
    die "ggufdeploy needs Python 3.10 or newer; none of python3, python3.13 to python3.10 is" \
        "$(package_hint 'python3 python3-venv' python3 'brew install python')"
}

make_venv() {
    say "backend: $BACKEND ($BACKEND_WHY)"
    if "$VENV/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        say "environment: $VENV"
    else
        [[ ! -e "$VENV" || -f "$VENV/pyvenv.cfg" ]] || die "$VENV exists and is no virtual environment" "move it away, or use --prefix"
        run_quietly "making $VENV" "$PYTHON" -m venv --clear "$VENV" || log_and_die "no virtual environment could be made"
        if [[ "$MODE" != dev && "$MODE" != test ]]; then forget_engine; fi
    fi
}

# A new environment has no engine and no ggufdeploy, whatever the manifest of the old one says.
forget_engine() {
    manifest_put engine-version none
    manifest_put app-stamp none
}

# The dependencies come from the user's own index. llama-cpp-python is there already at the pinned version.
install_app() {
    local stamp pip=("$VENV/bin/python" -m pip)
    stamp=$(checkout_stamp)
    if [[ "$(manifest_get app-stamp)" == "$stamp" ]] && "$VENV/bin/ggufdeploy" --version >/dev/null 2>&1 &&
        "${pip[@]}" check >/dev/null 2>&1; then
        say "ggufdeploy: this checkout is installed already"
        return
    fi
    run_quietly "packing ggufdeploy" "${pip[@]}" wheel --no-deps --wheel-dir "$TMP/app" "$CHECKOUT" || pip_failed
    run_quietly "installing ggufdeploy" "${pip[@]}" install --force-reinstall --no-deps "$TMP"/app/ggufdeploy-*.whl || pip_failed
    run_quietly "installing its dependencies" "${pip[@]}" install "$TMP"/app/ggufdeploy-*.whl || pip_failed
    manifest_put app-stamp "$stamp"
}

install_checkout() {
    local stamp pip=("$VENV/bin/python" -m pip)
    stamp=$(sha256 <"$CHECKOUT/pyproject.toml")
    if [[ "$(manifest_get app-stamp)" == "$stamp" ]] && "$VENV/bin/python" -c 'import ggufdeploy, pytest' 2>/dev/null; then
        say "ggufdeploy: the checkout and the development tools are installed already"
        return
    fi
    run_quietly "updating pip" "${pip[@]}" install "pip>=25.1" || pip_failed
    run_quietly "installing the checkout and the development tools" "${pip[@]}" install --editable "$CHECKOUT" \
        --group "$CHECKOUT/pyproject.toml:dev" || pip_failed
    manifest_put app-stamp "$stamp"
}

# Changes when anything that goes into the wheel does.
checkout_stamp() {
    (cd "$CHECKOUT" && find ggufdeploy profiles pyproject.toml README.md -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z |
        xargs -0 cat | sha256)
}

link_command() {
    local target="$VENV/bin/ggufdeploy"
    if [[ -L "$LINK" && "$(readlink "$LINK")" == "$target" ]]; then return; fi
    [[ ! -e "$LINK" && ! -L "$LINK" ]] || die "$LINK exists and is not ours" "remove it, or install elsewhere with --prefix DIR"
    run ln -s "$target" "$LINK"
    manifest_add made-link "$LINK"
}

main "$@"
