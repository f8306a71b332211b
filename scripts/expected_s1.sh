#!/bin/sh
# What the cells of Table S.1 a to c are expected to be for vivit-bench, from small trials of one thread
# (20 minutes): expected.csv, and expected.json with machine, libraries and commit. A cell that cannot be
# predicted is named on stderr, has no row, and makes the exit code 1.
#   expected_s1.sh [LIMIT ...]
set -eu
cd "$(dirname "$0")/.."
run=.venv/bin/vivit-bench
folder=${VIVIT_BENCH_RESULTS:-results}/critical_batch
status=0
memories=
for limit in "${@:-2GiB}"; do memories="$memories --memory $limit"; done

mkdir -p "$folder"
$run env --format json > "$folder/expected.json.new"
: > "$folder/expected.csv.new"
for problem in fmnist_2c2d cifar10_3c3d cifar100_allcnnc; do
    $run critical-batch predict "$problem" $memories --threads 1 --max-batch 4000000 \
        --quantity eigenvalues --quantity block-newton --quantity full-newton \
        --curvature exact --curvature mc --samples full --samples frac --format csv > "$folder/expected.part" || status=$?
    [ $status -le 1 ] || exit $status
    if [ -s "$folder/expected.csv.new" ]; then sed -i 1d "$folder/expected.part"; fi
    cat "$folder/expected.part" >> "$folder/expected.csv.new"
done
rm "$folder/expected.part"
mv "$folder/expected.json.new" "$folder/expected.json"
mv "$folder/expected.csv.new" "$folder/expected.csv"
exit $status
