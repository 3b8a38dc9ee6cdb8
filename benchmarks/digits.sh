#!/usr/bin/env bash
# The table of the digits: both variants, four code lengths, three seeds (999 is the default of `make run`).
# Runs that are already finished are skipped. The table:
#     python -m reports tables logs/digits -o results/digits.csv
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python run.py --dataset digits --code-length "${CODE_LENGTH:-12,24,32,48}" --seeds "${SEEDS:-0,1,999}" --method both \
    --save-iter 0 --sweep digits
