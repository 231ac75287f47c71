"""The whole run: which models are unchanged, the others through the pool, the lock file, the reports, the exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from convrewrite import timing
from convrewrite.acceptance.decisions import ANY
from convrewrite.acceptance.decisions import SCHEMA as TIMINGS
from convrewrite.batch import baseline, changes, paths, repository, summary
from convrewrite.batch.jobs import Job, jobs, key
from convrewrite.batch.lock import Lock
from convrewrite.batch.pool import run_all
from convrewrite.batch.results import Batch, Result
from convrewrite.batch.settings import Settings
from convrewrite.batch.words import KEYS
from convrewrite.errors import CheckFailed, ConvrewriteError, Refused
from convrewrite.options import RunOptions
from convrewrite.running.installed import check_installation
from convrewrite.system import atomic
from convrewrite.text import PYTHON, Words, parameter, told

SEVERITY = (130, 70, 2, 1, 3)
"""Exit codes, the most severe first."""

REFUSED = Refused.exit_code

Tell = Callable[[str, int, int], None]

DEFAULT = RunOptions()


def run(
    settings: Settings,
    folder: Path,
    options: RunOptions = DEFAULT,
    *,
    config: Path | None = None,
    tell: Tell = lambda text, done, total: None,
    words: Words = PYTHON,
) -> Batch:
    """Optimize every model, and write the lock file and the reports.

    Args:
        settings: what the file says. folder: that its paths are relative to. options: of the command.
        config: the file of settings, which nothing may overwrite. tell: called as models end.
        words: how the caller calls the options of the command; the rest is in the words of the file.

    Raises:
        UsageError: what concerns all models: a glob without matches, a path that is written outside of the folder or
            over another file, a damaged lock file, a report that cannot be written. What concerns one is in its result.
    """
    every = jobs(settings, folder)
    paths.refuse(settings, folder, every, config, options=options)
    if options.reports is not None:
        settings = _with_page(settings)
    lock = Lock.read(folder / settings.lock)
    known = None if options.baseline is None else baseline.read(options.baseline, settings, folder, config)
    reports, notes = _reports(settings, folder, options)
    unseen = {job.name for job in every} & _ignored(every)

    def judge(name: str, facts: dict[str, Any]) -> dict[str, Any]:
        return facts if known is None else changes.judged(name, facts, known, allowed)

    allowed = settings.baseline.options()
    found: dict[str, Result] = {}
    keys: dict[str, str] = {}
    todo: list[Job] = []
    for job in every:
        try:
            keys[job.name] = key(job, settings)
            entry = None if options.force or options.check else lock.fresh(job, keys[job.name])
        except ConvrewriteError as error:
            found[job.name] = Result(job.name, job.target, _failed(error))
            continue
        if entry is None or (job.name in unseen and entry.result.fingerprint is None):
            todo.append(job)
        else:
            facts = {**entry.result.model_dump(exclude_unset=True), "note": summary.FROM_LOCK}
            found[job.name] = Result(job.name, job.target, judge(job.name, facts), cached=True)
    try:
        _work(todo, settings, options, lock, keys=keys, unseen=unseen, found=found, tell=tell, judge=judge)
    finally:
        if not options.check:
            lock.forget(folder)
            lock.save()  # what passed is kept, also where Ctrl-C ends the rest
    left = {name: os.path.relpath(result.target, folder) for name, result in found.items() if _left_behind(result)}
    if options.check:
        found |= {name: _not_current(found[name], path) for name, path in left.items()}
    else:
        notes += [
            f"{path} is from an earlier run, and '{name}' is refused now; delete it" for name, path in left.items()
        ]
    results = tuple(told(found[job.name], words) for job in every)
    facts = {job.name: found[job.name].facts for job in every}
    against = None if known is None else changes.against(known, facts, allowed)
    code = exit_code(results, settings.allow_refused)
    batch = Batch(results, code, reports, tuple(told(notes, words)), against=against)
    _write_reports(batch)
    return batch


def _with_page(settings: Settings) -> Settings:
    """The settings where a page is wanted: what it shows is collected by those who do the work."""
    if settings.reports.html is not None:
        return settings
    wanted = settings.reports.model_copy(update={"html": paths.NAMES["html"]})
    return settings.model_copy(update={"reports": wanted})


def _ignored(every: Sequence[Job]) -> set[str]:
    """The models whose outputs git ignores: a clone of the project has none of them."""
    outputs = repository.ignored([job.target for job in every])
    return {job.name for job in every if job.target in outputs}


def _left_behind(result: Result) -> bool:
    """Whether a model is refused, and its output there: then it is what an earlier model or other settings gave."""
    return result.exit_code == REFUSED and result.target.is_file()


def _not_current(result: Result, path: str) -> Result:
    """Under `check`, the result of a model whose output was left behind at a path."""
    message = (
        f"{parameter('check')}: its output is there, and nothing would be written: {result.facts['message']}; "
        f"delete {path}"
    )
    facts = {**result.facts, "status": "failed", "exit_code": CheckFailed.exit_code, "message": message}
    return replace(result, facts=facts)


def _work(
    todo: Sequence[Job],
    settings: Settings,
    options: RunOptions,
    lock: Lock,
    *,
    keys: dict[str, str],
    unseen: Collection[str],
    found: dict[str, Result],
    tell: Tell,
    judge: Callable[[str, dict[str, Any]], dict[str, Any]],
) -> None:
    if todo:
        check_installation()
    many = processes(settings, options.jobs, len(todo))
    with atomic.scratch() as scratch:
        files = [Path(scratch) / f"{number}.json" for number in range(len(todo))]
        tasks = [
            {**_task(job, settings, options, lock, timings=file), "ignored": job.name in unseen}
            for job, file in zip(todo, files, strict=True)
        ]

        def started(index: int) -> None:
            tell(todo[index].name, len(found), len(found) + len(todo))

        def judged(index: int, facts: dict[str, Any]) -> dict[str, Any]:
            return judge(todo[index].name, facts)

        done, threads = 0, max(1, timing.cores() // many)
        for index, facts in run_all(tasks, many, threads, started, limit=settings.timeout, judge=judged):
            job, done = todo[index], done + 1
            try:
                lock.learn(Path(tasks[index]["timings"]))
                if facts["exit_code"] == 0 and not options.check:
                    lock.keep(job, keys[job.name], facts)
            except ConvrewriteError as error:
                facts = {**facts, **_failed(error)}
            found[job.name] = Result(job.name, job.target, facts)
            tell(job.name, done, len(todo))


def processes(settings: Settings, asked: int | None, todo: int) -> int:
    """How many at a time: one per core; one in all where something is timed, unless that is asked for."""
    timed = settings.gates.min_speedup is not None or any(
        getattr(step, "accept", "") == "faster" for step in settings.steps
    )
    chosen = asked or settings.jobs or (1 if timed else timing.cores())
    return max(1, min(chosen, todo))


def _task(job: Job, settings: Settings, options: RunOptions, lock: Lock, *, timings: Path) -> dict[str, Any]:
    devices = dict(lock.timings)
    if options.check:  # what was timed on another machine decides here too: it is not checked who was right
        devices[ANY] = {key: decision for known in lock.timings.values() for key, decision in known.items()}
    timings.write_text(json.dumps({"schema": TIMINGS, "devices": devices}), encoding="utf-8")
    return {
        "source": str(job.source),
        "target": str(job.target),
        "data": None if job.data is None else str(job.data),
        "timings": str(timings),
        "check": options.check,
        "locked": lock.known(job),
        "settings": settings.model_dump(mode="json", by_alias=True),
    }


def _failed(error: ConvrewriteError) -> dict[str, Any]:
    return {"status": "error", "exit_code": error.exit_code, "message": told(error.text, KEYS)}


def exit_code(results: Sequence[Result], allow_refused: bool) -> int:
    """The most severe of all: broken before failed before refused."""
    codes = {result.exit_code for result in results} - ({3} if allow_refused else set())
    return next((code for code in SEVERITY if code in codes), 0)


REPORTS: dict[str, Callable[[Batch], str]] = {
    "reports.json": summary.to_json,
    "reports.junit": summary.to_junit,
    "reports.markdown": summary.to_markdown,
    "reports.html": summary.to_html,
    "markdown": summary.to_markdown,
}


def _reports(settings: Settings, folder: Path, options: RunOptions) -> tuple[dict[str, Path], list[str]]:
    """The reports that are written, and a line on those that are not: `check` changes no file that git tracks."""
    wanted = paths.reports(settings, folder, options)
    kept = repository.tracked(wanted.values()) if options.check else set()
    notes = [
        f"{os.path.relpath(path, folder)} is not written with {parameter('check')}, since git tracks it"
        for path in wanted.values()
        if path in kept
    ]
    written = {option: path for option, path in wanted.items() if path not in kept}
    written |= paths.elsewhere(options)
    for option, path in written.items():
        with atomic.write_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        atomic.check_target(path, option, ())
    return written, notes


def _write_reports(batch: Batch) -> None:
    for option, path in batch.reports.items():
        atomic.write_whole(path, [REPORTS[option](batch).encode()], path.suffix)
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if page:
        with atomic.write_errors(page), open(page, "a", encoding="utf-8") as file:
            file.write(summary.to_markdown(batch))
    outputs = os.environ.get("GITHUB_OUTPUT")
    if outputs:
        with (
            atomic.write_errors(outputs),
            open(outputs, "a", encoding="utf-8", errors="surrogateescape", newline="\n") as file,
        ):
            file.write(summary.to_outputs(batch))
