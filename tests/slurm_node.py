"""A Slurm of one node in a temporary folder: munge, MariaDB, slurmdbd, slurmctld, slurmd.

Run as a script, it starts them, says where, and ends them when its stdin ends: so does a process
that is killed without a word.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = (
    *("munged", "munge", "mariadbd", "mariadb-install-db", "mariadb", "slurmdbd", "slurmctld"),
    *("slurmd", "sbatch", "srun", "squeue", "sacct", "sacctmgr", "scancel", "scontrol"),
)
_CPUS, _MEMORY_MIB = 2, 9_000
_PARTITIONS = {
    "main": "Default=YES PriorityTier=1 PreemptMode=REQUEUE",
    "spare": "PriorityTier=1 PreemptMode=CANCEL",
    "urgent": "PriorityTier=2 PreemptMode=OFF",
}
_PATIENCE_SECONDS = 60.0
_END_SECONDS = 15.0


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    if os.geteuid() != 0:
        return "needs root, as Slurm's daemons do"
    if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
        return (
            f"there is no {', '.join(absent)}: "
            "apt-get install slurm-wlm munge slurmdbd mariadb-server"
        )
    if not any(user.pw_name == "munge" for user in pwd.getpwall()):
        return "there is no user munge"
    return ""


class SlurmNode:
    """The daemons, started in order by `start` and ended by their pid files by `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self.host = socket.gethostname().partition(".")[0]
        self._ports = _free_ports(3)
        self._pid_files: list[Path] = []

    @property
    def environment(self) -> dict[str, str]:
        """For Slurm's commands."""
        database = {"MYSQL_UNIX_PORT": str(self.folder / "database" / "socket")}
        return {**os.environ, **database, "SLURM_CONF": str(self.configuration)}

    def run(self, *command: object, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        words = list(map(str, command))
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr}{done.stdout}")
        return done.stdout

    def start(self) -> None:
        """Start everything; the node is idle when this returns."""
        self.folder.chmod(0o755)  # munged refuses a socket that others cannot reach
        self._start_munge()
        self._start_database()
        self._configure()
        self._daemon("slurmdbd", "slurmdbd")
        self._wait(lambda: self._answers("sacctmgr", "-i", "add", "cluster", "onenode"), "slurmdbd")
        self._daemon("slurmctld", "slurmctld", "-f", self.configuration)
        self._wait(lambda: self.run("scontrol", "ping", check=False).count("UP") > 0, "slurmctld")
        self._daemon("slurmd", "slurmd", "-f", self.configuration, "-N", self.host)
        self._wait(
            lambda: self.run("sinfo", "-h", "-o", "%T", check=False).strip() == "idle", "node"
        )

    def stop(self) -> None:
        """End everything, the last first; jobs with their node."""
        if (self.folder / "slurmctld.pid").exists():
            with contextlib.suppress(Exception):
                self.run("scancel", "--user=root", check=False)
                self._wait(lambda: not self.run("squeue", "-h", check=False).strip(), "jobs", 20.0)
        for file in reversed(self._pid_files):
            _end(file)

    def _answers(self, *command: str) -> bool:
        done = subprocess.run(command, env=self.environment, capture_output=True, check=False)
        return done.returncode == 0

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        folder.mkdir(mode=0o755)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        user = pwd.getpwnam("munge")
        for path in (folder, key):
            os.chown(path, user.pw_uid, user.pw_gid)
        self._socket = folder / "munge.socket"
        options = [f"--key-file={key}", f"--socket={self._socket}", f"--pid-file={folder}/pid"]
        options += [f"--log-file={folder}/log", f"--seed-file={folder}/seed", "--num-threads=2"]
        self._pid_files.append(folder / "pid")
        command = [
            "setpriv",
            "--reuid=munge",
            "--regid=munge",
            "--clear-groups",
            "munged",
            *options,
        ]
        subprocess.run(command, check=True, timeout=30)
        self._wait(self._socket.exists, "munged")

    def _start_database(self) -> None:
        folder = self.folder / "database"
        data, self._database = folder / "data", folder / "socket"
        folder.mkdir()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                f"--datadir={data}",
                "--user=root",
                "--auth-root-authentication-method=socket",
                "--skip-test-db",
            ],
            check=True,
            timeout=120,
            **quiet,
        )
        self._pid_files.append(folder / "pid")
        log = (folder / "log").open("wb")
        subprocess.Popen(
            [
                "mariadbd",
                "--no-defaults",
                f"--datadir={data}",
                "--user=root",
                "--skip-networking",
                f"--socket={self._database}",
                f"--pid-file={folder}/pid",
                "--innodb-buffer-pool-size=64M",
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self._wait(lambda: self._sql("select 1"), "mariadbd")
        self._sql(
            "create database slurm; create user slurm@localhost identified by 'slurm'; "
            "grant all on slurm.* to slurm@localhost"
        )

    def _sql(self, text: str) -> bool:
        command = ["mariadb", "--no-defaults", f"--socket={self._database}", "-e", text]
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0

    def _configure(self) -> None:
        at, (dbd, ctld, d) = self.folder, self._ports
        for name in ("state", "spool"):
            (at / name).mkdir()
        accounting = at / "slurmdbd.conf"
        accounting.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={self._socket}\nDbdHost=localhost\n"
            f"DbdPort={dbd}\nSlurmUser=root\nLogFile={at}/slurmdbd.log\nPidFile={at}/slurmdbd.pid\n"
            "StorageType=accounting_storage/mysql\nStorageHost=localhost\nStorageUser=slurm\n"
            "StoragePass=slurm\nStorageLoc=slurm\n"
        )
        accounting.chmod(0o600)
        self.configuration.write_text(
            f"ClusterName=onenode\nSlurmctldHost={self.host}(127.0.0.1)\n"
            f"AuthType=auth/munge\nAuthInfo=socket={self._socket}\n"
            f"SlurmUser=root\nSlurmdUser=root\nSlurmctldPort={ctld}\nSlurmdPort={d}\n"
            f"StateSaveLocation={at}/state\nSlurmdSpoolDir={at}/spool\n"
            f"SlurmctldPidFile={at}/slurmctld.pid\nSlurmdPidFile={at}/slurmd.pid\n"
            f"SlurmctldLogFile={at}/slurmctld.log\nSlurmdLogFile={at}/slurmd.log\n"
            "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSelectType=select/cons_tres\n"
            "SelectTypeParameters=CR_Core_Memory\nReturnToService=2\nKillWait=15\nInactiveLimit=0\n"
            "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=localhost\n"
            f"AccountingStoragePort={dbd}\nAccountingStoragePass={self._socket}\n"
            "JobAcctGatherType=jobacct_gather/linux\n"
            "JobAcctGatherFrequency=2\n"
            f"NodeName={self.host} NodeAddr=127.0.0.1 CPUs={_CPUS} RealMemory={_MEMORY_MIB}\n"
            # Jobs of "urgent" end those of the others: these may be requeued, or are cancelled.
            "PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\n"
            + "".join(
                f"PartitionName={name} Nodes={self.host} MaxTime=INFINITE State=UP {options}\n"
                for name, options in _PARTITIONS.items()
            )
        )

    def _daemon(self, name: str, *command: object) -> None:
        self._pid_files.append(self.folder / f"{name}.pid")
        subprocess.run(list(map(str, command)), env=self.environment, check=True, timeout=60)

    def _wait(
        self, is_there: Callable[[], bool], what: str, seconds: float = _PATIENCE_SECONDS
    ) -> None:
        deadline = time.monotonic() + seconds
        while not is_there():
            if time.monotonic() > deadline:
                logs = {log.name: log.read_text()[-500:] for log in self.folder.glob("*.log")}
                raise RuntimeError(f"{what}: not there after {seconds:g} s; {logs}")
            time.sleep(0.2)


@contextlib.contextmanager
def slurm_node() -> Iterator[SlurmNode]:
    """The daemons, which end with the block or with this process, however these end."""
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        folder = keeper.stdout.readline().strip()
        if not folder:
            raise RuntimeError("Slurm does not start; what went wrong is above")
        yield SlurmNode(Path(folder))
        keeper.stdin.close()


def _keep() -> None:
    """Start the daemons, and end them with stdin."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    # Not pytest's folder, which no other user may enter.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        node = SlurmNode(Path(folder))
        try:
            node.start()
            print(folder, flush=True)
            sys.stdin.read()
        finally:
            node.stop()


def _end(pid_file: Path) -> None:
    """End the process of a pid file: in order, and then by a kill."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _END_SECONDS
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            while time.monotonic() < deadline:
                os.kill(pid, 0)
                time.sleep(0.1)
                with contextlib.suppress(ChildProcessError):  # one of ours leaves a zombie
                    os.waitpid(pid, os.WNOHANG)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


if __name__ == "__main__":
    _keep()
