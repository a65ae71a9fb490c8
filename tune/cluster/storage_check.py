"""Whether every machine of a run can use its folders: found out by trying, before anything starts."""

from __future__ import annotations

import os
import platform
import uuid
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data.machine.ray_internals import has_autoscaler
from data.stores.storage import StorageError, file_names, is_local, open_folder, read_whole, write_whole
from tune.errors import SweepError

NODE_S = 120.0  # for all nodes to answer: one that has just started unpacks the code first
_NETWORK = ("nfs", "cifs", "smb", "ceph", "gluster", "lustre", "gpfs", "beegfs", "9p", "virtiofs", "afs", "fuse.")
_ADVICE = "Give a place that all nodes share, such as gs://BUCKET/..., s3://BUCKET/... or an NFS folder"


def check_storage(places: dict[str, str], *, cluster: bool) -> None:
    """Write, read and delete a file in each place, here and from every other node.

    Args:
        places: path or URI by the option that gave it.
        cluster: whether a Ray cluster was joined; else there is only this machine.

    Raises:
        StorageError: this machine cannot use a folder.
        SweepError: another node cannot, or nodes that an autoscaler may add could not.
    """
    for option, address in places.items():
        file = f"{address.rstrip('/')}/.probe-{uuid.uuid4().hex}"
        try:
            _write_and_read(file)
            try:
                if cluster:
                    _ask_nodes(address, file)
            finally:
                _delete(file)
                if cluster:
                    _delete_answers(file)
        except StorageError as problem:
            raise StorageError(f"{option}: {problem}") from problem
        except OSError as problem:
            why = f"{type(problem).__name__}: {os.strerror(problem.errno) if problem.errno else problem}"
            raise StorageError(
                f"{option} {address}: nothing can be written there ({why}). Give a folder that is yours to write to"
            ) from problem
        except SweepError as problem:
            raise SweepError(f"{option} {address}: {problem}") from problem


def _ask_nodes(address: str, file: str) -> None:
    """Have every other node that is alive look for a file, and look for what it answers."""
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(file)
        for node in others
    ]
    if asked:  # all of them, so that none leaves its answer when another's failure has ended the check
        ray.wait(asked, num_returns=len(asked), timeout=NODE_S)
    for node, answer in zip(others, asked, strict=True):
        name = f"node {node['NodeManagerAddress']} ({node['NodeManagerHostname']})"
        try:
            left = ray.get(answer, timeout=0)
            _read(left)
            _delete(left)
        except FileNotFoundError:
            raise SweepError(f"{name} does not see what {platform.node()} writes there. {_ADVICE}") from None
        except RayTaskError as problem:
            raise SweepError(f"{name} cannot use it: {problem.cause}") from problem
        except GetTimeoutError:
            raise SweepError(f"{name} has not said within {NODE_S:.0f} s whether it sees it") from None
        except RayError as problem:
            raise SweepError(f"{name} was lost when it was asked ({type(problem).__name__}): try again") from problem
    filesystem, path = open_folder(address)
    if is_local(filesystem) and not others and has_autoscaler() and not on_network(path):
        raise SweepError(
            f"it is on a disk of this machine, which nodes that the autoscaler starts do not see. {_ADVICE}"
        )


def on_network(folder: str) -> bool:
    """Whether a local path lies on a file system that other machines may mount too."""
    table = Path("/proc/self/mounts")
    mounts = [line.split()[1:3] for line in table.read_text().splitlines()] if table.exists() else []
    path = os.path.realpath(folder)
    above = [(point, kind) for point, kind in mounts if f"{path}/".startswith(f"{point.rstrip('/')}/")]
    return max(above, key=lambda mount: len(mount[0]), default=("", ""))[1].startswith(_NETWORK)


def _look(file: str) -> str:
    """On another node: read what the driver wrote, and leave an answer beside it."""
    if _read(file) != file.encode():
        raise FileNotFoundError(file)
    answer = f"{file}-{uuid.uuid4().hex}"
    _write_and_read(answer)
    return answer


def _delete_answers(file: str) -> None:
    """Delete what nodes have left beside a file that is gone, which the driver did not come to read.

    A node that looks later finds no file, and leaves nothing.
    """
    filesystem, path = open_folder(file)
    folder, name = path.rsplit("/", 1)
    for answer in file_names(filesystem, folder):
        if answer.startswith(f"{name}-"):
            filesystem.delete_file(f"{folder}/{answer}")


def _write_and_read(file: str) -> None:
    filesystem, path = open_folder(file)
    write_whole(filesystem, path, file.encode())
    if read_whole(filesystem, path) != file.encode():
        raise StorageError(f"what is written to {file} is not what is read there")


def _read(file: str) -> bytes:
    return read_whole(*open_folder(file))


def _delete(file: str) -> None:
    filesystem, path = open_folder(file)
    filesystem.delete_file(path)
