#!/usr/bin/env bash
# The comparison on CIFAR-10 (docs/comparison.md): every method, measured alike. Finished cells are skipped.
#
#     benchmarks/cifar10.sh rates       # held-out mAP of each learning rate: 32 bits, ten iterations
#     benchmarks/cifar10.sh table       # the table: 32 bits with the seeds 0, 1 and 999; then 12, 24 and 48 bits
#     benchmarks/cifar10.sh ablations   # main_tomm and main_mmasia with one change each: 32 bits, three seeds
#     benchmarks/cifar10.sh gpu         # the table at 224 pixels with the papers' schedule and AlexNet
#
# Further arguments go to run.py, such as --cuda-graphs on a GPU. ROOT is the folder of class folders, WEIGHTS the
# ImageNet weights (a file, or imagenet). METHODS, SEEDS (with commas), RATES, JOBS and PYTHON may be set, too.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
methods=${METHODS:-main_mmasia,main_tomm,adsh,dpsh,hashnet,csq,greedyhash,orthohash}
data=(--dataset folder --root "${ROOT:-dataset/cifar10-jpeg}" --weights "${WEIGHTS:-imagenet}")
preset=(--preset cifar-10-cpu --jobs "${JOBS:-1}")

case "${1:-}" in
rates)
    for rate in ${RATES:-1e-5 4e-5 1e-4 3e-4}; do
        "$python" run.py "${data[@]}" "${preset[@]}" --method "$methods" --lr "$rate" --max-iter 10 --validate 2000 \
            --code-length 32 --seeds "${SEEDS:-0}" --save-iter 0 --sweep "cifar10-rates-$rate" "${@:2}"
    done
    ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
