#!/usr/bin/env bash
# Every experiment. After an interruption, give the same command again: it goes on.
#   bash run_all.sh setup | demo | smoke | test | figures [FLAGS OF THE PROGRAM]
#   bash run_all.sh ogbench | d4rl | ksweep | scaling | all [OPTIONS] [-- FLAGS OF EVERY RUN]
#   bash run_all.sh drol | fql --envs "cube-triple:2 my_tasks:Point-v0" -- --bc-coef 3 | --alpha 30
#   bash run_all.sh ogbench --list | grep cube | bash run_all.sh run [OPTIONS]
#   OPTIONS: --list --envs --seeds --jobs --gpus --slurm --run-dir, explained in docs/cluster.md
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"  # where it was started with sh
set -euo pipefail
cd "$(dirname "$(realpath "$0")")"
python=${PYTHON:-.venv/bin/python}  # PYTHON: an environment of yours
fail() { echo "error: $*" >&2; exit 1; }

# --------------------------------------- the suites; a task is ENV_ID or ENV_ID:NUMBER
line() { echo "${python// /\\ } $1 --env-id $2 --seed $seed" "${@:3}" $flags; }
each() { for task in ${envs:-${@:2}}; do $1 $task; done; }  # task of --envs, or else given here
three() {  # TASK, TASK/K or TASK/K/BC_COEF: DROL(16), FQL, and DROL* where it is another
    IFS=/ read -r task k bc_coef <<<"$1"
    line drol.py $task --k 16
    line fql.py $task
    [ -z "$k" ] || line drol.py $task --k $k ${bc_coef:+--bc-coef $bc_coef}
}
up_to() { for k in 1 2 4 8 16 32 64; do [ $k -gt $1 ] || line drol.py $2 --k $k; done; }
ogbench() { each three antmaze-large:{1..5} antmaze-giant:{1..5}/1 humanoidmaze-medium:{1..5} \
    humanoidmaze-large:{1..5}/4 antsoccer-arena:{1..5}/4 cube-single:{1..5} cube-double:{1..5}/64 \
    scene:{1..5}/64 puzzle-3x3:{1..5}/32 puzzle-4x4:{1..5}/64; }
d4rl() { each three antmaze-umaze-v2/2 antmaze-umaze-diverse-v2 antmaze-medium-play-v2/32 \
    antmaze-medium-diverse-v2 antmaze-large-{play,diverse}-v2/16/0.03 pen-{human,cloned,expert}-v1 \
    {door,hammer}-{human,cloned,expert}-v1/8 relocate-{human,cloned,expert}-v1/32; }
ksweep() { each "up_to 32" antmaze-giant:3 antmaze-large:1 antsoccer-arena:4 cube-double:3 \
    cube-single:1 humanoidmaze-{large,medium}:1 puzzle-3x3:2 puzzle-4x4:1 scene:2 \
    antmaze-{umaze,umaze-diverse,medium-play,medium-diverse,large-play,large-diverse}-v2 \
    {pen,door,hammer,relocate}-expert-v1; }
scaling() { each "up_to 64" antmaze-giant:3 cube-double:3 scene:2; }
all() { ogbench; d4rl; ksweep; scaling; }
drol() { each "line drol.py"; }
fql() { each "line fql.py"; }
run() { cat; }  # the commands of a pipe

# ---------------------------------------------------------------------- how they are run
python() {  # in .venv, which is made first, and again when the requirements have changed
    if [ -z "${PYTHON:-}" ] && ! cat requirements*.txt | cmp -s - .venv/installed; then
        python3.11 -m venv .venv || python3.12 -m venv .venv || fail "install Python 3.11 or 3.12"
        .venv/bin/python -m pip install -r requirements-dev.txt
        .venv/bin/python -m pip install --no-deps -r requirements-d4rl.txt
        cat requirements*.txt >.venv/installed
    fi
    "$python" "$@"
}
small() {  # NAME EPISODES FLAGS: collects data and trains small networks, which learn in minutes
    python -m tools.collect --env-id cube-single --episodes "$2" --data-dir "data/$1"
    python drol.py --env-id cube-single --data-dir "data/$1" --exp-name "$1" --lr 1e-3 --tau 0.02 \
        --hidden-dims 128 128 128 "${@:3}"
}
case ${1:-} in
    setup) python --version; exit ;;
    demo) small demo 100 --steps 30000 --eval-interval 5000 "${@:2}"; exit ;;
    smoke) small smoke 4 --steps 500 --eval-envs 2 --eval-episodes 2 --run-dir "$(mktemp -d)" "${@:2}"; exit ;;
    test) OMP_NUM_THREADS=1 python -m pytest -q -n "$(nproc)" --dist worksteal "${@:2}"; exit ;;
    figures) python -m tools.figures "${@:2}"; exit ;;
    ogbench | d4rl | ksweep | scaling | all | drol | fql | run | one) suite=$1 ;;
    *) sed -n 's/^#   //p' run_all.sh && exit 2 ;;
esac
list=no envs="" seeds=8 jobs="" gpus="" slurm=none run_dir=runs
while shift && [ $# -gt 0 ] && [[ $1 != -- || $suite = run ]]; do
    [[ $1 != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
    [[ $1 = --list || $# -gt 1 ]] || fail "$1 lacks its value"
    case $1 in
        --list) list=yes ;;
        --envs | --seeds | --jobs | --slurm) declare "${1#--}=$2" && shift ;;  # the variable
        --gpus) gpus=${2//,/ } && shift ;;
        --run-dir) [[ $2 =~ ^(~[[:alnum:]._-]*)?(.*)$ ]]  # a home folder, and what follows
            eval "run_dir=${BASH_REMATCH[1]}" && run_dir+=${BASH_REMATCH[2]} && shift
            [[ $run_dir && $run_dir != \~* ]] || fail "there is no --run-dir '$run_dir'" ;;
        *) fail "$1 is no option of $suite; flags for the runs follow after -- of a suite" ;;
    esac
done
if [ $suite = one ]; then  # -- COMMAND: a run with its GPU and its log, noted if it succeeds
    gpu=($gpus) code=0 log=$run_dir/logs/$(tr -cs '[:alnum:].\n-' _ <<<"${2#* }" | cut -c 1-200).log
    [ -z "$gpus" ] || export CUDA_VISIBLE_DEVICES=${gpu[${PARALLEL_JOBSLOT:-0} % ${#gpu[@]}]}
    bash -c "$2" >>"$log" 2>&1 </dev/null || code=$?
    [ $code != 0 ] || echo "$2" >>"$run_dir/done.txt"
    exec printf '%s\n    exit code %s: %s\n' "$2" $code "$(tail -n 1 "$log")"
fi
jobs=${jobs:-$(wc -w <<<"${gpus:-one}")}
[[ "$seeds $jobs" =~ ^[1-9][0-9]*\ [1-9][0-9]*$ ]] || fail "--seeds $seeds, --jobs $jobs: below 1"
[ "$run_dir" = runs ] || set -- -- --run-dir "$run_dir" "${@:2}"
flags=$([ $# -lt 2 ] || printf ' %q' "${@:2}")
commands=$(for ((seed = 0; seed < seeds; seed++)); do $suite; done |
    sed 's/:\([1-5]\) --seed/ --task \1 --seed/' | awk 'NF && !seen[$0]++')
[ -n "$commands" ] || fail "no commands: drol and fql need --envs, and run needs a pipe"
[ $list = no ] || { echo "$commands"; exit; }
made=$({ mkdir -p "$run_dir/logs" && touch "$run_dir/done.txt"; } 2>&1) || fail "--run-dir: $made"
left() { grep -vxFf "$run_dir/done.txt" <<<"$commands" || true; }
[ -n "$(left)" ] || { echo "nothing is left to do, says $run_dir/done.txt"; exit; }
left | python -m tools.fetch
if [ "$slurm" != none ]; then  # an array has at most 1,000 tasks: each makes every 1,000th run
    list=$(mktemp "$run_dir/logs/slurm-XXXXXX.list")
    left >"$list"
    exec sbatch --requeue --open-mode=append --output="$run_dir/logs/slurm-%A_%a.out" $slurm \
        --array="1-$(head -n 1000 "$list" | wc -l)" --wrap "sed -n \$SLURM_ARRAY_TASK_ID~1000p \
        $(printf '%q | bash run_all.sh run --run-dir %q' "$list" "$run_dir")"
fi
engine="parallel --will-cite --quote --termseq TERM,10000,KILL --jobs $jobs"
parallel --minversion 1 >/dev/null || engine="xargs -d \n -n 1" jobs=1  # one after another
[ $jobs = 1 ] || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) - 1) / jobs + 1))}
left | $engine bash run_all.sh one "--run-dir=$run_dir" "--gpus=$gpus" --
[ -v SLURM_ARRAY_TASK_ID ] ||
    python -m tools.figures --run-dir "$run_dir" --out "$run_dir/figures" || true
[ -z "$(left)" ] || fail "what failed stands above; the same command tries it again"
