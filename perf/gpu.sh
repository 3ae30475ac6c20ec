#!/usr/bin/env bash
# Tests and benchmark on a lent GPU (/work/.library/device/README.md). Two steps, both in the repository root:
#
#   bash perf/gpu.sh wheels             here: what that machine lacks, as wheels in .whl/ (ignored by git)
#   bash perf/gpu.sh COMMAND            there, with carry [".whl"]; results come back under $OUT. COMMAND is tests, tune, bench,
#                                       first (tests and tune) or all (tests and bench)
#
# A call costs 40 seconds to start and 10 to install; the rest is TESTS_S, TUNE_S and BENCH_S. TESTS names files and KEYS what
# -k is to look for, ONLY patterns of cases, PEERS=none ours alone, COMMIT the commit, because no .git travels there.
# Afterwards, here: copy gpu.json to perf/results/ under the card's name, tune.json to perf/results/tune/, and run
# `python -m perf report`.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

WHEELS=(
    tensordict==0.14.3 torchrl==0.14.1 hoptorch==0.1.4 pyvers==0.2.3 orjson==3.13.0 importlib_metadata==10.2.0
    gymnasium==1.4.0 Farama-Notifications==0.0.6 rlox==1.2.0 accelerated-scan==0.3.1
)

wheels() {
    grep -qx '/.whl/' .git/info/exclude || echo '/.whl/' >> .git/info/exclude
    rm -rf .whl
    local platforms=() tag
    for tag in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${tag}_x86_64"); done
    "${PYTHON:-.venv/bin/python}" -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d .whl "${WHEELS[@]}" || return
    du -sh .whl
}

install() {
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl || return
    export PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1 TRITONRL_COMMIT="${COMMIT:-}"
    python3 -m pip install -q --no-deps --no-build-isolation -e . || return
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu --format=csv,noheader
}

tests() {
    # As many workers as cores: most of the time goes into compilers. What Triton's interpreter computes is left to machines
    # without a GPU (that of 3.6 fails with this numpy, too).
    local keys="not interpreter and not on_the_device and not same_time${KEYS:+ and ($KEYS)}"
    # shellcheck disable=SC2086
    timeout --kill-after=10 "${TESTS_S:-220}" python3 -P -m pytest \
        ${TESTS:-tests/kernels/triton_cases.py tests/kernels tests/objectives/value tests/objectives/compile/test_on_a_gpu.py} \
        -v --dist worksteal -n "$(nproc)" --tb=short --timeout 150 --timeout-method thread -p no:cacheprovider -k "$keys" \
        > "$OUT/tests.log" 2>&1
    local status=$?
    # Each test has its line as soon as it is over (-v): what failed is known even when the time is.
    grep -E " (FAILED|ERROR) |^E  |crashed" "$OUT/tests.log" | cut -c 1-250 | head -40
    tail -n 3 "$OUT/tests.log" | cut -c 1-250
    return $status
}

tune() {
    timeout --kill-after=10 "$((${TUNE_S:-120} + 20))" python3 -m perf tune --workers "$(nproc)" --compile-by "${COMPILE_S:-70}" \
        --deadline "${TUNE_S:-120}" --json "$OUT/tune.json" > "$OUT/tune.log" 2>&1
    local status=$?
    grep -v Warning "$OUT/tune.log" | cut -c 1-150 | head -c 7500
    return $status
}

warm() {
    local only=() word
    for word in ${ONLY:-}; do only+=(--only "$word"); done
    nice python3 -m perf warm --workers "${WARM:-6}" "${only[@]}" > "$OUT/warm.log" 2>&1
}

bench() {
    local only=() word
    for word in ${ONLY:-}; do only+=(--only "$word"); done
    [ -z "${PEERS:-}" ] || only+=(--peers "$PEERS")
    # The deadline ends it between two cases; the record is written after each of them, so a kill loses one case.
    timeout --kill-after=10 "$((${BENCH_S:-280} + 30))" \
        python3 -m perf --device cuda --deadline "${BENCH_S:-280}" --json "$OUT/gpu.json" "${only[@]}" > "$OUT/bench.log" 2>&1
    local status=$?
    mkdir -p "$OUT/report" && python3 -m perf report "$OUT/gpu.json" --out "$OUT/report" > /dev/null
    mv "$OUT"/report/plots/*.png "$OUT" 2> /dev/null # no more than two folders and eight files come back
    mv "$OUT/report/RESULTS.md" "$OUT" && rm -rf "$OUT/report"
    sed -n '/^### Targets/,/^### Every case/p' "$OUT/RESULTS.md" | head -60
    tail -n 5 "$OUT/bench.log"
    return $status
}

case "${1:-all}" in
    wheels) wheels ;;
    tests) install && tests ;;
    tune) install && tune ;;
    first) install && { tests; passed=$?; tune && exit $passed; } ;;
    bench) install && bench ;;
    all) install && { warm & tests; passed=$?; wait; bench && exit $passed; } ;;
    *) sed -n '2,11p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
