#!/usr/bin/env bash
# Experiments, one command each. Every run continues where it was, so a command that was cut off is given again.
#
#   bash run_all.sh demo     from nothing but Python to a trained policy: environment, data, training, score
#   bash run_all.sh test     environment and tests
#   bash run_all.sh ogbench  DROL(16), DROL* and FQL on OGBench's 10 families x 5 tasks
#   bash run_all.sh d4rl     the same three on D4RL's 18 tasks
#   bash run_all.sh ksweep   DROL with K = 1 to 32 on 10 tasks of OGBench and 10 of D4RL
#   bash run_all.sh scaling  DROL with K = 1 to 64 on 3 tasks, for the candidate-scaling curves
#   bash run_all.sh runtime  tools/bench.py: milliseconds an update and an action
#   bash run_all.sh figures  tools/figures.py: tables and figures of whatever has been run
#   bash run_all.sh local    small networks on collected data: the runs of results/local, hours on a laptop
#   bash run_all.sh local-tuning   the tuning that went before them
#   bash run_all.sh all      ogbench, d4rl, ksweep and scaling, then runtime and figures
#
# demo, test, runtime and figures hand what follows to their program. The others take
#   --list            print the commands, one a line, and run nothing (local's need the data that `local` collects first)
#   --seeds 8         number of seeds, from 0; unset: 8, of local 2 (some of its runs are of seed 0 alone), of local-tuning 1
#   --methods "drol16 drolstar fql"
#   --families "cube-single pen"   only env ids that begin so
#   --tasks "1 2 3 4 5"            only these tasks of OGBench's families
#   --jobs 1          runs at once; unset: one, or one a GPU of --gpus
#   --gpus "0 1"      GPUs to spread them over
#   --slurm "--partition=gpu --gpus=1 --time=24:00:00"   submit the list to Slurm as one job array, with these options
#   --run-dir runs    folder of the runs; their logs are in its logs/; unset: runs, or runs/local, runs/local-tuning
#   -- FLAGS          flags for every run, such as -- --data-dir data --steps 100000
# Paths are taken from this folder. PYTHON=python uses an environment of yours rather than .venv.
set -euo pipefail
cd "$(dirname "$0")"

fail() { echo "error: $*" >&2; exit 1; }
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; }

# A virtual environment in .venv with both requirement files, made once and again when one of them changes.
setup() {
    local candidate found=
    [ -z "${PYTHON:-}" ] || { python=$PYTHON; return; }
    if ! cat requirements.txt requirements-d4rl.txt | cmp -s - .venv/installed; then
        for candidate in python3.11 python3.12 python3; do
            "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null &&
                { found=$candidate; break; }
        done
        [ -n "$found" ] || fail "Python 3.11 or 3.12 is needed (labmaze has no build for newer ones); install one"
        echo "installing requirements.txt and requirements-d4rl.txt into .venv (log: .venv/install.log) ..."
        "$found" -m venv .venv || fail "$found cannot make a virtual environment; install its venv package"
        { .venv/bin/python -m pip install -r requirements.txt &&
            .venv/bin/python -m pip install --no-deps -r requirements-d4rl.txt; } >.venv/install.log 2>&1 ||
            { tail -n 5 .venv/install.log >&2; fail "pip failed; the whole log is .venv/install.log"; }
        cat requirements.txt requirements-d4rl.txt >.venv/installed
    fi
    python=.venv/bin/python
}

# Small networks, and a learning rate and target update rate above the published ones, to learn within minutes on a laptop.
laptop="--data-dir data --hidden-dims 128 128 128 --lr 1e-3 --tau 0.02"
laptop_run="$laptop --log-interval 500 --eval-episodes 25 --eval-envs 5"  # of local and local-tuning

collect() { "$python" tools/collect.py --env-id "$1" --episodes 100 --data-dir data; }  # keeps what is there

demo() {
    setup
    collect cube-single
    # shellcheck disable=SC2086
    "$python" drol.py --env-id cube-single --k 16 $laptop --steps 30000 --eval-interval 5000 --log-interval 1000 "$@"
}

# ------------------------------------------------------------------------------------- what the paper has run

# env id : K of DROL* : its bc_coef where it is not DROL(16)'s
ogbench="antmaze-large:16 antmaze-giant:1 humanoidmaze-medium:16 humanoidmaze-large:4 antsoccer-arena:4
    cube-single:16 cube-double:64 scene:64 puzzle-3x3:32 puzzle-4x4:64"
d4rl="antmaze-umaze-v2:2 antmaze-umaze-diverse-v2:16 antmaze-medium-play-v2:32 antmaze-medium-diverse-v2:16
    antmaze-large-play-v2:16:0.03 antmaze-large-diverse-v2:16:0.03
    pen-human-v1:16 pen-cloned-v1:16 pen-expert-v1:16 door-human-v1:8 door-cloned-v1:8 door-expert-v1:8
    hammer-human-v1:8 hammer-cloned-v1:8 hammer-expert-v1:8 relocate-human-v1:32 relocate-cloned-v1:32 relocate-expert-v1:32"
# env id : task
ksweep="antmaze-giant:3 antmaze-large:1 antsoccer-arena:4 cube-double:3 cube-single:1 humanoidmaze-large:1
    humanoidmaze-medium:1 puzzle-3x3:2 puzzle-4x4:1 scene:2
    antmaze-umaze-v2 antmaze-umaze-diverse-v2 antmaze-medium-play-v2 antmaze-medium-diverse-v2
    antmaze-large-play-v2 antmaze-large-diverse-v2 pen-expert-v1 door-expert-v1 hammer-expert-v1 relocate-expert-v1"
scaling="antmaze-giant:3 cube-double:3 scene:2"

seeds="" methods="drol16 drolstar fql" families="" tasks="1 2 3 4 5" jobs="" gpus="" run_dir="" list="" slurm=none seed=0 extra=()

# emit METHOD ENV_ID TASK FLAGS...: prints a run without its seed, if the options ask for it. TASK: empty in D4RL.
emit() {
    local method=$1 env_id=$2 task=$3 program=drol.py prefix match=
    [[ " $methods " == *" $method "* ]] && [[ -z $task || " $tasks " == *" $task "* ]] || return 0
    for prefix in ${families:-$env_id}; do [[ $env_id == "$prefix"* ]] && match=yes; done
    [ "$method" != fql ] || program=fql.py
    [ -z "$match" ] || echo "$(printf %q "${PYTHON:-.venv/bin/python}") $program --env-id $env_id${task:+ --task $task}${*:4}"
}

# runs SUITE: prints its runs without seeds.
runs() {
    local entry env_id k bc_coef alpha task
    case $1 in
        ogbench | d4rl)
            for entry in ${!1}; do
                IFS=: read -r env_id k bc_coef <<<"$entry"
                for task in $([ "$1" = d4rl ] && echo - || echo 1 2 3 4 5); do
                    emit drol16 "$env_id" "${task#-}" " --k 16"
                    emit drolstar "$env_id" "${task#-}" " --k $k${bc_coef:+ --bc-coef $bc_coef}"
                    emit fql "$env_id" "${task#-}" ""
                done
            done ;;
        ksweep | scaling)
            for entry in ${!1}; do
                for k in 1 2 4 8 16 32 $([ "$1" = ksweep ] || echo 64); do
                    IFS=: read -r env_id task <<<"$entry"
                    emit drol16 "$env_id" "$task" " --k $k"
                done
            done ;;
        local-tuning)
            local flags="$laptop_run --steps 20000 --eval-interval 5000"
            for bc_coef in 3 10 30; do emit drol16 cube-single 2 " --k 16 --bc-coef $bc_coef $flags"; done
            for alpha in 100 300 1000; do emit fql cube-single 2 " --alpha $alpha $flags"; done ;;
        local)
            local flags="$laptop_run --snapshot-interval 10000 --steps 40000 --eval-interval 5000"
            local short="$laptop_run --snapshot-interval 10000 --steps 20000 --eval-interval 10000"
            for k in 1 4 16 64; do emit drol16 cube-single 2 " --k $k $flags"; done
            emit fql cube-single 2 " $flags"
            emit drol16 scene 1 " --k 16 $flags"
            emit fql scene 1 " $flags"
            [ "$seed" = 0 ] || return 0  # one seed of the rest
            emit drol16 pointmaze-medium 1 " --k 16 $flags"
            emit fql pointmaze-medium 1 " $flags"
            for k in 1 2 4 8 16 32 64; do emit drol16 scene 2 " --k $k $short"; done
            emit fql scene 2 " $short"
            for k in 2 8 32; do emit drol16 cube-single 2 " --k $k $flags"; done ;;
        all) runs ogbench; runs d4rl; runs ksweep; runs scaling ;;
    esac
}

# The commands of a suite, one a line: each once, and seed 0 of everything before seed 1 of anything.
commands() {
    local flags="" seed
    [ "$run_dir" = runs ] || flags+=$(printf ' --run-dir %q' "$run_dir")
    [ ${#extra[@]} = 0 ] || flags+=$(printf ' %q' "${extra[@]}")
    for ((seed = 0; seed < seeds; seed++)); do
        runs "$1" | flags=" --seed $seed$flags" awk '!seen[$0]++ {print $0 ENVIRON["flags"]}'
    done
}

# ------------------------------------------------------------------------------------------- how they are run

log_of() { echo "$logs/$(sed 's/^[^ ]* //; s/[^[:alnum:].]\{1,\}/-/g' <<<"$1" | cut -c1-70)-$(cksum <<<"$1" | cut -d' ' -f1).log"; }

# A run is finished if its log says so and the run's folder, the log's last line, is still there.
finished() { [ -f "$1" ] && tail -n 3 "$1" | grep -q '^finished at update' && [ -d "$(tail -n 1 "$1")" ]; }

# run_one COMMAND: runs it unless it is finished, with its output in its log. Returns its exit code. A signal is passed on,
# so that the run saves before it leaves. SLOT: which of the runs at once this is.
run_one() {
    local log code attempt gpu_list=($gpus)
    log=$(log_of "$1")
    if finished "$log"; then return 0; fi
    [ -z "$gpus" ] || export CUDA_VISIBLE_DEVICES=${gpu_list[${SLOT:-0} % ${#gpu_list[@]}]}
    for attempt in {1..20}; do
        bash -c "exec $1" >>"$log" 2>&1 &
        trap "kill -TERM $! 2>/dev/null" TERM
        wait $! && code=0 || code=$?
        while kill -0 $! 2>/dev/null; do wait $! && code=0 || code=$?; done  # wait ended with a signal of ours
        # a task that Slurm has requeued can overlap what is left of its first attempt
        [ -n "${SLURM_RESTART_COUNT:-}" ] && [ $code = 1 ] && tail -n 1 "$log" | grep -q 'is in use' || break
        sleep 15
    done
    case $code in
        0) echo "done: $1" ;;
        130 | 143) echo "stopped: $1" ;;
        *) echo "failed ($code): $1; log: $log" | tee -a "$failures" ;;
    esac
    return $code
}

run_local() {
    local line slot threads stopped="" pids=()
    threads=$(($(nproc) / jobs))
    [ "$jobs" = 1 ] || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
    failures=$(mktemp)
    trap 'stopped=yes; kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM
    while [ -z "$stopped" ] && IFS= read -r line <&3; do
        while :; do  # until one of the runs at once has ended
            for ((slot = 0; slot < jobs; slot++)); do kill -0 "${pids[slot]:-}" 2>/dev/null || break; done
            [ "$slot" = "$jobs" ] || break
            wait -n "${pids[@]}" 2>/dev/null || true
        done
        [ -z "$stopped" ] || break
        SLOT=$slot run_one "$line" 3<&- &
        pids[slot]=$!
    done 3< <(commands "$1")
    for slot in "${!pids[@]}"; do
        while kill -0 "${pids[slot]}" 2>/dev/null; do wait "${pids[slot]}" 2>/dev/null || true; done
    done
    trap - INT TERM
    if [ -s "$failures" ]; then
        echo "--- these failed; give the same command again to go on:"
        cat "$failures"
    fi
    [ -z "$stopped" ] || { echo "stopped; the same command goes on from there"; exit 130; }
    [ ! -s "$failures" ]
}

# One job array, each task of which runs its share of the list: at most 1000 tasks, as Slurm's default allows no index above.
run_slurm() {
    local file n
    type sbatch >/dev/null 2>&1 || fail "--slurm: there is no sbatch on this machine"
    [[ $slurm != *--array* ]] || fail "--slurm: --array is set here; to run fewer at once: scontrol update ArrayTaskThrottle=8 JobId=..."
    file=$(mktemp "$logs/$1-XXXXXX.list")
    commands "$1" >"$file"
    n=$(wc -l <"$file")
    n=$((n > 1000 ? 1000 : n))
    # shellcheck disable=SC2086
    sbatch --job-name="drol-$1" --array="1-$n" --requeue --open-mode=append --output="$logs/slurm-%A_%a.out" $slurm \
        --wrap "exec bash $(printf %q "$PWD/run_all.sh") slurm-task $(printf '%q %q' "$file" "$logs") $n"
}

slurm_task() {  # LIST LOGS STRIDE, as run_slurm has it
    local line code result=0
    logs=$2 failures=/dev/null
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    while IFS= read -r line <&3; do
        run_one "$line" && code=0 || code=$?
        [ $code = 0 ] || result=$code
        [ $code -lt 128 ] || break  # ended by a signal
    done 3< <(awk -v n="$3" -v i="$SLURM_ARRAY_TASK_ID" 'NR % n == i % n' "$1")
    return $result
}

suite() {
    local name=$1
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            --list) list=yes; shift ;;
            --seeds | --methods | --families | --tasks | --jobs | --gpus | --run-dir | --slurm)
                [ $# -gt 1 ] || fail "$1 needs a value"
                local option=${1#--}
                printf -v "${option/-/_}" %s "$2"; shift 2 ;;
            --) shift; extra=("$@"); break ;;
            *) fail "unknown option $1; flags for the runs go after --" ;;
        esac
    done
    case $name in
        local) : "${seeds:=2}" "${run_dir:=runs/local}" ;;
        local-tuning) : "${seeds:=1}" "${run_dir:=runs/local-tuning}" ;;
        *) : "${seeds:=8}" "${run_dir:=runs}" ;;
    esac
    gpus=${gpus//,/ }
    local word gpu_list=($gpus)
    [ "$slurm" = none ] || [ -z "$gpus$jobs" ] || fail "--slurm: Slurm decides on GPUs and runs at once; leave --gpus and --jobs out"
    [ -n "$jobs" ] || jobs=$((${#gpu_list[@]} > 1 ? ${#gpu_list[@]} : 1))
    [[ $seeds =~ ^[1-9][0-9]*$ && $jobs =~ ^[1-9][0-9]*$ ]] || fail "--seeds and --jobs: give 1 or more"
    for word in $methods; do
        [[ " drol16 drolstar fql " == *" $word "* ]] || fail "--methods: there is no $word; choose of drol16, drolstar, fql"
    done
    for word in $families; do
        (families=$word methods="drol16 drolstar fql" tasks="1 2 3 4 5"; [ -n "$(runs "$name")" ]) ||
            fail "--families: nothing of $name begins with $word"
    done
    [ -n "$(runs "$name")" ] || fail "no run of $name is left by --methods, --families and --tasks"
    if [ -n "$list" ]; then commands "$name"; return; fi
    setup
    if [[ $name == local* ]]; then
        local family todo
        todo=$(runs "$name")
        for family in cube-single pointmaze-medium scene; do
            [[ $todo != *"--env-id $family "* ]] || collect "$family"
        done
    fi
    logs=$run_dir/logs
    mkdir -p "$logs"
    if [ "$slurm" != none ]; then run_slurm "$name"; return; fi
    run_local "$name"
}

case ${1:-} in
    demo) demo "${@:2}" ;;
    test) setup && "$python" -m pytest -q "${@:2}" test_drol.py ;;
    runtime) setup && "$python" tools/bench.py "${@:2}" ;;
    figures) setup && "$python" tools/figures.py "${@:2}" ;;
    ogbench | d4rl | ksweep | scaling | local | local-tuning) suite "$@" ;;
    all)
        code=0
        suite "$@" || code=$?
        [ -z "$list" ] && [ "$slurm" = none ] || exit $code  # with --slurm: runtime and figures when the array is done
        "$python" tools/bench.py --out "$run_dir/bench.csv" && "$python" tools/figures.py --run-dir "$run_dir" || code=$?
        exit $code ;;
    slurm-task) slurm_task "${@:2}" ;;
    *) usage; exit 2 ;;
esac
