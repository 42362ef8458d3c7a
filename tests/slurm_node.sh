#!/usr/bin/env bash
# A Slurm of one node for the tests, on the loopback interface, without systemd, cgroups or a
# database. All it writes lies in DIR, an empty folder, whose parents are open to all (for munge).
# Needs Debian's packages slurmctld, slurmd, slurm-client and munge.
#   bash tests/slurm_node.sh start DIR && export SLURM_CONF=DIR/client.conf
#   bash tests/slurm_node.sh stop DIR
set -euo pipefail
dir=$(realpath -m "${2:?give start or stop, and a folder}")
export SLURM_CONF=$dir/slurm.conf PATH=$PATH:/usr/sbin:/sbin
host=$(uname -n) host=${host%%.*}

running() {  # NAME: its pid, if the recorded process is still that program
    pid=$(cat "$dir/$1.pid" 2>/dev/null) || return 1
    grep -q "$1" "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
}
wait_for() {  # SECONDS COMMAND...
    for ((i = 0; i < $1 * 5; i++)); do "${@:2}" && return; sleep 0.2; done
    return 1
}
daemon() {  # NAME FLAGS...: in a session of its own, with none of our files open
    setsid "$@" >>"$dir/$1.log" 2>&1 </dev/null &
    echo $! >"$dir/$1.pid"
}
idle() { [ "$(timeout 3 sinfo --noheader --format=%T 2>/dev/null)" = idle ]; }
no_jobs() { [ -z "$(timeout 3 squeue --noheader 2>/dev/null)" ]; }
ended() { ! kill -0 "$1" 2>/dev/null; }

start() {
    type munged slurmctld slurmd sbatch >/dev/null || exit 1
    mkdir -p "$dir/state" "$dir/spool" "$dir/munge"
    chmod 755 "$dir" "$dir/munge"
    (umask 077 && head -c 128 /dev/urandom >"$dir/munge/key")
    cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=10
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.own.pid
SlurmdPidFile=$dir/slurmd.own.pid
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
MailProg=/bin/true
KillWait=5
MinJobAge=86400
ReturnToService=2
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
NodeName=$host NodeAddr=127.0.0.1 NodeHostname=$host CPUs=2 RealMemory=100000 State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    # by MinJobAge=4 sbatch --wait looks every 2 s
    sed 's/^MinJobAge=.*/MinJobAge=4/' "$SLURM_CONF" >"$dir/client.conf"
    daemon munged -F --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
        --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
    wait_for 10 test -S "$dir/munge/socket" || { tail -n 1 "$dir/munged.log" >&2; exit 1; }
    daemon slurmctld -D -c -i
    daemon slurmd -D
    if ! wait_for 60 idle; then
        tail -n 5 "$dir"/*.log >&2
        stop
        echo "error: no idle node" >&2
        exit 1
    fi
}

stop() {
    local name pid
    if [ -n "$(running slurmctld)" ] && timeout 5 scancel --user="$(id -un)" 2>/dev/null; then
        wait_for 10 no_jobs || true
    fi
    for name in slurmd slurmctld munged; do
        pid=$(running "$name") || continue
        kill "$pid" 2>/dev/null || true
        wait_for 10 ended "$pid" || kill -9 "$pid" || true
    done
    for pid in $(pgrep slurmstepd); do  # what runs jobs outlives slurmd
        if tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qxF "SLURM_CONF=$SLURM_CONF"; then
            kill -9 "$pid" || true
        fi
    done
}

case $1 in
    start | stop) "$1" ;;
    *) echo "error: give start or stop" >&2; exit 2 ;;
esac
