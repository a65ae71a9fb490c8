"""A finished sweep as a submission to Matbench's leaderboard. Called by `tune/submit.py`."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import typer
import yaml

from models.registry import open_facts
from tune.analysis.matbench_record import (
    IncompleteError,
    file_content,
    make_record,
    refuse_incomplete,
    refuse_other_labels,
)
from tune.arguments import NOBODY
from tune.errors import RunError
from tune.records.folder import Folder
from tune.runs import Member, SweepRun, contribution, load_sweep

MISSING = "missing_ids.csv"
_RUN = '''"""Repeats this submission: {title}.

In a checkout of matsweep at commit {commit},
set up with `make setup`, with this folder's path as FOLDER:

    .venv/bin/python FOLDER/run.py
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMANDS = {commands}

for command in COMMANDS:
    arguments = [str(HERE / one) if (HERE / one).is_file() else one for one in command]
    subprocess.run([sys.executable, *arguments], check=True)
'''


def fold_params(run: SweepRun, member: Member) -> dict[int, dict[str, Any]]:
    """What each fold was trained with: configuration, seeds, code and data."""
    results = run.results
    seeds = [entry["seed"] for entry in results["seeds"]]
    if member.name.startswith("seed_"):
        seeds = [int(member.name.removeprefix("seed_"))]
    common: dict[str, Any] = {
        "sweep": run.name,
        "member": member.name,
        "git_commit": results["record"]["git_commit"],
        "data_sha256": run.data_sha256,
    }
    common |= {"model": results["model"]["name"]} if "model" in results else {}
    if member.name == "reference":
        return {fold: {**common, "trained": "nothing"} for fold in run.folds}
    common |= {"seeds": seeds} if seeds else {}
    common |= {"members": [entry["member"] for entry in results["members"]]} if "members" in results else {}
    return {fold: {**common, "config": run.configs[fold]} for fold in run.folds}


def notes_of(run: SweepRun, member: Member, scores: dict[str, Any]) -> str:
    """What a reader of the leaderboard must know, in sentences."""
    results = run.results
    flags = results["flags"]
    code = results["record"]["git_commit"]
    sentences = [
        f"Made by matsweep, sweep {run.name} ({member.name}), code {code}, data {run.data_sha256}.",
        f"Protocol: {results['protocol']}",
        *results["notes"],
    ]
    if flags:
        sentences.append(f"Flags: {', '.join(flags)}.")
    if "std" in member.test and run.metric.name == "mae":
        n = len(results["seeds"]) or len(results.get("members", []))
        of = f"over the {n} members of the ensemble" if member.name == "ensemble" else "as the model itself gives it"
        sentences.append(f"The uncertainty of a prediction is its standard deviation {of}.")
    if run.metric.name == "rocauc":
        sentences.append(
            f"ROC-AUC of the recorded probabilities: {scores['own']:.4f}. That in the record, {scores['rocauc']:.4f}, "
            "is of labels: matbench 0.6 rounds probabilities before it scores them (its issues 137 and 181)."
        )
    return " ".join(sentences)


def info(
    run: SweepRun, authors: str, algorithm: str, algorithm_long: str | None, bibtex: str | None, notes: str
) -> dict[str, Any]:
    """Matbench's info.json."""
    record, name = run.results["record"], run.results.get("model", {}).get("name", "average")
    facts = open_facts(run.family)
    described = f"{name}, {run.results['protocol'].split(';')[0].rstrip('.')}, run by matsweep"
    references = [] if facts is None else facts.references(name, run.results["notes"])
    references += [bibtex.strip()] if bibtex else []
    return {
        "authors": authors,
        "algorithm": algorithm,
        "algorithm_long": algorithm_long or described,
        "bibtex_refs": references,
        "notes": notes,
        "requirements": {"python": [f"{library}=={version}" for library, version in record["versions"].items()]},
    }


def repeat(run: SweepRun) -> tuple[list[list[str]], dict[str, str]]:
    """Commands that repeat a run, and the files they need.

    Raises:
        RunError: the user's own model is not what it was.
    """
    if "members" in run.results:
        return _repeat_average(run)
    results, options, model = run.results, run.results["options"], run.results.get("model", {})
    name = _slug(results["sweep"])
    files = {model["name"]: _unchanged_model(run)} if "file" in model else {}
    first, *added = options.get("batches") or [options]  # of a sweep that was extended, what it began with is first
    file = f"{name}.yaml"
    files[file] = _space_file(first["space"], model)
    command = ["tune/run_sweep.py", "--name", name, "--space", file, "--task", run.task["official"]]
    command += ["--folds", ",".join(map(str, options["folds"]))]
    command += ["--search-folds", ",".join(map(str, options["search_folds"]))]
    command += ["--num-samples", str(first["num_samples"])]
    command += ["--seed", str(options["seed"]), "--seeds", str(options["seeds"])]
    command += ["--tta", str(options["tta"])] if options.get("tta", "none") != "none" else []
    command += ["--every-atom"] if options.get("every_atom") else []
    extensions = []
    for number, batch in enumerate(added, start=1):
        extension = ["tune/run_sweep.py", "--extend", name]
        if batch["num_samples"]:
            wider = f"{name}-{number}.yaml"
            files[wider] = _space_file(batch["space"], model)
            extension += ["--num-samples", str(batch["num_samples"]), "--space", wider]
        else:
            extension += ["--only-failed"]
        extensions.append(extension)
    return [command, *extensions], files


def _repeat_average(run: SweepRun) -> tuple[list[list[str]], dict[str, str]]:
    """What `repeat` gives of an average: all that its members need, and the command that averages them."""
    members, commands, files = run.results["members"], list[list[str]](), dict[str, str]()
    for address in dict.fromkeys(entry["address"] for entry in members):
        try:
            averaged = load_sweep(address)
        except RunError:  # the average is there without what it averaged
            continue
        of_member, needed = repeat(averaged)
        commands += [command for command in of_member if command not in commands]
        files |= needed
    names = [entry["member"].rpartition("/") for entry in members]
    labels = [f"{_slug(sweep)}/{member}" for sweep, _, member in names]
    name, weights = _slug(run.results["sweep"]), run.results["options"]["weights"]
    return [*commands, ["tune/ensemble.py", *labels, "--name", name, "--weights", weights]], files


def _unchanged_model(run: SweepRun) -> str:
    """The code of a model of the user's own; RunError where it is not what it was."""
    model = run.results["model"]
    code = Path(model["file"]).read_bytes() if Path(model["file"]).is_file() else b""
    if hashlib.sha256(code).hexdigest() != model["sha256"]:
        raise RunError(
            f"{model['file']}, the model of {run.results['sweep']}, is gone or was changed since: put it back as it "
            "was, for run.py repeats the sweep with it"
        )
    return code.decode()


def _space_file(space: dict[str, Any], model: dict[str, str]) -> str:
    """A search space as YAML; a model of the user's own is the file beside it."""
    fields = {field: value for field, value in space.items() if field != "name"}
    fields |= {"model": model["name"]} if "file" in model else {}
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def submission(
    run: SweepRun, authors: str, algorithm: str, algorithm_long: str | None = None, bibtex: str | None = None
) -> tuple[dict[str, bytes], Any]:
    """The files of a submission by name, and Matbench's own scores of it.

    Raises:
        RunError: the run is not a complete official task with its official labels and folds, or its model changed.
    """
    member = contribution(run)
    refuse_incomplete(run, member)
    refuse_other_labels(run, member)
    about = {"sweep": run.name, "data_sha256": run.data_sha256, "flags": ", ".join(run.results["flags"])}
    benchmark = make_record(run, member, fold_params(run, member), about)
    scores = benchmark.tasks_map[run.task["official"]].scores
    own = {metric: float(scores[metric]["mean"]) for metric in scores}
    if run.metric.name == "rocauc":
        tables = [table for _, table in member.test.groupby("fold")]
        by_fold = [run.metric.value(table["y_true"].to_numpy(), table["y_pred"].to_numpy()) for table in tables]
        own["own"] = sum(by_fold) / len(by_fold)
    content_of_info = info(run, authors, algorithm, algorithm_long, bibtex, notes_of(run, member, own))
    commands, files = repeat(run)
    listing = "[\n" + "".join(f"    {command!r},\n" for command in commands) + "]"
    script = _RUN.format(title=_slug(algorithm), commit=run.results["record"]["git_commit"], commands=listing)
    content = {name: text.encode() for name, text in files.items()}
    content |= {
        "run.py": script.encode(),
        "info.json": json.dumps(content_of_info, indent=2, ensure_ascii=False).encode(),
    }
    content["results.json.gz"] = file_content(benchmark)
    return content, scores


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name).strip("_")


def write_submission(
    sweep: str,
    authors: str,
    algorithm: str | None,
    algorithm_long: str | None,
    bibtex: Path | None,
    out: str | None,
    storage: str,
) -> None:
    """Write the files of a submission, and say what they hold; the arguments are those of the command."""
    run = load_sweep(sweep, storage)
    algorithm = run.name if algorithm is None else algorithm
    for option, text in (("--authors", authors), ("--algorithm", algorithm)):
        if not _slug(text):
            raise RunError(f"{option} is {text!r}: Matbench wants a name")
    references = None if bibtex is None else bibtex.read_text(encoding="utf-8")
    try:
        files, scores = submission(run, authors, algorithm, algorithm_long, references)
    except IncompleteError as problem:
        Folder(run.address).write_csv(MISSING, problem.missing)
        raise RunError(f"{problem}\nAll {len(problem.missing):,} missing ids: {run.address}/{MISSING}") from None
    address = out or f"{storage}/matbench_v0.1_{_slug(algorithm)}"
    folder = Folder(address)
    for name, content in files.items():
        folder.write(name, content)
    for metric, of_folds in scores.items():
        typer.echo(f"{metric:>17}  {of_folds['mean']:.4f} +- {of_folds['std']:.4f} over folds")
    notes = json.loads(files["info.json"])["notes"]
    typer.echo(f"\n{notes}\n\nMatbench's own from_file finds it valid (matbench 0.6 reads it unpacked, `gunzip -k`).")
    if authors == NOBODY:
        typer.echo("Before you hand it in: info.json names no authors, give --authors.")
    typer.echo(f"Written to {address}: {', '.join(sorted(files))}")
