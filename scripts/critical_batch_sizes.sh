#!/bin/sh
# The critical batch sizes in results/critical_batch: exact curvature of the whole mini-batch under
# 2 GiB, against vivit-for-pytorch, and whether some batch sizes fit into 3 GiB. Interrupted, it
# goes on. About an hour on 2 cores.
set -eu
cd "$(dirname "$0")/.."
search() {
    .venv/bin/vivit-bench critical-batch search "$@"
}
for problem in cifar10_3c3d fmnist_2c2d cifar100_allcnnc; do
    for quantity in full-newton eigenvalues block-newton; do
        for engine in vivit-for-pytorch vivit-bench; do
            search $problem --quantity $quantity --memory-limit 2GiB --engine $engine
        done
    done
    search $problem --quantity gradient --memory-limit 2GiB
done
search cifar10_3c3d --quantity eigenvalues --memory-limit 3GiB --max-batch 800
search fmnist_2c2d --quantity eigenvalues --memory-limit 3GiB --max-batch 1098
search cifar10_3c3d --quantity full-newton --memory-limit 3GiB --max-batch 636
search fmnist_2c2d --quantity full-newton --memory-limit 3GiB --max-batch 600
