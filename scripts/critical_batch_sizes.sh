#!/bin/sh
# The critical batch sizes in results/critical_batch: exact curvature of the whole mini-batch under
# 2 GiB, against vivit-for-pytorch. Interrupted, it goes on. More than an hour on 2 cores.
set -eu
cd "$(dirname "$0")/.."
search() {
    .venv/bin/vivit-bench critical-batch search --memory-limit 2GiB "$@"
}
for problem in cifar10_3c3d fmnist_2c2d cifar100_allcnnc; do
    for quantity in full-newton eigenvalues block-newton; do
        search $problem --quantity $quantity --engine vivit-for-pytorch
    done
done
search cifar10_3c3d --quantity full-newton
search cifar10_3c3d --quantity eigenvalues
search cifar100_allcnnc --quantity eigenvalues
search cifar100_allcnnc --quantity full-newton
search cifar100_allcnnc --quantity block-newton
search fmnist_2c2d --quantity full-newton
search fmnist_2c2d --quantity eigenvalues
search fmnist_2c2d --quantity block-newton
search cifar10_3c3d --quantity block-newton
