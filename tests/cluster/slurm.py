"""A throw-away Slurm: two virtual nodes on the loopback interface, one folder, daemons that end with the tests.

Each node claims two GPUs, which are names of the null device: Slurm hands them out, nothing can be computed on them.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo", "squeue", "scancel", "srun")
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"])
NODES = ("n1", "n2")
CPUS = 2
"""Cores that each node claims to have, whatever the machine has."""
GPUS = 2
"""GPUs that each node claims to have."""
ENDED = {"COMPLETED", "FAILED", "CANCELLED"}
"""States of a job that has come to an end."""


def missing_programs() -> list[str]:
    """What of Slurm and MUNGE is not installed here."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]


def wait_for(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Look again and again until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.3)


class Slurm:
    """A running cluster; `environment` is what a process needs to use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": SEARCH}
        self._ports = _free_ports(1 + len(NODES))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "munge", *NODES):
            (folder / name).mkdir()
        key = folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        for node in NODES:
            for gpu in range(GPUS):
                (folder / f"gpu-{node}-{gpu}").symlink_to(os.devnull)  # Slurm wants a device
        lines = [f"NodeName={node} Name=gpu File={folder}/gpu-{node}-[0-{GPUS - 1}]\n" for node in NODES]
        (folder / "gres.conf").write_text("".join(lines))
        self._write_conf(requeue_exit=True)

    def _write_conf(self, *, requeue_exit: bool) -> None:
        host, user = socket.gethostname().partition(".")[0], subprocess.check_output(["id", "-un"], text=True)
        ports = self._ports
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": ports[0],
            "SlurmUser": user.strip(),
            "SlurmdUser": user.strip(),
            "AuthType": "auth/munge",
            "CredType": "cred/munge",
            "AuthInfo": f"socket={self.folder / 'munge' / 'socket'},cred_expire=5",  # the wait before a requeued job
            "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
            "MpiDefault": "none",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "SchedulerParameters": "sched_interval=2,bf_interval=2,batch_sched_delay=1",
            "SlurmdParameters": "config_overrides",
            "GresTypes": "gpu",
            "ReturnToService": 2,
            "SlurmdTimeout": 10,
            "KillWait": 20,
            "JobRequeue": 1,
            "MinJobAge": 3600,
            "AccountingStorageType": "accounting_storage/none",
            "StateSaveLocation": self.folder / "state",
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmctldLogFile": self.folder / "slurmctld.log",
            "SlurmdPidFile": self.folder / "slurmd-%n.pid",
            "SlurmdLogFile": self.folder / "slurmd-%n.log",
            "SlurmdSpoolDir": self.folder / "%n",
            **({"RequeueExit": 75} if requeue_exit else {}),
        }
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} CoresPerSocket={CPUS} "
            f"RealMemory=8000 Gres=gpu:{GPUS} State=UNKNOWN"
            for node, port in zip(NODES, ports[1:], strict=True)
        ]
        lines = [f"{name}={value}" for name, value in settings.items()]
        text = "\n".join([*lines, *nodes, "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE", ""])
        (self.folder / "slurm.conf").write_text(text)

    def set_requeue_exit(self, given: bool) -> None:
        """Put `RequeueExit` into the configuration of the running cluster, or take it out."""
        self._write_conf(requeue_exit=given)
        self.look_at_nodes()

    def look_at_nodes(self) -> None:
        """Let the nodes say what runs on them now, as they else do every few minutes."""
        self.call("scontrol", "reconfigure")

    def start(self) -> None:
        """Start the daemons and wait until both nodes have registered."""
        munge = self.folder / "munge"
        files = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        options = [f"--{option}={munge / name}" for option, name in files.items()]
        self._daemon("munged", "--foreground", "--force", *options)
        wait_for((munge / "socket").exists, "munged listens", 30)
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        wait_for(lambda: self._registered() == len(NODES), "both nodes register", 60)

    def start_node(self, node: str) -> None:
        """Start the daemon of a node again and wait until it takes jobs."""
        self._daemon("slurmd", "-D", "-N", node)
        wait_for(lambda: self._node_state(node) in ("IDLE", "MIXED", "ALLOCATED"), f"{node} is back", 60)

    def kill_controller(self) -> None:
        """End the controller as a crash does, once it has saved its state.

        It saves at most every 5 s and only when asked to, which its backfill scheduler does not do for a job it starts
        and a submission does: a controller that comes back with a running job as a pending one would start it twice.
        """
        asked = time.time()
        self.call("sbatch", "--hold", "--output=/dev/null", "--wrap=true")
        wait_for(lambda: self._saved_at() > asked, "the controller has saved its state", 60)
        daemon = self._daemons["slurmctld"]
        daemon.kill()
        daemon.wait()

    def start_controller(self) -> None:
        """Start the controller again, from the state it had saved, and wait until it answers."""
        self._daemon("slurmctld", "-D")
        wait_for(lambda: self._ask("scontrol", "ping").returncode == 0, "the controller answers", 60)

    def kill_node(self, node: str) -> None:
        """End the daemon of a node as a loss of power does."""
        daemon = self._daemons[f"slurmd{node}"]
        daemon.kill()
        daemon.wait()

    def pid(self, job: str, node: str, step: str = "batch") -> int:
        """Process that a step of a job began with, by default its script; its parent is Slurm's step daemon."""
        number = self.call("scontrol", "show", "job", job).partition("JobId=")[2].split()[0]
        lines = [line.split() for line in self.call("scontrol", "listpids", number, node).splitlines()[1:]]
        (pid,) = [int(line[0]) for line in lines if line[2] == step and line[4] == "0"]
        return pid

    def nodes(self, job: str) -> str:
        """The nodes of a job."""
        return self.call("scontrol", "show", "job", job).partition(" NodeList=")[2].split()[0]

    def _daemon(self, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=SEARCH)
        assert path is not None
        name = program + "".join(argument for argument in arguments if argument in NODES)
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                [path, *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def _registered(self) -> int:
        lines = self._ask("scontrol", "show", "node").stdout.splitlines()
        return sum(f"CPULoad={digit}" in line for line in lines for digit in "0123456789")

    def _saved_at(self) -> float:
        """When the controller saved its state last; 0 at the moments at which it exchanges the file."""
        try:
            return (self.folder / "state" / "job_state").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _node_state(self, node: str) -> str:
        return self.call("sinfo", "--noheader", "--nodes", node, "--format=%T").strip().rstrip("*").upper()

    def clear(self) -> None:
        """End all jobs; start the controller if a test has left it dead."""
        if self._daemons["slurmctld"].poll() is not None:
            self.start_controller()
        self.call("scancel", "--full", "--user", str(os.getuid()))
        wait_for(lambda: not self.call("squeue", "--noheader"), "the queue is empty", 60)

    def stop(self) -> None:
        """End all jobs, then the daemons, each by its own process."""
        if "slurmctld" in self._daemons and self._daemons["slurmctld"].poll() is None:
            self.clear()
        for name, daemon in reversed(self._daemons.items()):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
            assert daemon.returncode is not None, name

    def call(self, *command: str) -> str:
        """What a client of Slurm answers."""
        done = self._ask(*command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def _ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def state(self, job: str) -> str:
        """`RUNNING`, `PENDING`, `COMPLETED`, ... of a job or a task of an array (`12_3`)."""
        shown = self.call("scontrol", "show", "job", job)
        return shown.partition("JobState=")[2].split()[0]

    def wait_for_state(self, job: str, states: set[str], seconds: float) -> None:
        """Wait until a job is in one of the states."""
        wait_for(lambda: self.state(job) in states, f"job {job} is {' or '.join(sorted(states))}", seconds)


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
