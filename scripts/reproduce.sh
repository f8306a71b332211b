#!/bin/sh
# Every table and figure of the paper that this machine can do, from nothing, the quick ones first.
# Interrupted, the same command goes on; what is finished is not done again. Everything goes into
# $VIVIT_BENCH_RESULTS, by default reproduced/: results/ holds what was measured elsewhere.
#   reproduce.sh [demo]    synthetic inputs and real digits, no download
#   reproduce.sh paper     CIFAR and Fashion-MNIST, downloaded or in VIVIT_BENCH_DATA
set -eu
cd "$(dirname "$0")/.."
run=.venv/bin/vivit-bench
what=${1:-demo}
limit=${LIMIT:-2GiB}
export VIVIT_BENCH_RESULTS="${VIVIT_BENCH_RESULTS:-reproduced}"

case $what in
demo)
    cat <<EOF
Figure 3, noisy quadratic                          minutes
Figures S.4a, S.5a, spectra on synthetic inputs    minutes; resnet18 too
Figures S.7, S.8 on real digits, 60 epochs         10 minutes
Engines in turn, cost against N                    an hour
EOF
    data=synthetic
    ;;
paper)
    cat <<EOF
Figure 3, noisy quadratic                          minutes
Figures S.4a, S.5a, spectra                        minutes
Figures 2, S.6 - S.10, noise in training           many hours on a CPU, a quarter of one for each epoch count
Engines in turn, cost against N                    an hour
EOF
    data=deepobs
    ;;
*)
    echo "reproduce.sh: '$what' is neither demo nor paper" >&2
    exit 2
    ;;
esac
cat <<EOF
Table S.1 a - c under $limit, vivit-for-pytorch      2 hours
Table S.1 a - c under $limit, vivit-bench            lower bounds and predictions in 3 hours, then hours a cell: days
(2 cores of an AMD EPYC; 'vivit-bench critical-batch sweep --dry-run' predicts them for this machine.
Table S.1 d needs a GPU: make table-s1d.)
EOF

make figure-3
for problem in fmnist_2c2d cifar10_3c3d cifar100_allcnnc; do
    $run spectrum sweep $problem --data $data
    $run spectrum plot $problem --data $data
done
if [ "$what" = demo ]; then
    $run spectrum sweep mnist_2c2d --data mnist5k
    $run spectrum plot mnist_2c2d
    $run spectrum sweep scripts/examples/resnet18.py:images
    $run spectrum plot scripts/examples/resnet18.py:images
    make noise-demo
else
    make figure-2 figure-s6 figure-s7 figure-s8 figure-s9 figure-s10
fi
make benchmarks
sh scripts/table_s1.sh "$limit"
