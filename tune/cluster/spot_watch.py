"""On a worker of `ray up`: tell its trials when its cloud takes the machine back, so that each saves to the batch.

    python tune/cluster/spot_watch.py

Clouds tell a spot machine through its metadata server, Google 30 seconds before the end and Amazon two minutes. An
on-demand machine is never told. The watch ends with the raylet that runs when it begins.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # before anything of the user's could be imported by the name of something else
    sys.path.insert(0, os.path.realpath(__file__).rsplit("/", 3)[0])
    from data.machine.import_path import own_first

    own_first()

import select
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

SERVER = "http://169.254.169.254"  # of both clouds
PERIOD_S = 2.0
TRIAL = "ray::ResourceTrainable"  # how Ray calls the process of one


def told_by_google(server: str) -> bool:
    """Whether the machine is being taken back (cloud.google.com/compute/docs/instances/spot).

    Raises:
        OSError: no such server here.
    """
    return _ask(f"{server}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}) == "TRUE"


def told_by_amazon(server: str) -> bool:
    """The same (docs.aws.amazon.com, spot instance interruption notices, with IMDSv2).

    Raises:
        OSError: no such server here, or no notice, which it answers with 404.
    """
    token = _ask(f"{server}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    _ask(f"{server}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    return True


def _ask(address: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(address, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=PERIOD_S) as answer:
        return answer.read().decode().strip()


def processes_called(file: str, name: str) -> Iterator[int]:
    """Ids of this machine's processes whose name begins with a text.

    Args:
        file: of `/proc/PID/` that holds the name: `comm`, or `cmdline`, where a process can change it.
        name: to begin with.
    """
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if (process / file).read_bytes().startswith(name.encode()):
                yield int(process.name)


def watch(server: str, raylet: int) -> None:
    """Wait for the machine to be taken back, then tell the trials; or for the process `raylet` to end."""
    with suppress(ProcessLookupError):  # it has ended already
        handle = os.pidfd_open(raylet)  # can be read from once the process has ended
        wait_s = 0.0
        while not select.select([handle], [], [], wait_s)[0]:
            if taken_back(server):
                tell_trials()
                return
            wait_s = PERIOD_S


def taken_back(server: str) -> bool:
    """Whether either cloud tells, which is printed."""
    for told in (told_by_google, told_by_amazon):
        if _is(told, server):
            print(f"{told.__name__}: this machine is taken back", flush=True)
            return True
    return False


def _is(told: Callable[[str], bool], server: str) -> bool:
    with suppress(OSError):
        return told(server)
    return False


def tell_trials() -> None:
    """Keep new ones away, and have each that is here save and end, while the Ray that it needs for that still lives."""
    drain = ["ray", "drain-node", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the machine is taken back"]
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run([*drain, "--deadline-remaining-seconds=25"], timeout=5, check=False)
    for process in processes_called("cmdline", TRIAL):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
            # In one write: trials that are told write to the same place at once.
            print(f"told process {process}\n", end="", flush=True)


def main(server: Annotated[str, typer.Option(help="The metadata server.")] = SERVER) -> None:
    """Watch for the end of this machine."""
    raylet = next(processes_called("comm", "raylet\n"), None)
    if raylet is None:
        typer.secho("no Ray runs here: start it first", fg="red", err=True)
        raise typer.Exit(1)
    watch(server, raylet)


if __name__ == "__main__":
    typer.run(main)
