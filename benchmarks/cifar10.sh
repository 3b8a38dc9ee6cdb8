#!/usr/bin/env bash
# The comparison on CIFAR-10 (docs/comparison.md): every method, measured alike. Finished cells are skipped.
#
#     benchmarks/cifar10.sh rates       # held-out mAP of each learning rate: 32 bits, ten iterations
#     benchmarks/cifar10.sh table       # the table: 32 bits with the seeds 0, 1 and 999; then 12, 24 and 48 bits
#     benchmarks/cifar10.sh ablations   # one change each: 32 bits, the same seeds
#     benchmarks/cifar10.sh gpu         # the table at 224 pixels with AlexNet, as in the papers
#
# Further arguments go to run.py, such as --cuda-graphs on a GPU. ROOT is the folder of class folders, WEIGHTS the
# ImageNet weights (a file, or imagenet). METHODS and SEEDS (with commas), RATES, LENGTHS, JOBS, NAME (of the sweeps)
# and PYTHON may be set, too.
set -euo pipefail
cd "$(dirname "$0")/.."
methods=${METHODS:-main_mmasia,main_tomm,adsh,dpsh,hashnet,csq,greedyhash,orthohash}
seeds=${SEEDS:-0,1,999}
name=${NAME:-cifar10}

# Chosen by `rates`: the highest held-out mAP after ten iterations (results/cifar10-rates.csv).
rate_of() {
    case $1 in
    dpsh) echo 1e-5 ;;
    main_mmasia) echo 4e-5 ;;
    main_tomm | adsh | hashnet | csq | orthohash) echo 1e-4 ;;
    greedyhash) echo 3e-4 ;;
    esac
}

# cells METHODS RATE SWEEP FLAG...
cells() {
    "${PYTHON:-.venv/bin/python}" run.py --dataset folder --root "${ROOT:-dataset/cifar10-jpeg}" \
        --weights "${WEIGHTS:-imagenet}" --preset cifar-10-cpu --jobs "${JOBS:-1}" --method "$1" --lr "$2" \
        --sweep "$name-$3" "${@:4}"
}

table() {
    for method in ${methods//,/ }; do
        cells "$method" "$(rate_of "$method")" table-"$method" --code-length 32 --seeds "$seeds" "$@"
    done
    for method in ${methods//,/ }; do
        cells "$method" "$(rate_of "$method")" table-"$method" --code-length "${LENGTHS:-12,24,48}" --seeds 999 "$@"
    done
}

case "${1:-}" in
rates)
    for rate in ${RATES:-1e-5 4e-5 1e-4 3e-4}; do
        cells "$methods" "$rate" "rates-$rate" --max-iter 10 --validate 2000 --code-length 32 --seeds "${SEEDS:-0}" \
            --save-iter 0 "${@:2}"
    done
    ;;
table)
    table "${@:2}"
    ;;
ablations)
    ablation() { cells "$1" "$(rate_of "$1")" "$2" --code-length 32 --seeds "$seeds" "${@:3}"; }
    ablation main_tomm no-discriminator --no-discriminator "${@:2}"
    ablation main_mmasia no-cycle-terms --no-cycle-terms "${@:2}"
    ablation main_mmasia update-all-rows --update-all-rows "${@:2}"
    ablation main_mmasia latent-tanh --latent tanh "${@:2}"
    ;;
gpu)
    name=${NAME:-cifar10-224}
    table --backbone alexnet --image-size 224 --cuda-graphs "${@:2}"
    ;;
*)
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
