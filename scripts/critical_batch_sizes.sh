#!/bin/sh
# The critical batch sizes in results/critical_batch: exact curvature of the whole mini-batch under
# 2 GiB, against vivit-for-pytorch. Where a search to the end takes long, it stops at a batch size
# that is many times the peer's. Interrupted, it goes on. About an hour on 2 cores.
#   critical_batch_sizes.sh [ENGINE]    one engine only (vivit-bench or vivit-for-pytorch)
set -eu
cd "$(dirname "$0")/.."
search() {
    .venv/bin/vivit-bench critical-batch search --memory-limit 2GiB "$@"
}
if [ "${1:-vivit-for-pytorch}" = vivit-for-pytorch ]; then
    for problem in cifar10_3c3d fmnist_2c2d cifar100_allcnnc; do
        for quantity in full-newton eigenvalues block-newton; do
            search $problem --quantity $quantity --engine vivit-for-pytorch
        done
    done
fi
if [ "${1:-vivit-bench}" = vivit-bench ]; then
    search cifar100_allcnnc --quantity eigenvalues
    search cifar100_allcnnc --quantity full-newton
    search cifar100_allcnnc --quantity block-newton
    search fmnist_2c2d --quantity full-newton
    search fmnist_2c2d --quantity eigenvalues
    search cifar10_3c3d --quantity eigenvalues --max-batch 1197
    search fmnist_2c2d --quantity block-newton --max-batch 512
    search cifar10_3c3d --quantity block-newton --max-batch 256
    search cifar10_3c3d --quantity full-newton --max-batch 1024
fi
