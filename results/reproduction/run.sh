#!/usr/bin/env bash
# Seed 0 of this page, in days on a CPU: bash results/reproduction/run.sh --jobs 2
# Options are those of run_all.sh. Where compiling does not work, leave out --compile.
# D4RL's data is downloaded unless it was collected before, from a policy file each:
#   python -m tools.collect --env-id door-expert-v1 --policy FILE --data-dir data/official-size
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
bash run_all.sh setup
python=${PYTHON:-.venv/bin/python}
"$python" -m tools.collect --env-id cube-single --episodes 1000 --data-dir data/official-size
options="--seeds 1 --run-dir runs/reproduction --list -- --data-dir data/official-size --compile"
{
    bash run_all.sh ogbench --envs cube-single:2 $options \
        --steps 100000 --eval-interval 10000
    bash run_all.sh d4rl --envs "door-expert-v1 pen-expert-v1" $options \
        --steps 30000 --eval-interval 5000
} | bash run_all.sh run --run-dir runs/reproduction "$@"
