"""The command that builds caches: killed, damaged or fed bad rows, it ends with the same whole cache."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from made_crystals import rock_salt
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from data import build_cache
from data.crystals.graph_cache import Converter, cache_spec, graphs_of
from data.crystals.graphs import Graphs
from data.crystals.quality import check_crystal
from data.crystals.rows import Rows
from data.crystals.shards import MANIFEST, shards_present
from data.stores import places
from data.stores.storage import open_folder
from data.tasks import open_task
from tune import run_queue, run_sweep

REPOSITORY = Path(__file__).parents[2]
# Ray leaves sockets and log files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def many_rows(real_rows, tmp_path_factory) -> Path:
    """A Matbench file of the real structures, each twelve times: 11,940 rows, six shards."""
    payloads = real_rows.chunk(0, len(real_rows)).payloads * 12
    data = b",".join(b"[%s,0.5]" % payload for payload in payloads)
    index = json.dumps(list(range(len(payloads)))).encode()
    file = tmp_path_factory.mktemp("many") / "many.json"
    file.write_bytes(b'{"index":%s,"columns":["structure","y"],"data":[%s]}' % (index, data))
    return file


def command(task: Path, cache: Path) -> tuple[list[str], dict[str, str]]:
    environment = os.environ | {"MATSWEEP_CACHE": str(cache), "COLUMNS": "200"}
    return [sys.executable, "data/build_cache.py", "--task", str(task)], environment


def run_command(task: Path, cache: Path, expected_code: int = 0) -> str:
    """What the command says."""
    arguments, environment = command(task, cache)
    done = subprocess.run(
        arguments, env=environment, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, timeout=300, check=False
    )
    assert done.returncode == expected_code, done.stderr
    return done.stderr


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes of a file when it is written again, by file name."""
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.glob("shard-*.parquet")}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def wait_until(condition, what: str, timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.005)


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes below one, by process id."""
    parents, titles = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue
    below = {pid}
    for _ in range(len(parents)):
        grown = below | {child for child, parent in parents.items() if parent in below}
        if grown == below:
            break
        below = grown
    return {child: titles[child] for child in below - {pid} if child in titles}


def test_killed_in_the_middle_it_goes_on_where_it_was(many_rows, ray_session, tmp_path):
    arguments, environment = command(many_rows, tmp_path / "killed")
    process = subprocess.Popen(
        arguments,
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    folders = tmp_path / "killed" / "graphs"
    wait_until(lambda: list(folders.glob("*/shard-*")), "the first shard")
    below = descendants(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), "the end of Ray's processes")
    (folder,) = folders.iterdir()
    before = states(folder)
    assert 0 < len(before) < 6
    assert not (folder / MANIFEST).exists()

    output = run_command(many_rows, tmp_path / "killed")
    assert f"{len(before)} of 6 shards are there; building the other {6 - len(before)}" in output
    assert "11940 graphs, 0 rows rejected" in output
    after = states(folder)
    assert len(after) == 6
    assert before.items() <= after.items()  # not written again

    rows = open_task(str(many_rows), download_dir=tmp_path)[1]
    _, key = graphs_of(rows, (6, 3), str(tmp_path / "whole"))  # never interrupted
    assert key == folder.name
    assert contents(tmp_path / "whole" / key) == contents(folder)


def test_bad_rows_are_rejected_with_reasons_and_good_rows_stay(tmp_path):
    salt = rock_salt("Na", "Cl", 5.69)
    pair = [[0, 0, 0], [0.5, 0.5, 0.5]]
    bad_number = json.loads(json.dumps(salt.as_dict()))
    bad_number["sites"][3]["abc"][1] = float("nan")
    heavy = Structure(Lattice.cubic(3), ["H", "Al"], pair).as_dict()
    heavy["sites"][0]["species"][0]["element"] = "D"
    structures = {
        "good-1": salt.as_dict(),
        "disordered": Structure(Lattice.cubic(3), [{"Fe": 0.5, "Ni": 0.5}, "Al"], pair).as_dict(),
        "overlapping": Structure(Lattice.cubic(3), ["Fe", "Al"], [[0, 0, 0], [0, 0, 0.99]]).as_dict(),
        "unknown": Structure(Lattice.cubic(3), ["Cm", "Al"], pair).as_dict(),
        "nan": bad_number,
        "isolated": Structure(Lattice.cubic(9), ["Ar"], [[0, 0, 0]]).as_dict(),
        "lost": Structure(Lattice.cubic(900), ["Ar"], [[0, 0, 0]]).as_dict(),
        "good-2": salt.as_dict(),
        "heavy": heavy,
    }
    table = {
        "index": list(structures),
        "columns": ["structure", "y"],
        "data": [[structure, 1.0] for structure in structures.values()],
    }
    file = tmp_path / "mixed.json.gz"
    file.write_bytes(gzip.compress(json.dumps(table).encode()))
    output = run_command(file, tmp_path / "cache")
    assert "mixed: 4 graphs, 5 rows rejected, 1 with a raised cutoff" in output
    assert "1 row was read with notes" in output
    assert "  1 x deuterium and tritium are read as hydrogen" in output
    reasons = dict(re.findall(r"^  (\w+): (.*)$", output, flags=re.MULTILINE))
    expected = {
        "disordered": "disordered structure: site 0",
        "overlapping": "overlapping atoms: sites 0 .* 0.030 Angstrom",
        "unknown": "site 0: unknown element Cm",
        "nan": "not a pymatgen Structure|not finite",
        "lost": "site 0 has no neighbour within 50 Angstrom",
    }
    assert reasons.keys() == expected.keys()
    for row, reason in expected.items():
        assert re.search(reason, reasons[row]), (row, reasons[row])

    before = states(next((tmp_path / "cache" / "graphs").iterdir()))
    assert run_command(file, tmp_path / "cache").endswith(output[output.index("mixed:") :])
    assert states(next((tmp_path / "cache" / "graphs").iterdir())) == before


def test_a_task_that_is_not_there_is_one_line_and_no_cache(tmp_path):
    output = run_command(tmp_path / "nowhere.json", tmp_path / "cache", expected_code=1)
    assert output.startswith("TaskError:")
    assert "Traceback" not in output
    assert not (tmp_path / "cache" / "graphs").exists()


@pytest.fixture(scope="module")
def built(real_rows, ray_session, tmp_path_factory) -> tuple[Rows, Path, Graphs]:
    """A cache of the 995 real rows in ten shards: its rows, its folder, its graphs."""
    caches = tmp_path_factory.mktemp("caches")
    stored, key = graphs_of(real_rows, (6, 3), str(caches), rows_per_shard=100)
    return real_rows, caches / key, stored.graphs


def same(one: Graphs, other: Graphs) -> bool:
    return all(np.array_equal(value, vars(other)[name]) for name, value in vars(one).items())


def test_formulas_have_no_graphs_and_one_line_says_so(tmp_path):
    (tmp_path / "formulas.csv").write_text("composition,y\n" + "".join(f"Fe{n}O,{n}\n" for n in range(1, 9)))
    said = run_command(tmp_path / "formulas.csv", tmp_path / "cache", expected_code=1)
    assert "\nTaskError: rows of formulas alone have no structures" in said
    assert "Traceback" not in said


def test_every_real_row_becomes_its_own_graph(built):
    rows, folder, graphs = built
    assert len(states(folder)) == 10
    for k, crystal in enumerate(rows.chunk(0, len(rows)).crystals()):
        check_crystal(crystal)
        span = slice(graphs.atom_start[k], graphs.atom_start[k + 1])
        np.testing.assert_array_equal(graphs.numbers[span], crystal.numbers)
        np.testing.assert_array_equal(graphs.lattices[k], crystal.lattice.astype(np.float32))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "two of them"])
def test_a_damaged_shard_is_rebuilt_and_no_other(built, damage):
    rows, folder, graphs = built
    names = shards_present(*open_folder(folder))
    victims = [folder / names[4], folder / names[9]][: 2 if damage == "two of them" else 1]
    before, whole = states(folder), contents(folder)
    for victim in victims:
        content = victim.read_bytes()
        if damage == "missing":
            victim.unlink()
        elif damage == "truncated":
            victim.write_bytes(content[:-100])
        else:
            victim.write_bytes(content[:500] + bytes([content[500] ^ 4]) + content[501:])
    stored, _ = graphs_of(rows, (6, 3), str(folder.parent), rows_per_shard=100)
    assert same(stored.graphs, graphs)
    assert contents(folder) == whole
    changed = {name for name, state in states(folder).items() if state != before[name]}
    assert changed == {victim.name for victim in victims}


def test_what_another_build_renames_while_leftovers_are_deleted_is_not_missed(real_rows, tmp_path):
    rows = real_rows.select([0, 1], "two rows")
    folder = tmp_path / cache_spec(rows, (6, 3)).key
    Converter(str(folder), 6.0).write(0, rows.chunk(0, 2))  # so that only the manifest is left to do
    leftovers = [folder / f".part-{number:04d}" for number in range(3000)]
    for leftover in leftovers:
        leftover.touch()

    def rename():  # of the other build, when this one has listed what is there
        wait_until(lambda: not leftovers[0].exists(), "the first deletion")
        leftovers[-1].rename(folder / "renamed")

    other = Thread(target=rename)
    other.start()
    graphs_of(rows, (6, 3), str(tmp_path))
    other.join()
    assert (folder / MANIFEST).exists()
    assert not list(folder.glob(".part-*"))
    assert (folder / "renamed").exists()


def test_a_foreign_manifest_is_replaced(built):
    rows, folder, graphs = built
    before, whole = states(folder), contents(folder)
    manifest = json.loads(whole[MANIFEST])
    (folder / MANIFEST).write_text(json.dumps(manifest | {"data_sha256": "f" * 64}))
    stored, _ = graphs_of(rows, (6, 3), str(folder.parent), rows_per_shard=100)
    assert same(stored.graphs, graphs)
    assert contents(folder) == whole
    assert states(folder) == before


def test_a_complete_cache_is_read_and_not_touched(built):
    rows, folder, graphs = built
    before = states(folder)
    stored, key = graphs_of(rows, (6.0, 3.0), str(folder.parent) + "/", rows_per_shard=100)
    assert (key, states(folder)) == (folder.name, before)
    assert same(stored.graphs, graphs)


def test_other_rows_or_cutoffs_get_a_cache_of_their_own(built):
    rows, folder, _ = built
    few = rows.select([5, 3, 4], "another hash")
    stored, key = graphs_of(few, (6, 3), str(folder.parent))
    assert stored.ids == [rows.ids[k] for k in (5, 3, 4)]
    _, other_key = graphs_of(few, (5, 3), str(folder.parent))
    assert len({key, other_key, folder.name}) == 3


def test_a_relative_folder_is_the_callers(built, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, key = graphs_of(built[0].select([0, 1], "two rows"), (6, 3), "here")
    assert (tmp_path / "here" / key / MANIFEST).exists()


@pytest.mark.whole
def test_a_killed_actor_is_replaced_and_nothing_is_lost(built, tmp_path):
    rows, _, _ = built
    positions = list(range(len(rows))) * 4
    outcome: dict[str, object] = {}

    def build(where: str) -> None:
        outcome[where] = graphs_of(
            rows.select(positions, "four times"), (6, 3), str(tmp_path / where), rows_per_shard=20
        )

    builder = Thread(target=build, args=["killed"])
    builder.start()
    wait_until(lambda: len(list(tmp_path.glob("killed/*/shard-*"))) >= 3, "three shards")
    actors = [pid for pid, title in descendants(os.getpid()).items() if title.startswith("ray::Converter")]
    assert actors
    os.kill(actors[0], signal.SIGKILL)
    assert not list(tmp_path.glob(f"killed/*/{MANIFEST}"))  # it was in the middle
    builder.join(timeout=200)
    build("whole")
    (stored, key), (expected, _) = outcome["killed"], outcome["whole"]
    assert same(stored.graphs, expected.graphs)
    assert contents(tmp_path / "killed" / key) == contents(tmp_path / "whole" / key)


@pytest.mark.parametrize("command", [build_cache, run_sweep, run_queue], ids=lambda module: module.__name__)
@pytest.mark.parametrize("option", ["--downloads", "MATSWEEP_CACHE"])
def test_an_address_for_downloads_is_refused(tmp_path, monkeypatch, command, option):
    """As a path it would be a folder `gs:` here."""
    monkeypatch.chdir(tmp_path)
    given, environment = (
        ([f"{option}=gs://bucket/d"], {}) if option.startswith("-") else ([], {option: "gs://bucket/d"})
    )
    done = CliRunner().invoke(command.app, ["--task=demo", *given], env=environment)
    assert done.exit_code == 1, done.output
    assert f"StorageError: {option} gs://bucket/d: data sets are downloaded to a disk of this machine" in done.output
    assert not list(tmp_path.iterdir())


def test_downloads_go_to_the_folder_that_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("MATSWEEP_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", "/home/me")
    assert places.downloads_folder(None) == tmp_path / "downloads"
    assert places.downloads_folder("~/data") == Path("/home/me/data")
    assert places.downloads_folder("data") == Path("data")
