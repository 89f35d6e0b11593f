#!/usr/bin/env bash
# Sets what the training reads and starts it as a child; no `exec`, so the shell stays above it.
export OMP_NUM_THREADS=1
cd "$(dirname "$0")"
python mlp.py "$@"
echo "mlp.py ended with $?"
