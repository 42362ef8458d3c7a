#!/usr/bin/env bash
# Experiments, one command each. Every run continues where it was, so a command that was cut off is given again.
#
#   bash run_all.sh demo    from nothing but Python to a trained policy: environment, data, training, score
#   bash run_all.sh test    environment and tests
set -euo pipefail
cd "$(dirname "$0")"

fail() { echo "error: $*" >&2; exit 1; }
usage() { sed -n '2,6s/^# \{0,1\}//p' "$0"; }

# A virtual environment in .venv with both requirement files, made once and again when one of them changes.
setup() {
    local candidate found=
    if ! cat requirements.txt requirements-d4rl.txt | cmp -s - .venv/installed; then
        for candidate in python3.11 python3.12 python3; do
            "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null &&
                { found=$candidate; break; }
        done
        [ -n "$found" ] || fail "Python 3.11 or 3.12 is needed (mujoco 3.4 has no build for others); install one"
        echo "installing requirements.txt and requirements-d4rl.txt into .venv (log: .venv/install.log) ..."
        "$found" -m venv .venv || fail "$found cannot make a virtual environment; install its venv package"
        { .venv/bin/python -m pip install -r requirements.txt &&
            .venv/bin/python -m pip install --no-deps -r requirements-d4rl.txt; } >.venv/install.log 2>&1 ||
            { tail -n 5 .venv/install.log >&2; fail "pip failed; the whole log is .venv/install.log"; }
        cat requirements.txt requirements-d4rl.txt >.venv/installed
    fi
    python=$PWD/.venv/bin/python
}

# Small networks, and a learning rate and target update rate above the published ones, to learn within minutes on a laptop.
demo() {
    setup
    "$python" tools/collect.py --env-id cube-single --episodes 100 --data-dir data
    "$python" drol.py --env-id cube-single --k 16 --data-dir data --steps 30000 --eval-interval 5000 \
        --hidden-dims 128 128 128 --lr 1e-3 --tau 0.02 --log-interval 1000 "$@"
}

case ${1:-} in
    demo) demo "${@:2}" ;;
    test) setup && "$python" -m pytest -q "${@:2}" test_drol.py ;;
    *) usage; exit 2 ;;
esac
