"""Lets Python look for modules in what is installed and in the project, and in no folder of the user's.

A project of the user's may well have a `models/`, a `queue.py` or a `yaml.py`. Python looks into the folders of
`PYTHONPATH` before its own library, and Ray's workers look into the driver's working directory first of all.
"""

import io
import os
import sys

ROOT = os.path.abspath(__file__).rsplit("/", 3)[0]  # noqa: PTH100 - pathlib may be the user's yet
_PACKAGES = ("data", "models", "tune")
_GIVEN = "MATSWEEP_PYTHONPATH"  # to processes that are started from here: what `PYTHONPATH` was


def own_first() -> None:
    """Put `sys.path` in order: what every command does first, with the project's folder at its head.

    A command's own folder is taken out, whose modules are imported by their package alone. And Python is put in order,
    where the environment has it read names not as UTF-8, or run without the docstrings that Ray cannot do without; and
    matplotlib, which would make folders in the home even for a command that draws nothing. Who makes files that he
    cannot use ends here: Matplotlib and Ray would say that with tracebacks.
    """
    _have_all_letters()
    mask = os.umask(0o022)
    os.umask(mask)
    if mask & 0o700 and os.geteuid():  # root may use any file
        sys.exit(f"umask {mask:03o} has you make files that you cannot use. Give `umask 022` before")
    if sys.flags.optimize > 1:
        sys.exit("Ray does not run without docstrings: unset PYTHONOPTIMIZE, or leave out -OO")
    python_folders = sys.path[1:] if sys.flags.safe_path else sys.path[2:]
    user_folders = _given()
    sys.path[:] = _in_order([folder for folder in python_folders if folder not in user_folders], user_folders)
    _keep_fonts_in_the_cache()


def users_last() -> None:
    """Let a file of the user's own, which is about to be imported, find modules in the folders of `PYTHONPATH`."""
    sys.path.extend(folder for folder in _given() if folder not in sys.path)


def environment_of_workers() -> dict[str, str]:
    """Variables with which a new process looks for modules in that order, wherever this one does."""
    import subprocess  # only now is it Python's own

    program = "import sys; print('\\n'.join(sys.path))"
    run = subprocess.run([sys.executable, "-E", "-P", "-c", program], capture_output=True, text=True, check=True)
    user_folders = _given()
    return {
        "PYTHONPATH": os.pathsep.join(_in_order(run.stdout.splitlines(), user_folders)),
        _GIVEN: os.pathsep.join(user_folders),
    }


def _have_all_letters() -> None:
    """Begin anew where names of files would not be read as UTF-8; letters that the output lacks are written as codes.

    `PYTHONUTF8=0` asks for that in the locale C, and others, such as de_DE.ISO-8859-1, without it.
    """
    if not sys.flags.utf8_mode and sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"  # of the processes that are started from here
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _keep_fonts_in_the_cache() -> None:
    """Have matplotlib, unless the user has named a folder, keep its list of fonts beside our downloads."""
    from data.stores.faults import StorageError
    from data.stores.places import default_cache  # only now is what it imports Python's own

    try:
        os.environ["MPLCONFIGDIR"] = os.environ.get("MPLCONFIGDIR") or str(default_cache() / "matplotlib")
    except StorageError:  # no home, or an address: who needs the cache for more than this says so
        return


def _given() -> list[str]:
    """Folders of `PYTHONPATH`. Of an empty one, which is the working directory, nobody has thought."""
    text = os.environ.get(_GIVEN, os.environ.get("PYTHONPATH", ""))
    return [os.path.abspath(folder) for folder in text.split(os.pathsep) if folder]  # noqa: PTH100


def _in_order(python: list[str], user_folders: list[str]) -> list[str]:
    """Python's own folders, the project's, and those of `PYTHONPATH` that packages are installed in.

    The project's comes as late as may be, for there may be other things in it: only before namesakes of ours.
    """
    folders = [*python, *(folder for folder in user_folders if _has_packages(folder))]
    namesakes = (
        position
        for position, folder in enumerate(folders)
        for name in _PACKAGES
        if os.path.exists(os.path.join(folder, name)) or os.path.exists(os.path.join(folder, f"{name}.py"))  # noqa: PTH110, PTH118
    )
    position = next(namesakes, len(folders))
    return [*folders[:position], ROOT, *folders[position:]]


def _has_packages(folder: str) -> bool:
    """Says whether pip has installed something in a folder, as where a cluster's module system keeps libraries."""
    try:
        return any(name.endswith(".dist-info") for name in os.listdir(folder))  # noqa: PTH208
    except OSError:
        return False
