# shellcheck shell=bash
# What follows an installation: the report, the demonstration, the tests; install.sh sources it.

DEMO_MODEL=smollm2-135m
DEMO_QUESTION="Name the capital of France." # what a 98 MB model answers reliably
TESTS_PASSED=0
TESTS_FAILED=0

report() {
    if ((DRY_RUN)); then return; fi
    local text
    say ""
    say "ggufdeploy is installed ($SECONDS s)"
    say "  command   ${LINK:-$VENV/bin/ggufdeploy}"
    say "  engine    llama-cpp-python $(check_value version), $BACKEND: $BACKEND_WHY"
    say "  wheel     $(manifest_get engine-wheel), from $(manifest_get engine-source)"
    say "  sha256    $(manifest_get engine-sha256)"
    while read -r text; do say "  device    $text"; done < <(check_value device)
    say "  check     a tiny model was loaded and produced token $(check_value token)"
    if [[ "$(check_value rpc)" != yes || "$(check_value exact-planning)" != yes ]]; then
        say "  limits    $(limits) (--from-source adds this)"
    fi
    for text in ${NOTES[@]+"${NOTES[@]}"}; do say "  note      $text"; done
    if [[ -n "$LINK" && ":$PATH:" != *":${LINK%/*}:"* ]]; then
        say "  note      ${LINK%/*} is not in PATH; add it: export PATH=\"${LINK%/*}:\$PATH\""
    fi
    [[ "$MODE" != install ]] || say "Next: ggufdeploy doctor, or ggufdeploy run $DEMO_MODEL (98 MB), or ./install.sh --demo"
}

limits() {
    local missing=""
    [[ "$(check_value exact-planning)" == yes ]] || missing="memory plans come from llama.cpp's log instead of its own totals"
    [[ "$(check_value rpc)" == yes ]] || missing+="${missing:+; }no RPC, so no cluster"
    echo "$missing"
}

# Fetch, plan, serve, ask, stop. Whatever happens, the EXIT trap ends the server.
demo() {
    local answer command="$VENV/bin/ggufdeploy" ready="$TMP/ready.json"
    say ""
    run "$command" pull "$DEMO_MODEL"
    run "$command" plan "$DEMO_MODEL"
    if ((DRY_RUN)); then
        print_command "$command" run "$DEMO_MODEL" --port 0 --ready-file "$ready"
        print_command "$VENV/bin/python" "$CHECKOUT/scripts/install/ask.py" "$ready" "$DEMO_QUESTION"
        return
    fi
    start_child "$TMP/server.log" "$command" run "$DEMO_MODEL" --port 0 --ready-file "$ready"
    wait_for_server "$ready"
    answer=$("$VENV/bin/python" "$CHECKOUT/scripts/install/ask.py" "$ready" "$DEMO_QUESTION") || server_failed
    say ""
    say "question: $DEMO_QUESTION"
    say "answer:   $answer"
    stop_server
    say_what_next
}

wait_for_server() {
    local started=$SECONDS
    until [[ -f "$1" ]]; do
        kill -0 "$CHILD" 2>/dev/null || server_failed "it ended before it was ready"
        ((SECONDS - started < 180)) || server_failed "it was not ready after 180 s"
        sleep 0.1
    done
}

server_failed() {
    LOG="$TMP/server.log"
    log_and_die "the server failed: ${1:-it gave no answer}" "$VENV/bin/ggufdeploy doctor"
}

stop_server() {
    local status=0
    kill -TERM "$CHILD"
    wait "$CHILD" || status=$?
    if ((status != 0 && status != 143)); then warn "the server ended with exit status $status"; fi
    stop_child
}

say_what_next() {
    local name=ggufdeploy
    [[ "$(command -v ggufdeploy)" -ef "$LINK" ]] || name=$LINK
    say ""
    say "The demonstration took $SECONDS s, installation included; the server is stopped. Now you:"
    say "  $name run $DEMO_MODEL                  # serve it on http://127.0.0.1:8080"
    say "  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\"
    say "       -d '{\"model\": \"$DEMO_MODEL\", \"messages\": [{\"role\": \"user\", \"content\": \"$DEMO_QUESTION\"}]}'"
    say "  $name plan mixtral-8x22b --gpu h100-sxm  # what would a bigger model need?"
}

# Every check, each announced by its name; all of them run even when one fails. The last line is the sum.
run_tests() {
    cd "$CHECKOUT" || exit 1
    local bin="$VENV/bin"
    export PATH="$bin:$PATH" ENGINE_WHEEL
    ENGINE_WHEEL=$(cached_wheel "$CACHE/wheels/$ENGINE_VERSION-$BACKEND-$(engine_key)") || ENGINE_WHEEL=$GIVEN_WHEEL
    check "ruff check" "$bin/ruff" check .
    check "ruff format" "$bin/ruff" format --check .
    check "mypy" "$bin/mypy"
    check "shellcheck" "$bin/shellcheck" --external-sources --check-sourced install.sh .ci/run
    tests "fast tests" "$bin/pytest"
    tests "tests with the real engine, and slow ones" "$bin/pytest" -m "engine or slow"
    tests "tests of the installation" "$bin/pytest" -m install
    if ((DRY_RUN)); then return; fi
    say ""
    say "all checks and tests, in $SECONDS s:"
    say "$TESTS_PASSED passed, $TESTS_FAILED failed"
    ((TESTS_FAILED == 0))
}

# check NAME COMMAND...: a command that counts as one test.
check() {
    heading "$1"
    shift
    if run "$@"; then TESTS_PASSED=$((TESTS_PASSED + 1)); else TESTS_FAILED=$((TESTS_FAILED + 1)); fi
}

# tests NAME COMMAND...: pytest, whose own closing line gives the numbers. No test at all is a failure.
tests() {
    local status=0 passed failed
    heading "$1"
    shift
    if ((DRY_RUN)); then print_command "$@"; return; fi
    "$@" 2>&1 | tee "$TMP/pytest" || status=$?
    passed=$(closing_count passed)
    failed=$(($(closing_count failed) + $(closing_count 'errors?')))
    if ((status != 0 && failed == 0)); then failed=1; fi
    TESTS_PASSED=$((TESTS_PASSED + passed))
    TESTS_FAILED=$((TESTS_FAILED + failed))
}

closing_count() {
    local count
    count=$(tail -n 1 "$TMP/pytest" | { grep -oE "[0-9]+ $1" || true; } | head -n 1)
    echo "${count%% *}" | grep . || echo 0
}

heading() { printf '\n== %s\n' "$1"; }
