"""Locks between processes."""

import subprocess
import sys

from adlight import locks

HOLDER = (
    "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); "
    "print(flush=True); sys.stdin.read()"
)


def test_two_processes_wait_for_each_other(tmp_path, monkeypatch):
    lock, said = tmp_path / ".lock", []
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:

        def release(line, **_):
            said.append(line)
            holder.stdin.close()

        monkeypatch.setattr(locks, "print", release, raising=False)
        holder.stdout.readline()  # it has the lock now
        with locks.hold_lock(lock, "waiting"):
            assert said == ["waiting"]
    with locks.hold_lock(lock, "waiting"):
        assert said == ["waiting"]
