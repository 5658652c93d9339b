#!/bin/sh
# Runs what `cargo xtask device-test` packed, on a machine with a GPU and no Rust: tests at small shapes, the
# sanitizer's memory and race checks over them, then the benchmarks. `sh device.sh [FOLDER FOR LOGS]`
set -u
cd "$(dirname "$0")" || exit 1
logs=${1:-logs}
mkdir -p "$logs"
export TILEWRIGHT_TEST_DEVICE=cuda
export TILEWRIGHT_CACHE="$PWD/cache"

# The driver and NVRTC: where the loader finds them, else in the usual folders, else in PyTorch's environment.
for folder in /usr/local/nvidia/lib64 /usr/local/cuda/lib64 \
    $(python3 -c 'import glob, site; print(*[f for s in site.getsitepackages() for f in glob.glob(s + "/nvidia/*/lib")])'); do
    if ls "$folder"/libnvrtc.so* "$folder"/libcuda.so* "$folder"/libcublasLt.so* 2> /dev/null | grep -q .; then
        LD_LIBRARY_PATH="$folder:${LD_LIBRARY_PATH:-}"
    fi
done
export LD_LIBRARY_PATH

failed=0
step() {
    name=$1
    shift
    start=$(date +%s)
    if "$@" > "$logs/$name.log" 2>&1; then outcome=passed; else outcome=FAILED; failed=1; fi
    echo "$name: $outcome after $(($(date +%s) - start)) s"
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
# The tests of what kernels compute; the machine has no project to read golden files from.
# Compiling takes most of the time, so several at once.
step tests timeout 400 ./kernels attention:: whole_plans:: nests:: scans:: models:: --test-threads 8
tail -n 40 "$logs/tests.log"
# Arrays and whole programs by the public functions.
step devices ./devices
tail -n 20 "$logs/devices.log"
if command -v compute-sanitizer > /dev/null; then
    # Kernels come out of the tests' cache, so each of these takes seconds. Races without the kernels of warpgroups,
    # where one lane arrives at a barrier for its warp, which the check does not follow (docs/design/0004).
    kernels="attention:: scans:: nests::"
    step memcheck timeout 240 compute-sanitizer --tool memcheck --error-exitcode 9 ./kernels $kernels --test-threads 1
    step synccheck timeout 240 compute-sanitizer --tool synccheck --error-exitcode 9 ./kernels $kernels --test-threads 1
    step racecheck timeout 240 compute-sanitizer --tool racecheck --error-exitcode 9 \
        ./kernels attention::sanitized scans:: nests:: --test-threads 1
    for tool in memcheck synccheck racecheck; do tail -n 5 "$logs/$tool.log"; done
else
    echo "compute-sanitizer is not installed: memory and races are not checked"
fi
for shape in "4 16 4096 128" "4 32 4096 64" "1 16 16384 128"; do
    step "bench-$(echo "$shape" | tr ' ' '-')" timeout 120 ./device_bench $shape
    cat "$logs/bench-$(echo "$shape" | tr ' ' '-').log"
done
# Scans and whole models, and the same by PyTorch and JAX where they are installed.
for case in copy scans gpt2; do
    step "models-$case" timeout 240 ./device $case
    cat "$logs/models-$case.log"
    step "peer-$case" timeout 240 python3 device_peer.py $case
    cat "$logs/peer-$case.log"
done
step models-recurrence timeout 240 ./device recurrence
cat "$logs/models-recurrence.log"
for case in jax jax-model; do
    step "peer-$case" timeout 120 python3 device_peer.py "$case"
    cat "$logs/peer-$case.log"
done
# First calls: with nothing compiled before, and then from the disk.
for turn in cold disk; do
    TILEWRIGHT_CACHE=$PWD/cache-of-first-calls step "first-$turn" timeout 60 ./device first
    cat "$logs/first-$turn.log"
done
step documents timeout 60 ./device documents
cat "$logs/documents.log"
exit $failed
