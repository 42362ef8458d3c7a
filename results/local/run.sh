#!/usr/bin/env bash
# The runs of this page, in hours on a CPU: bash results/local/run.sh --jobs 2
# Options are those of run_all.sh. Where compiling does not work, leave out --compile.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
bash run_all.sh setup
python=${PYTHON:-.venv/bin/python}
"$python" -m tools.collect --env-id cube-single --episodes 100 --data-dir data/demo
bash run_all.sh scaling --envs cube-single:2 --seeds 2 --run-dir runs/local "$@" -- \
    --data-dir data/demo --hidden-dims 128 128 128 --lr 1e-3 --tau 0.02 --steps 40000 \
    --eval-interval 5000 --eval-episodes 25 --eval-envs 5 --log-interval 500 --compile
