#!/usr/bin/env bash
# A real SLURM on this one Debian machine, for test_slurm.py: controller, node and queue, without accounting or cgroups.
# As root: `tests/slurm/start.sh` installs and starts it; `tests/slurm/start.sh stop` ends it.
set -euo pipefail
state=/var/lib/slurm-one-machine conf=/etc/slurm/slurm.conf host=$(hostname -s)

stop() {
    for daemon in slurmctld slurmd; do
        [ ! -f "$state/$daemon.pid" ] || kill "$(cat "$state/$daemon.pid")" 2>/dev/null || true
    done
    [ ! -f /run/munge/munged.pid ] || kill "$(cat /run/munge/munged.pid)" 2>/dev/null || true
}

if [ "${1:-start}" = stop ]; then
    stop
    exit
fi
if [ -f "$conf" ] && ! grep -q "$state" "$conf"; then
    echo "$conf is not of this script: this machine has a SLURM of its own" >&2
    exit 1
fi
if ! command -v slurmctld slurmd munged >/dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends slurm-wlm munge
fi
stop
sleep 2

mkdir -p /etc/munge /run/munge /var/lib/munge /var/log/munge "$state/ctld" "$state/d"
[ -s /etc/munge/munge.key ] || head -c 1024 /dev/urandom >/etc/munge/munge.key
chmod 400 /etc/munge/munge.key
chown -R munge: /etc/munge /run/munge /var/lib/munge /var/log/munge
chmod 755 /run/munge
su munge -s /bin/sh -c "munged --force"

cat >"$conf" <<EOF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1280)}' /proc/meminfo)
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOF
slurmctld
slurmd
for _ in $(seq 30); do
    if srun --immediate=5 true 2>/dev/null; then
        sinfo
        exit
    fi
    sleep 1
done
echo "SLURM does not run a job; see $state/*.log" >&2
exit 1
