#!/bin/sh
# Table S.1 a to c: the gradient and vivit-for-pytorch, then vivit-bench: every cell with trials of at most
# five minutes, lower bounds beside predictions; then to the end, exact curvature of the whole mini-batch
# first. Tables and figures after each step. Interrupted, the same command goes on.
#   table_s1.sh [LIMIT [OPTION ...]]    options of every sweep, for example --jobs 2
set -eu
cd "$(dirname "$0")/.."
run=.venv/bin/vivit-bench
limit=${1:-2GiB}
[ $# -eq 0 ] || shift

show() {
    $run critical-batch table --engine vivit-bench --engine vivit-for-pytorch --memory-limit "$limit" --paper
    $run critical-batch predictions
    $run critical-batch plot --engine vivit-bench --engine vivit-for-pytorch --memory-limit "$limit"
    $run critical-batch plot --kind growth --engine vivit-bench --engine vivit-for-pytorch --memory-limit "$limit"
}
sweep() {
    $run critical-batch sweep --memory-limit "$limit" --timeout 7200 --max-batch 4000000 "$@"
}
sweep --engine vivit-for-pytorch "$@"
show
sweep --no-gradient "$@" --timeout 300
show
for samples in full frac; do
    for curvature in exact mc; do
        sweep --no-gradient --curvature $curvature --samples $samples "$@"
        show
    done
done
