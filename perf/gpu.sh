#!/usr/bin/env bash
# Tests and benchmark on a lent GPU (/work/.library/device/README.md). Two steps, both in the repository root:
#
#   bash perf/gpu.sh wheels             here: what that machine lacks, as wheels in .whl/ (ignored by git)
#   bash perf/gpu.sh [tests|bench|all]  there, with carry [".whl"]; results come back under $OUT
#
# `all` stays within the ten minutes of one call: half a minute to install, TESTS_S and BENCH_S seconds for the rest. Or give
# each its own call and more time: `TESTS_S=500 bash perf/gpu.sh tests`, `BENCH_S=480 bash perf/gpu.sh bench`. ONLY names cases
# for `--only`; COMMIT the commit, because no .git travels there. Afterwards, here: copy gpu.json to perf/results/ under the
# card's name and run `python -m perf report`.
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
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu --format=csv
    python3 -m tritonrl --device cuda 2>&1 | tee "$OUT/doctor.log"
}

tests() {
    timeout --kill-after=10 "${TESTS_S:-220}" \
        python3 -m pytest tests/kernels tests/objectives/value -q -p no:cacheprovider 2>&1 | tee "$OUT/tests.log"
}

bench() {
    local only=()
    [ -z "${ONLY:-}" ] || only=(--only "$ONLY")
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
    bench) install && bench ;;
    all) install && { tests; passed=$?; bench && exit $passed; } ;;
    *) sed -n '2,11p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
