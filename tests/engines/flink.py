"""Flink as Beam meets it: a job server, alone (Flink inside it) or before a cluster of two task managers."""

import json
import shlex
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tests.engines.servers import Server, answers, engine, free_port, listens

TASK_MANAGERS, SLOTS = 2, 2
WORKER_KEPT_MILLIS = 60_000
"""Without it Beam ends a worker after each stage and starts another: eight seconds of imports each time. It is heeded
only where Beam's classes are Flink's own, not the job's: its jars lie on Flink's class path, and `parent-first`."""

WORKER = Path(__file__).with_name("boot.py")

_OPENED = ("lang", "lang.invoke", "util", "util.concurrent", "net", "nio", "time")
JAVA = [
    "java",
    *(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _OPENED),
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "-Dorg.apache.logging.log4j.level=INFO",
]
"""Java 17 hides what Flink's serialisers reach into."""

_MEMORY = {
    "taskmanager.cpu.cores": SLOTS,
    "taskmanager.memory.task.heap.size": "300m",
    "taskmanager.memory.task.off-heap.size": "0m",
    "taskmanager.memory.network.min": "192m",
    "taskmanager.memory.network.max": "192m",
    "taskmanager.memory.managed.size": "256m",
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "192m",
    "taskmanager.memory.jvm-overhead.max": "192m",
}
"""What Flink's own start script works out, and refuses to guess when it is started without it. One job of ours needs
more than 64 MB of network buffers on two slots: Flink then fails it with *Insufficient number of network buffers*."""

# Ten attempts, as docs/flink-kubernetes.md has it: until a dead task manager's heartbeat is missed, each connection to
# it that is refused is one.
_CONFIG = """\
jobmanager.rpc.address: localhost
jobmanager.rpc.port: {rpc}
jobmanager.memory.process.size: 1024m
taskmanager.host: localhost
taskmanager.memory.process.size: 1856m
taskmanager.numberOfTaskSlots: {slots}
rest.port: {rest}
rest.address: localhost
cluster.evenly-spread-out-slots: true
heartbeat.interval: 1000
heartbeat.timeout: 20000
classloader.resolve-order: parent-first
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 10
restart-strategy.fixed-delay.delay: 1s
io.tmp.dirs: {folder}
"""


class Cluster:
    """A job manager, two task managers, and the job server before them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rest, self._started = folder, free_port(), 0
        self.lib, conf = f"{engine('flink')}/*:{engine('beam-flink')}/*", folder / "conf"
        conf.mkdir(parents=True)
        config = _CONFIG.format(rpc=free_port(), rest=self.rest, slots=SLOTS, folder=folder)
        (conf / "config.yaml").write_text(config)
        self.task_managers: list[Server] = []
        self.others = [self._flink("jobmanager", "entrypoint.StandaloneSessionClusterEntrypoint")]
        try:
            self.others[0].wait_until(lambda: answers(f"http://localhost:{self.rest}/overview"))
            for _ in range(TASK_MANAGERS):
                self.add_task_manager()
            self.wait_for_slots(TASK_MANAGERS * SLOTS)
            self.port, job_server = start_job_server(folder, f"localhost:{self.rest}")
            self.others.append(job_server)
        except BaseException:
            self.stop()
            raise

    @property
    def flags(self) -> list[str]:
        """What Beam is told: a worker process for each task manager, and a slot on each."""
        command = self.folder / "boot.sh"
        words = [sys.executable, str(WORKER), str(self.folder / "workers")]
        command.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        command.chmod(0o755)
        return [
            *_portable(self.port, parallelism=TASK_MANAGERS),
            "--environment_type=PROCESS",
            f"--environment_cache_millis={WORKER_KEPT_MILLIS}",
            f"--environment_config={json.dumps({'command': str(command)})}",
        ]

    def scored(self) -> dict[str, list[str]]:
        """The shards that each worker has put into its place, by the workers' own logs."""
        logs = sorted((self.folder / "workers").glob("*.shards"))
        return {log.stem: log.read_text().split() for log in logs}

    def add_task_manager(self) -> Server:
        """Starts one more task manager."""
        self._started += 1
        name = f"taskmanager-{self._started}"
        resources = {"taskmanager.resource-id": name, **_MEMORY}
        flags = [word for key, value in resources.items() for word in ("-D", f"{key}={value}")]
        memory = ["-Xmx600m", "-XX:MaxDirectMemorySize=512m"]
        self.task_managers.append(self._flink(name, "taskexecutor.TaskManagerRunner", memory, flags))
        return self.task_managers[-1]

    def wait_for_slots(self, slots: int) -> None:
        """Waits until that many slots are free."""
        self.others[0].wait_until(lambda: self.overview().get("slots-available", 0) >= slots)

    def overview(self) -> dict[str, int]:
        """What the job manager says of its cluster."""
        try:
            with urllib.request.urlopen(f"http://localhost:{self.rest}/overview", timeout=10) as response:
                return dict(json.load(response))
        except OSError:  # it is busy with somebody's death
            return {}

    def stop(self) -> None:
        """Ends every process, those that hold jobs first."""
        for server in (*self.others[::-1], *self.task_managers):
            server.stop()

    def _flink(self, name: str, entry: str, java: Sequence[str] = (), flags: Sequence[str] = ()) -> Server:
        command = [*JAVA, *java, "-cp", self.lib, f"org.apache.flink.runtime.{entry}"]
        return Server(name, [*command, "--configDir", self.folder / "conf", *flags], self.folder)


def start_job_server(folder: Path, master: str = "[local]") -> tuple[int, Server]:
    """Beam's job server, and the port that it takes jobs on; Flink runs inside it unless `master` names another."""
    port = free_port()
    command = [*JAVA, "-Xmx1g", "-cp", engine("beam-flink") / "*"]
    command += ["org.apache.beam.runners.flink.FlinkJobServerDriver", f"--job-port={port}"]
    command += ["--job-host=localhost", "--artifact-port=0", "--expansion-port=0"]
    command += [f"--artifacts-dir={folder / 'artifacts'}", f"--flink-master={master}"]
    server = Server("jobserver", command, folder)
    try:
        server.wait_until(lambda: listens(port))
    except BaseException:
        server.stop()
        raise
    return port, server


def embedded_flags(port: int) -> list[str]:
    """What Beam is told: the workers live in the process that submits the job."""
    return [*_portable(port, parallelism=2), "--environment_type=LOOPBACK"]


def _portable(port: int, parallelism: int) -> list[str]:
    return ["--runner=PortableRunner", f"--job_endpoint=localhost:{port}", f"--parallelism={parallelism}"]
