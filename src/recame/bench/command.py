"""`recame bench`: read a plan, run it, and write its tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from recame.bench.costs.measure import measure_all
from recame.bench.plan.plan import Bench, Job, Plan, load_plan, plan_methods, read_costs
from recame.bench.plan.sources import find_sources
from recame.bench.plan.tuned import TUNED_FILE, found_by_search, write_tuned
from recame.bench.queue.cluster import run_on_cluster
from recame.bench.queue.job import check_code, is_trained, job_config
from recame.bench.queue.local import JOB_LIMIT_S, run_queue, threads_each, visible_devices
from recame.bench.tables.behaviour import behaviour
from recame.bench.tables.bench_page import write_page
from recame.bench.tables.contest import Contest
from recame.bench.tables.results import METHOD_COLUMN, collect, read_elsewhere
from recame.bench.tables.table import around_markers, headline, update_markdown, write_tables
from recame.errors import ConfigError, DataError
from recame.files import hold, holder, write_text
from recame.names import command
from recame.progress import progress_bars, say

#: Seconds between two looks at whether another process still measures the costs.
_WAIT_S = 60.0


@dataclass(frozen=True)
class Request:
    """The arguments of `recame bench`.

    Attributes:
        plan: the plan's file.
        out: the bench's folder.
        data: data set -> path.
        methods: run only these; empty: all of the plan.
        seeds: run only these; empty: all of the plan.
        workers: number of runs at the same time.
        threads: of each run; None: the cores divided by the workers.
        job_limit_s: seconds after which a run is stopped.
        devices: GPUs that the workers share.
        ray: address of a Ray cluster; None: this machine.
        costs: whether to measure the costs of the methods. True: again; None: only missing ones;
            False: not.
        table: only write the tables of the finished runs.
        markdown: a file that shows the headline table between markers.
        elsewhere: folders or `results.csv` of runs of the same plan made elsewhere; they count as
            done and are part of the tables.
    """

    plan: Path
    out: Path
    data: dict[str, Path] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    workers: int = 1
    threads: int | None = None
    job_limit_s: float = JOB_LIMIT_S
    devices: tuple[int, ...] = ()
    ray: str | None = None
    costs: bool | None = None
    table: bool = False
    markdown: Path | None = None
    elsewhere: tuple[Path, ...] = ()


def run_bench(request: Request, console: Console | None = None) -> bool:
    """Run the missing runs of a plan, then write its tables.

    Args:
        request: the arguments.
        console: where progress goes; silent if None.

    Returns:
        Whether every requested run has its result.

    Raises:
        RecameError: the plan, a method or a data set cannot be used; nothing has run then.
    """
    console = console or Console(quiet=True)
    bench = open_bench(request, console)
    # Refuse now, and not after costs are measured or all has run.
    if request.ray is None:
        visible_devices(request.devices)
    if request.markdown is not None:
        around_markers(request.markdown, bench.plan.name)
    if not request.table:
        _measure_costs(bench, request, console)
        _run(bench, request, console)
        if not request.elsewhere and not any(bench.path.glob("runs/**/result.json")):
            say(console, "No run has finished, so there is no table yet.")
            return False
    for path in write_results(bench, request):
        say(console, f"Written: {path}")
    return all(bench.result_path(job).exists() for job in jobs_to_run(bench, request))


def open_bench(request: Request, console: Console) -> Bench:
    """Read the plan, find its data and check every method's settings on every set.

    Raises:
        RecameError: as `run_bench`.
    """
    plan, folder = load_plan(request.plan), request.plan.parent
    methods = plan_methods(plan, folder)
    out = request.out.resolve()
    bench = Bench(out, plan, methods, {})
    for data in plan.data:
        for method in plan.methods_on(data, methods):
            bench.config(data, method)
    jobs_to_run(bench, request)
    if plan.equal == "time":
        _check_equal_time(bench, request)
    for path in request.elsewhere:
        _check_same_protocol(bench, path)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The bench's folder {out} cannot be created ({error.strerror}): choose another --out."
        ) from error
    _keep_plan(plan, request.plan, out)
    if plan.equal == "time" and request.elsewhere:
        _take_over_costs(bench, request)
    if request.table:  # only finished runs: no data are needed
        _check_same_methods(bench)
        return bench
    bench = replace(bench, sources=find_sources(plan, request.data, folder, out, console))
    for job in bench.jobs():
        if bench.result_path(job).exists():  # a changed plan must not be mixed with its old results
            is_trained(bench.run_dir(job), job_config(bench, job))
            check_code(bench, job)
    return bench


def _check_equal_time(bench: Bench, request: Request) -> None:
    plan = bench.plan
    for data in plan.data:
        if not bench.config(data, str(plan.pace)).finetune.enabled:
            raise ConfigError(
                f"Plan {plan.name}: pace={plan.pace!r} does not fine-tune on {data}, so it has "
                "no epochs that set a time for the others: name another method."
            )
    if request.costs is False:
        raise ConfigError(
            f"Plan {plan.name} needs the methods' costs to give all equal time: leave out "
            "--no-costs."
        )


def _keep_plan(plan: Plan, file: Path, out: Path) -> None:
    """Copy the plan beside its results; refuse a folder with results of another plan."""
    kept = out / "plan.yaml"
    if kept.exists() and (title := load_plan(kept).title) != plan.title:
        raise ConfigError(
            f"{out} holds the results of another plan, {title!r}: choose another "
            "--out, so that the two are not mixed."
        )
    write_text(kept, file.read_text(encoding="utf-8"))


def _check_same_protocol(bench: Bench, elsewhere: Path) -> None:
    """Refuse runs made elsewhere under another protocol, by the plan that lies beside them."""
    plan, file = bench.plan, _beside(elsewhere, "plan.yaml")
    if not file.exists():
        raise ConfigError(
            f"No plan.yaml beside {elsewhere}: it is unknown how its runs were made, so they "
            "cannot stand in one table with others. Keep plan.yaml with results.csv, as recame "
            "bench wrote both."
        )
    other = load_plan(file)
    # The path and the title of a data set change none of its runs.
    decisive = {"builder", "options", "data_seed", "splits", "settings"}
    ours, theirs = ({m.name or m.method: m for m in p.methods} for p in (plan, other))
    # Entries that only one of the two plans has change no run of the other.
    differing = [
        *(n for n in ("settings", "equal", "pace") if getattr(plan, n) != getattr(other, n)),
        *(
            f"data {name}"
            for name in sorted(plan.data.keys() & other.data.keys())
            if plan.data[name].model_dump(include=decisive)
            != other.data[name].model_dump(include=decisive)
        ),
        *(
            f"method {name}"
            for name in sorted(ours.keys() & theirs.keys())
            if ours[name].method != theirs[name].method
            or ours[name].settings != theirs[name].settings
        ),
    ]
    # A plan only names a method's file; the file's content is recorded with its runs.
    rows = read_elsewhere([elsewhere]).dropna(subset=METHOD_COLUMN)
    recorded = set(zip(rows["method"], rows[METHOD_COLUMN], strict=True))
    differing += [
        f"the content of method {name}"
        for name in dict.fromkeys(
            name
            for name, then in sorted(recorded)
            if name in bench.methods and then != bench.methods[name].sha256
        )
        if f"method {name}" not in differing
    ]
    if differing:
        raise ConfigError(
            f"{file} differs from {plan.name} in {', '.join(differing)}: the runs of {elsewhere} "
            "were made under another protocol and cannot stand in one table with this plan's."
        )


def _check_same_methods(bench: Bench) -> None:
    """Refuse to show finished runs of a method whose code has changed since."""
    for file in sorted(bench.path.glob("runs/*/*/seed*/result.json")):
        data, method, seed = file.parent.relative_to(bench.path / "runs").parts
        if method in bench.methods:
            check_code(bench, Job(data, method, int(seed.removeprefix("seed"))))


def _beside(elsewhere: Path, name: str) -> Path:
    """Path of a file in the bench that `--with` names by its folder or its `results.csv`."""
    return (elsewhere.parent if elsewhere.is_file() else elsewhere) / name


def _take_over_costs(bench: Bench, request: Request) -> None:
    """For equal time, take the costs from the runs made elsewhere: images per method stay equal.

    Raises:
        ConfigError: the costs of those runs are missing, or differ from each other.
    """
    if request.costs:
        raise ConfigError(
            f"Plan {bench.plan.name} gives equal time by the costs that were measured for the runs "
            "of --with. With costs measured again, those still missing would get other shares: "
            "leave out --costs, or --with."
        )
    own = [bench.costs_path] if bench.costs_path.exists() else []
    files = [*own, *(_beside(path, bench.costs_path.name) for path in request.elsewhere)]
    for file in files:
        if not file.exists():
            raise ConfigError(
                f"No costs.json beside {file.parent}: it is unknown how much time its runs got, "
                "and those still missing would get other shares. Keep costs.json with results.csv, "
                "as recame bench wrote both."
            )
    rows = [read_costs(file)["rows"] for file in files]
    # This bench's costs may have further methods that the others lack.
    if any(rows[0].get(key) != row for other in rows[1:] for key, row in other.items()):
        raise ConfigError(
            f"{' and '.join(map(str, files))} hold different costs, so equal time meant different "
            "things for their runs, and these cannot stand in one table: choose an empty --out, "
            "and give only runs of one costs.json."
        )
    if not own:
        write_text(bench.costs_path, files[0].read_text(encoding="utf-8"))


def jobs_to_run(bench: Bench, request: Request) -> list[Job]:
    """The requested jobs that were not run elsewhere."""
    if unknown := set(request.methods) - set(bench.methods):
        raise ConfigError(
            f"--method names {', '.join(sorted(unknown))}; the plan has {', '.join(bench.methods)}."
        )
    if missing := set(request.seeds) - set(bench.plan.seeds):
        listed = ", ".join(map(str, bench.plan.seeds))
        raise ConfigError(f"--seed names {sorted(missing)}; the plan has {listed}.")
    made: set[tuple[object, ...]] = set()
    if request.elsewhere:
        rows = read_elsewhere(request.elsewhere)
        made = set(zip(rows["data"], rows["method"], rows["seed"], strict=True))
    return [
        job
        for job in bench.jobs()
        if job.method in (request.methods or bench.methods)
        and job.seed in (request.seeds or bench.plan.seeds)
        and (job.data, job.method, job.seed) not in made
    ]


def _measure_costs(bench: Bench, request: Request, console: Console) -> None:
    """Measure missing costs, before anything else keeps the machine busy."""
    if request.costs is False or (request.costs is None and bench.plan.search is not None):
        return  # a search's trials cost what their methods cost
    shares_out = bench.plan.equal == "time"
    if request.costs and shares_out and any(bench.path.glob("runs/*/*/*")):
        raise ConfigError(
            f"Runs in {bench.path} got equal time by measured costs. With costs measured again, "
            "those still missing would get other shares: leave out --costs, or choose an empty "
            "--out."
        )
    # Use as many threads as a run will have.
    threads = request.threads or (1 if request.ray else threads_each(request.workers))
    with _measuring(bench, console), progress_bars(console) as report:
        rows = {} if request.costs else bench.costs().get("rows", {})
        pairs = ((d, m) for d in bench.data for m in bench.plan.methods_on(d, bench.methods))
        if any(f"{data}/{method}" not in rows for data, method in pairs):
            # Costs that equal time is based on stay; else all are measured side by side.
            measure_all(bench, report, threads=threads, kept=rows if shares_out else {})


@contextmanager
def _measuring(bench: Bench, console: Console) -> Iterator[None]:
    """Let only one process measure costs in a folder; the lock of a dead process is free."""
    path = bench.path / ".costs.lock"
    lock = hold(path)
    if lock is None:
        say(console, f"The methods' costs are measured by {holder(path)}: waiting for it.")
    while lock is None:
        lock = hold(path, wait_s=_WAIT_S)
    with lock:
        yield


def _run(bench: Bench, request: Request, console: Console) -> None:
    jobs = jobs_to_run(bench, request)
    if request.ray is not None:
        run_on_cluster(
            bench,
            jobs,
            request.ray,
            cpus_per_job=request.threads or 1,
            gpus_per_job=1 / request.workers if request.devices else 0,
            job_limit_s=request.job_limit_s,
            console=console,
        )
    else:
        run_queue(
            bench,
            jobs,
            workers=request.workers,
            threads=request.threads,
            job_limit_s=request.job_limit_s,
            devices=request.devices,
            console=console,
        )


def write_results(bench: Bench, request: Request) -> list[Path]:
    """Write the tables of all finished runs, made here or elsewhere, and the headline if asked.

    Raises:
        DataError: nothing is finished, or the Markdown file has no markers.
    """
    elsewhere = read_elsewhere(request.elsewhere) if request.elsewhere else None
    costs = bench.costs()
    file, plan = request.plan, bench.plan
    needed = [name for name, entry in plan.data.items() if entry.needs_path and not entry.of]
    given = [word for name in needed for word in ("--data", f"{name}=PATH")]
    again = command("recame", "bench", Path(file.name) if file.is_absolute() else file, *given)
    contest = Contest(collect(bench.path, elsewhere), bench.methods, plan, costs, again)
    if contest.shown.empty:
        raise DataError(
            f"{bench.path} holds no finished run of this plan yet: there is no table to write."
        )
    if plan.search is None:
        beside = [_beside(path, "") for path in request.elsewhere]
        contest = replace(contest, behaviour=behaviour(bench.path, contest.shown, beside))
    written = [*write_tables(bench.path, contest), write_page(bench.path, contest)]
    if plan.search is not None:
        written.append(_write_chosen(bench, file.parent, contest.shown))
    if request.markdown is not None:
        update_markdown(request.markdown, plan.name, headline(contest))
        written.append(request.markdown)
    return written


def _write_chosen(bench: Bench, folder: Path, frame: pd.DataFrame) -> Path:
    """Write the choices of a search, for the methods whose trials are all finished."""
    plan = bench.plan
    assert plan.search is not None
    untried = plan_methods(plan.model_copy(update={"search": None, "reference": None}), folder)
    data = [name for name in plan.data if name in set(frame["data"])]
    path = bench.path / TUNED_FILE
    words = (frame, untried, data, plan.seeds, plan.settings)
    write_tuned(path, found_by_search(plan.name, plan.search, *words))
    return path
