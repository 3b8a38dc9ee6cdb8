#!/usr/bin/env bash
# The comparison on CIFAR-10 of docs/comparison.md: every method, several seeds; finished cells are skipped.
#
#     benchmarks/cifar10.sh rates                  # held-out mAP of each rate, 32 bits, ten iterations
#     benchmarks/cifar10.sh table                  # the table: 32 bits, seeds 0, 1, 999; then 12, 24 and 48 bits
#     benchmarks/cifar10.sh gpu                    # the same at 224 pixels with the full schedule
#
# ROOT is the folder of class folders, WEIGHTS the ImageNet weights of SqueezeNet 1.0 (a file, or imagenet).
# METHODS, SEEDS, CODE_LENGTH, JOBS and PYTHON may be set, too.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
methods=${METHODS:-main_mmasia,main_tomm,adsh,dpsh,hashnet,csq,greedyhash,orthohash}
common=(--dataset folder --root "${ROOT:-dataset/cifar10-jpeg}" --weights "${WEIGHTS:-imagenet}")

case "${1:-}" in
rates)
    for rate in 1e-4 4e-5 3e-4 1e-5; do
        "$python" run.py "${common[@]}" --preset cifar-10-cpu --method "$methods" --lr "$rate" --max-iter 10 --validate 2000 \
            --code-length 32 --seeds "${SEEDS:-0}" --jobs "${JOBS:-1}" --sweep "cifar10-rates-$rate"
    done
    ;;
*)
    echo "usage: benchmarks/cifar10.sh rates" >&2
    exit 2
    ;;
esac
