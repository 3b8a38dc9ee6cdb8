#!/usr/bin/env bash
# The digits table: both variants, 32 bits, three seeds (999 is the default that `make run` uses). Then: python -m benchmarks.tables logs/digits results/digits.csv
set -euo pipefail
cd "$(dirname "$0")/.."
for seed in ${SEEDS:-0 1 999}; do
    for method in main_mmasia main_tomm; do
        .venv/bin/python run.py --method "$method" --dataset digits --code-length "${CODE_LENGTH:-32}" --seed "$seed" \
            --save-iter 0 --logs logs/digits
    done
done
