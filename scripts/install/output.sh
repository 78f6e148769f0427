# shellcheck shell=bash
# What install.sh prints, and how it runs commands: shown (--dry-run), plainly, or quietly with a progress line.

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }

# A warning that the report repeats at the end.
note() {
    NOTES+=("$*")
    warn "$*"
}

# die MESSAGE [HINT]
die() {
    printf 'error: %s\n' "$1" >&2
    [[ -z "${2:-}" ]] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

run() {
    if ((DRY_RUN)); then print_command "$@"; else "$@"; fi
}

print_command() {
    local word line="+"
    for word in "$@"; do
        if [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+*-]+$ ]]; then line+=" $word"; else line+=" '${word//\'/\'\\\'\'}'"; fi
    done
    printf '%s\n' "$line"
}

# run_quietly LABEL COMMAND...: output goes to $LOG; a progress line says that it lives. Returns the command's status.
run_quietly() {
    local label=$1 started=$SECONDS status=0
    shift
    if ((DRY_RUN)); then print_command "$@"; return; fi
    LOG="$TMP/log"
    start_child "$LOG" env TMPDIR="$TMP" "$@" # what an interrupted pip leaves goes with $TMP
    show_progress "$label" "$started"
    wait "$CHILD" || status=$?
    CHILD=""
    if ((status == 0)); then say "  $label: $((SECONDS - started)) s"; fi
    return "$status"
}

# start_child LOG COMMAND...: in a process group of its own, so that stopping it stops the compilers under it too.
start_child() {
    local log=$1
    shift
    CHILD_BEFORE=${!-}
    CHILD=starting
    set -m
    "$@" >"$log" 2>&1 &
    CHILD=$!
    set +m
}

# Until CHILD ends: one line rewritten every second on a terminal, one line every half minute elsewhere.
show_progress() {
    local label=$1 started=$2 shown=$SECONDS line
    while kill -0 "$CHILD" 2>/dev/null; do
        sleep 0.2
        if [[ -t 1 ]] && ((SECONDS > shown)); then
            line="  $label: $((SECONDS - started)) s $(files_compiled)"
            printf '\r%-70s' "$line"
            shown=$SECONDS
        elif ((SECONDS >= shown + 30)); then
            say "  $label: $((SECONDS - started)) s $(files_compiled)"
            shown=$SECONDS
        fi
    done
    if [[ -t 1 ]]; then printf '\r%-70s\r' ""; fi
}

# "[12/96]", from what ninja last printed; empty when nothing is being compiled.
files_compiled() {
    tail -c 40000 "$LOG" | { grep -oE '^ *\[[0-9]+/[0-9]+\]' || true; } | tail -n 1 | tr -d ' '
}

stop_child() {
    # The signal may have come when the process was there and its id not noted yet.
    if [[ "$CHILD" == starting ]]; then
        CHILD=${!-}
        if [[ "$CHILD" == "$CHILD_BEFORE" ]]; then CHILD=""; fi
    fi
    [[ -n "$CHILD" ]] || return 0
    local waited
    kill -TERM -- "-$CHILD" 2>/dev/null || true
    for ((waited = 0; waited < 150; waited++)); do
        kill -0 -- "-$CHILD" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL -- "-$CHILD" 2>/dev/null || true
    CHILD=""
}

finish() {
    local status=$?
    trap - EXIT
    stop_child
    if [[ -n "$TMP" ]] && ((DRY_RUN == 0)); then rm -rf "$TMP"; fi
    exit "$status"
}

# Show the end of what a quiet command said, keep all of it, and stop.
log_and_die() {
    local kept
    kept="$CACHE/install-failed.log"
    mkdir -p "$CACHE"
    cp "$LOG" "$kept"
    tail -n 25 "$LOG" >&2
    die "$1; all of its output: $kept" "${2:-}"
}

pip_failed() { log_and_die "pip failed" "check the network and the lines above, then run install.sh again"; }
