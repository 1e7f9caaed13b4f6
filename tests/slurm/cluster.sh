#!/usr/bin/env bash
# A Slurm cluster of one node on loopback, from Debian's packages: slurmctld slurmd slurm-client munge.
#   cluster.sh start <folder>    everything it writes lies in <folder>; SLURM_CONF=<folder>/slurm.conf is for the commands
#   cluster.sh stop <folder>     ends what it started, by process number
# Needs root: slurmd starts jobs in the name of their users.
set -euo pipefail
folder=$(realpath "$2")

start() {
    mkdir -p "$folder"/{state,spool,munge}
    chmod 755 "$folder"
    head -c 1024 /dev/urandom > "$folder/munge/key"
    chmod 700 "$folder/munge"
    chmod 400 "$folder/munge/key"
    host=$(hostname -s)
    cat > "$folder/slurm.conf" <<CONF
ClusterName=adlight
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(port)
SlurmdPort=$(port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
OverTimeLimit=0
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
SlurmdParameters=config_overrides
CONF
    export SLURM_CONF="$folder/slurm.conf"
    munged --force --socket "$folder/munge/socket" --key-file "$folder/munge/key" --pid-file "$folder/munge/pid" \
        --log-file "$folder/munge/log" --seed-file "$folder/munge/seed"
    slurmctld -c
    slurmd
    for _ in $(seq 60); do
        sinfo --noheader --format %T 2> "$folder/sinfo.log" | grep -q idle && return
        sleep 0.5
    done
    tail "$folder"/*.log "$folder"/munge/log >&2
    stop
    exit 1
}

stop() {
    export SLURM_CONF="$folder/slurm.conf"
    for _ in $(seq 60); do  # srun ends a little after its job
        [[ -z $(squeue --noheader) ]] && break
        sleep 0.5
    done
    for pid in "$folder"/{slurmd,slurmctld}.pid "$folder/munge/pid"; do
        if [[ -s $pid ]]; then kill "$(cat "$pid")" || true; fi
    done
}

port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

"$1"
