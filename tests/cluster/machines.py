"""A laptop and the hosts of a cluster on this machine, each in namespaces of its own; see machines.sh."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SUBNET = "10.213.77"  # seen by nobody but them
UNSHARE = "unshare --net --mount --mount-proc --pid --uts --ipc --fork --kill-child".split()
SSHD = """\
HostKey /etc/ssh/key
AuthorizedKeysFile /etc/ssh/key.pub
StrictModes no
UsePAM no
PidFile none
"""


@dataclass(frozen=True)
class Machines:
    """Those that run.

    Attributes:
        process: their first one; all end with it.
        folder: where they keep what they are made of; `shared` in it is their /mnt/shared.
        hosts: their names; the first has the address SUBNET.1.
    """

    process: subprocess.Popen
    folder: Path
    hosts: tuple[str, ...]

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    def address(self, host: str) -> str:
        return f"{SUBNET}.{self.hosts.index(host) + 1}"

    def start(self, *command: str, output: IO[str] | int, root: str = "laptop") -> subprocess.Popen:
        """Start a command on the laptop, in the repository; with root="/" outside of its file system."""
        namespaces = f"/proc/{self.process.pid}/ns"
        enter = ["nsenter", f"--pid={namespaces}/pid_for_children"]
        enter += [f"--{kind}={namespaces}/{file}" for kind, file in (("mount", "mnt"), ("net", "net"), ("uts", "uts"))]
        inside = ["chroot", str(self.folder / root / "root")] if root != "/" else []
        environment = {
            "HOME": f"/home/{root}",
            "USER": "root",
            "TERM": "dumb",
            "LANG": "C.UTF-8",
            "PATH": f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "RAY_USAGE_STATS_ENABLED": "0",
            # The newer autoscaler never starts the last host of a provider of this kind (Ray 2.60).
            "RAY_UP_enable_autoscaler_v2": "0",
        }
        at = ["env", f"--chdir={REPOSITORY if root != '/' else '/'}"]
        return subprocess.Popen(
            [*enter, *inside, *at, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def run(self, *command: str, root: str = "laptop", expect: int = 0) -> str:
        """Run a command on the laptop to its end and return what it printed."""
        process = self.start(*command, output=subprocess.PIPE, root=root)
        printed = process.communicate()[0]
        assert process.returncode == expect, f"{' '.join(command)}\n{printed}"
        return printed

    def kill(self, host: str) -> None:
        """End a host at once, as if its power were cut."""
        self.run("kill", "-KILL", self._first_process(host), root="/")

    def cut(self, host: str) -> None:
        """Pull a host's network cable, and with it the network disk; the host itself goes on."""
        self.run("ip", "link", "set", host, "down", root="/")
        process = self._first_process(host)
        enter = ["nsenter", f"--target={process}", "--mount", f"--pid=/proc/{process}/ns/pid_for_children"]
        self.run(*enter, "umount", "--lazy", str(self.folder / host / "root/mnt/shared"), root="/")

    def _first_process(self, host: str) -> str:
        """Its number, as the laptop counts."""
        return (self.folder / f"{host}.pid").read_text().strip()


def missing() -> str:
    """What this machine lacks for it, or nothing."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs Linux and root, for namespaces of its own"
    programs = {
        "ip": "iproute2",
        "unshare": "util-linux",
        "setpriv": "util-linux",
        "ssh": "openssh-client",
        "/usr/sbin/sshd": "openssh-server",
        "rsync": "rsync",
    }
    lacking = {package for program, package in programs.items() if shutil.which(program) is None}
    if lacking:
        return f"needs {', '.join(sorted(lacking))}: apt-get install {' '.join(sorted(lacking))}"
    tried = subprocess.run(
        [*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True, check=False
    )
    return f"no namespaces of its own here: {tried.stderr.strip()}" if tried.returncode else ""


@contextmanager
def machines(folder: Path, hosts: tuple[str, ...]) -> Iterator[Machines]:
    """A laptop and hosts while the body runs; nothing of them is left, however it ends."""
    (folder / "shared").mkdir(parents=True)
    (folder / "ssh").mkdir()
    (folder / "ssh/sshd_config").write_text(SSHD)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "ssh/key")], check=True)
    needed = {REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)}
    keep = [
        path
        for path in needed
        if path.stat().st_dev != Path("/").stat().st_dev or path.is_relative_to("/tmp") or path.is_relative_to("/run")
    ]
    script = Path(__file__).with_name("machines.sh")
    with (folder / "laptop.log").open("w") as log:
        process = subprocess.Popen(
            # The signal reaches the namespaces even where this process is killed and cannot tidy up.
            ["setpriv", "--pdeathsig", "KILL", *UNSHARE, "bash", str(script), "laptop", str(folder), SUBNET, *hosts],
            env={**os.environ, "KEEP": "\n".join(map(str, keep))},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not (folder / "ready").exists():
            logs = "".join(path.read_text() for path in sorted(folder.glob("*.log")))
            assert process.poll() is None, logs
            time.sleep(0.05)
        yield Machines(process, folder, hosts)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
