#!/bin/sh
# Time and memory of the engines on the paper's problems, interleaved; interrupted, it goes on.
# All of them in one table: vivit-bench compare-engines --stored [--format csv]
#   compare_engines.sh [DEVICE]    cpu (the default), cuda or cuda:i
set -eu
cd "$(dirname "$0")/.."
device=${1:-cpu}
[ "$device" = cpu ] && place= || place=_$device
compare() {
    .venv/bin/vivit-bench compare-engines --device "$device" "$@"
}
compare cifar10_3c3d --batch-size 128 --floor
compare fmnist_2c2d --batch-size 128 --floor
compare cifar100_allcnnc --batch-size 64 --samples frac --floor
compare cifar10_3c3d --batch-size 128 --curvature mc
compare fmnist_2c2d --batch-size 128 --curvature mc
compare cifar100_allcnnc --batch-size 64 --curvature mc
compare cifar10_3c3d --batch-size 32 --quantity full-newton
compare fmnist_2c2d --batch-size 32 --quantity full-newton
compare cifar10_3c3d --batch-size 128 --quantity full-newton --engine vivit-bench
compare cifar10_3c3d --batch-size 32 --engine vivit-bench --engine backpack --engine curvlinops
compare scripts/examples/resnet18.py:images --batch-size 16 --repeats 3 \
    --engine vivit-bench --engine curvlinops
# The cost against N; the N that are measured above are not measured again.
for problem in cifar10_3c3d fmnist_2c2d; do
    compare "$problem" --batch-size 32,64,128,256,512 --floor \
        --plot "${VIVIT_BENCH_RESULTS:-results}/comparison/scaling_$problem$place.pdf"
done
.venv/bin/vivit-bench compare-engines --stored
