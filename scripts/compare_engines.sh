#!/bin/sh
# Time and memory of the engines on the paper's problems, interleaved, into one CSV.
set -eu
cd "$(dirname "$0")/.."
out=results/comparison/engines.csv
compare() {
    .venv/bin/vivit-bench compare-engines "$@" --output "$out"
}
compare cifar10_3c3d --batch-size 128 --floor
compare fmnist_2c2d --batch-size 128 --floor
compare cifar100_allcnnc --batch-size 64 --samples frac --repeats 3 --floor
compare cifar10_3c3d --batch-size 128 --curvature mc
compare fmnist_2c2d --batch-size 128 --curvature mc
compare cifar100_allcnnc --batch-size 64 --curvature mc --repeats 3
compare cifar10_3c3d --batch-size 32 --quantity full-newton
compare fmnist_2c2d --batch-size 32 --quantity full-newton
compare cifar10_3c3d --batch-size 128 --quantity full-newton --engine vivit-bench
compare cifar10_3c3d --batch-size 32 --engine vivit-bench --engine backpack --engine curvlinops
compare scripts/examples/resnet18.py:images --batch-size 16 --repeats 3 \
    --engine vivit-bench --engine curvlinops
