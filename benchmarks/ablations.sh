#!/usr/bin/env bash
# The table of docs/ablations.md: every switch on the digits, three seeds, both variants where the switch exists.
# Runs that are already finished are skipped. The table:
#     python -m reports tables logs/ablations -o results/ablations.csv
set -euo pipefail
cd "$(dirname "$0")/.."

sweep() { # METHOD NAME FLAG...
    local method=$1 name=$2
    shift 2
    .venv/bin/python run.py --dataset digits --code-length 32 --seeds 0,1,999 --method "$method" --precision bfloat16 \
        --save-iter 0 --logs logs/ablations --sweep "$name" "$@"
}

sweep both default
sweep both signed --similarity signed
sweep both cycle --no-cycle-terms
sweep main_tomm discriminator --no-discriminator
sweep both tanh --latent tanh
sweep both adjacency --adjacency normalised
sweep both detach --detach-targets
sweep both rows --update-all-rows
sweep main_tomm replay --augment crop
sweep main_tomm fresh --augment crop --fresh-batches
