#!/usr/bin/env bash
# Experiments, one command each. After an interruption, give the same command again: it goes on.
#
#   bash run_all.sh smoke     minutes: collects a little data, trains briefly, evaluates
#   bash run_all.sh demo      from nothing but Python to a trained policy on a laptop
#   bash run_all.sh test      the tests; without the long ones: bash run_all.sh test -m "not slow"
#   bash run_all.sh runtime   tools/bench.py: milliseconds per update and per action
#   bash run_all.sh figures   tools/figures.py: tables and figures of the runs in runs/
#   bash run_all.sh setup     only the environment in .venv, which all the others make first
# Flags that follow are handed to the program. A suite (see below) is a list of commands:
#   bash run_all.sh SUITE     runs them, with the options
#     --list                only print them, one per line
#     --only "fql.*cube"    only those in which grep -E finds this
#     --seeds 8             number of seeds, from 0 (local: 2, reproduce: 1)
#     --jobs 1              runs at once; unset: one, or one per GPU
#     --gpus "0 1"          GPUs to spread them over
#     --slurm "--partition=gpu --gpus=1 --time=24:00:00"   as a Slurm job array with these options
#     --run-dir runs        of the runs, logs/, and done.txt: commands that have succeeded and are
#                           left out next time (local, reproduce: runs/SUITE)
#     -- FLAGS              flags for every run, such as -- --steps 100000
# Before its first run, a suite collects or downloads the data of all its runs.
# Over ssh: bash run_all.sh ogbench --list | parallel --sshlogin host1,host2 --jobs 1 --workdir "$PWD"
# PYTHON=python uses an environment of yours. Paths are taken from this folder. The suites:
# shellcheck disable=SC2046,SC2086,SC2206  # several flags in one string
set -euo pipefail
CDPATH="" cd "$(dirname "$0")"
python=${PYTHON:-.venv/bin/python}
small="--hidden-dims 128 128 128 --lr 1e-3 --tau 0.02"  # learns within minutes
# -------------------------------------------- the suites, as: run PROGRAM ENV_ID[:TASK] FLAGS...
run() { echo "$prefix $1 --env-id ${2/:/ --task } --seed $seed" "${@:3}"; }
both() { run drol.py "$1" --k 16 "${@:2}"; run fql.py "$@"; }  # DROL(16) and FQL
three() { both "$1"; run drol.py "$1" --k "${@:2}"; }  # and DROL*, of which K and more are given
list_ogbench() {  # DROL(16), DROL* and FQL on OGBench's 10 families, 5 tasks each
    for env in antmaze-large:16 antmaze-giant:1 humanoidmaze-medium:16 humanoidmaze-large:4 \
        antsoccer-arena:4 cube-single:16 cube-double:64 scene:64 puzzle-3x3:32 puzzle-4x4:64; do
        for task in 1 2 3 4 5; do three ${env%:*}:$task ${env#*:}; done
    done
}
list_d4rl() {  # DROL(16), DROL* and FQL on D4RL's 18 tasks
    three antmaze-umaze-v2 2
    three antmaze-umaze-diverse-v2 16
    three antmaze-medium-play-v2 32
    three antmaze-medium-diverse-v2 16
    three antmaze-large-play-v2 16 --bc-coef 0.03
    three antmaze-large-diverse-v2 16 --bc-coef 0.03
    for env in pen:16 door:8 hammer:8 relocate:32; do
        for data in human cloned expert; do three ${env%:*}-$data-v1 ${env#*:}; done
    done
}
list_ksweep() {  # DROL with K = 1 to 32 on 10 tasks of OGBench and 10 of D4RL
    for env in antmaze-giant:3 antmaze-large:1 antsoccer-arena:4 cube-double:3 cube-single:1 \
        humanoidmaze-large:1 humanoidmaze-medium:1 puzzle-3x3:2 puzzle-4x4:1 scene:2 \
        antmaze-{umaze,umaze-diverse,medium-play,medium-diverse,large-play,large-diverse}-v2 \
        {pen,door,hammer,relocate}-expert-v1; do
        for k in 1 2 4 8 16 32; do run drol.py $env --k $k; done
    done
}
list_scaling() {  # DROL with K = 1 to 64 on 3 tasks
    for env in antmaze-giant:3 cube-double:3 scene:2; do
        for k in 1 2 4 8 16 32 64; do run drol.py $env --k $k; done
    done
}
list_all() { list_ogbench; list_d4rl; list_ksweep; list_scaling; }  # these four
list_local() {  # DROL with K = 1 to 64, small networks and little data, hours on a laptop
    for k in 1 2 4 8 16 32 64; do
        run drol.py cube-single:2 --k $k --data-dir data $small --steps 40000 \
            --eval-interval 5000 --eval-episodes 25 --eval-envs 5 --log-interval 500 --compile
    done
}
list_reproduce() {  # DROL(16) and FQL as published, on data made here by the official recipes
    for env in cube-single:2 scene:1 puzzle-3x3:1; do
        both $env --data-dir data/official-size --steps 100000 --eval-interval 10000
    done
    # after: tools/collect.py --env-id door-expert-v1 --policy FILE --data-dir data/official-size
    for env in door-expert-v1 pen-expert-v1; do
        both $env --data-dir data/official-size --steps 30000 --eval-interval 5000
    done
}
commands() {  # seed 0 of everything before seed 1 of anything; what two lists share once
    for ((seed = 0; seed < seeds; seed++)); do "list_$suite"; done |
        awk '!seen[$0]++' | grep -E -e "$only" | while read -r line; do echo "$line$suffix"; done
}

# --------------------------------------------------------------------------- how they are run
fail() { echo "error: $*" >&2; exit 1; }
setup() {  # .venv with both requirement files, again when one of them has changed
    [ -z "${PYTHON:-}" ] && ! cat requirements*.txt | cmp -s - .venv/installed || return 0
    found=$(type -P python3.11 || type -P python3.12) || fail "install python3.11 or python3.12"
    echo "installing requirements.txt and requirements-d4rl.txt into .venv ..."
    "$found" -m venv .venv
    "$python" -m pip install -q -r requirements.txt
    "$python" -m pip install -q --no-deps -r requirements-d4rl.txt
    cat requirements*.txt >.venv/installed
}
compile_flag() {  # --compile where it works: tried on a function that is in no cache
    "$python" -c 'import time, torch
device, now = "cuda" if torch.cuda.is_available() else "cpu", time.time_ns()
torch.compile(lambda x: x + now)(torch.ones(9, device=device))' >/dev/null 2>&1 &&
        { echo --compile; return; }
    echo "--compile does not work here and is left out: docs/troubleshooting.md" >&2
}
collect() { "$python" tools/collect.py --env-id "$1" --episodes "$2" --data-dir "$3"; }
laptop() {  # EPISODES FOLDER FLAGS
    collect cube-single "$1" "$2"
    "$python" drol.py --env-id cube-single --data-dir "$2" $small "${@:3}"
}
not_done() { grep -vxFf "$run_dir/done.txt" || true; }
log_of() { echo "$run_dir/logs/$(tr -cs '[:alnum:].\n-' _ <<<"${1#* }" | cut -c 1-200).log"; }
one() {  # COMMAND, as process SLOT of xargs; a signal ends the run, for which this shell waits
    local code=0 gpu=($gpus)
    [ -z "$gpus" ] || export CUDA_VISIBLE_DEVICES=${gpu[SLOT % ${#gpu[@]}]}
    trap : INT TERM
    # a task that Slurm starts again waits until what is left of its first attempt has ended
    (flock -w 600 1; eval "exec $1") >>"$(log_of "$1")" 2>&1 </dev/null || code=$?
    [ $code != 0 ] || echo "$1" >>"$run_dir/done.txt"
    echo "exit code $code: $1"
}
run_list() {  # COMMANDS: $jobs at once
    local stopped="" line
    export run_dir gpus
    set -m  # makes the runs a process group, to which a signal is passed on
    printf %s "$1" | xargs -r -d '\n' -n 1 -P "$jobs" --process-slot-var=SLOT \
        bash run_all.sh one | (trap '' TERM; exec cat) &  # cat ends with the last run
    set +m
    trap 'stopped=yes; kill -TERM %1' INT TERM HUP
    while kill -0 %1 2>/dev/null; do wait %1 || true; done
    [ -z "$stopped" ] || { echo "stopped; the same command goes on from there"; exit 130; }
    not_done <<<"$1" | while read -r line; do echo "failed: $line; log: $(log_of "$line")"; done
    [ -z "$(not_done <<<"$1")" ]
}
task() {  # FILE COUNT: of the file's lines every COUNTth, from the task's own number on
    run_dir=${1%/logs/*} jobs=1 gpus=""
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    run_list "$(sed -n "$SLURM_ARRAY_TASK_ID~$2p" "$1" | not_done)"
}
submit() {  # COMMANDS: as an array of at most 1000 tasks, which is Slurm's usual limit
    type -P sbatch >/dev/null || fail "--slurm: there is no sbatch on this machine"
    file=$(mktemp "$run_dir/logs/$suite-XXXXXX.list")
    echo "$1" >"$file"
    count=$(head -n 1000 "$file" | wc -l)
    sbatch --job-name="drol-$suite" $slurm --array="1-$count" --requeue --open-mode=append \
        --output="$run_dir/logs/slurm-%A_%a.out" \
        --wrap "exec bash $(printf '%q task %q %q' "$PWD/run_all.sh" "$file" "$count")"
}
suite() {  # SUITE OPTIONS
    suite=$1 seeds=8 run_dir=runs only="" list="" jobs="" gpus="" slurm=none episodes=""
    options=$(getopt -o + -l list,only:,seeds:,jobs:,gpus:,slurm:,run-dir: -n error -- "${@:2}")
    case $suite in
        local) seeds=2 run_dir=runs/local episodes=100 data=data ;;
        reproduce) seeds=1 run_dir=runs/reproduce episodes=1000 data=data/official-size ;;
    esac
    eval set -- "$options"
    while [ "$1" != -- ]; do
        option=${1#--}
        if [ $option = list ]; then list=yes; else printf -v "${option/-/_}" %s "$2"; shift; fi
        shift
    done
    [[ "${2:--}" == -* ]] || fail "$2: flags for the runs begin with -"
    prefix=$(printf %q "$python") suffix=$([ $# = 1 ] || printf ' %q' "${@:2}")
    [[ "$suffix" != *" --data-dir"* ]] || episodes=""  # the user's data, not collected here
    [ "$run_dir" = runs ] || suffix="$(printf ' --run-dir %q' "$run_dir")$suffix"
    jobs=${jobs:-$(wc -w <<<"${gpus:-one}")}
    [[ "$seeds $jobs" =~ ^[1-9][0-9]*\ [1-9][0-9]*$ ]] || fail "--seeds and --jobs: give 1 or more"
    todo=$(commands) || fail "--only $only: $suite has no such command"
    [ -z "$list" ] || { echo "$todo"; return; }
    setup
    [[ $suite != local || $(compile_flag) ]] || todo=${todo// --compile/}
    mkdir -p "$run_dir/logs"; touch "$run_dir/done.txt"
    todo=$(not_done <<<"$todo")
    [ -n "$todo" ] || { echo "nothing is left to do, says $run_dir/done.txt"; return; }
    [ -z "$episodes" ] || sed -n 's/.*--env-id \([^ ]*\) --task.*/\1/p' <<<"$todo" | sort -u |
        while read -r env; do collect "$env" $episodes $data </dev/null; done
    "$python" tools/fetch.py <<<"$todo"
    [ "$jobs" = 1 ] || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) - 1) / jobs + 1))}
    if [ "$slurm" = none ]; then run_list "$todo"; else submit "$todo"; fi
}
case ${1:-} in
    smoke) setup; laptop 4 data/smoke --run-dir runs/smoke --steps 1000 --log-interval 200 \
        --eval-episodes 4 --eval-envs 2 --overwrite "${@:2}" ;;
    demo) setup; laptop 100 data --exp-name demo --steps 30000 --eval-interval 5000 \
        --log-interval 1000 $(compile_flag) "${@:2}" ;;
    test) setup; OMP_NUM_THREADS=1 "$python" -m pytest -q -n "$(nproc)" --dist worksteal "${@:2}" ;;
    runtime) setup; "$python" tools/bench.py "${@:2}" ;;
    figures) setup; "$python" tools/figures.py "${@:2}" ;;
    setup | one | task) "$@" ;;
    *) ! type "list_${1:-}" >/dev/null 2>&1 || { suite "$@"; exit; }
        sed -n '2,/^# PY/s/^# \{0,1\}//p; s/^list_\(.*\)() {.* # \(.*\)/    \1: \2/p' run_all.sh
        exit 2 ;;
esac
