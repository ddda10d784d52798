"""Does learning the decisions while tuning beat taking them first? Every method through train.py's own loop.

    python benchmarks/compare.py --quick                          # on the built-in model, minutes
    python benchmarks/compare.py --quick --seeds 0 1 2 3 4        # the number to beat: nats behind dense LoRA
    python benchmarks/compare.py --vary lasso=none,loss,proximal  # ATP with an option of train.py's at each value
    python benchmarks/compare.py --model DIR --data FILES         # the main table, hours; stop it at will
    python benchmarks/compare.py --model DIR --data FILES --ablations
    python benchmarks/compare.py --check                          # is ATP best in every complete cell?
    python benchmarks/compare.py --table                          # results/*.jsonl to RESULTS.md

Runs are appended to a file, one JSON object each, and never made twice: to results/main.jsonl or ablations.jsonl,
which the repository keeps; those of --quick, --vary and --tune to out/compare/; with --out FILE, to that one. Two
notions of equal budget: `steps`, the same number of LoRA steps; and `time`, the same wall time for the whole
procedure, decisions included: a method gets as many LoRA steps as fit in the time of ATP's run, by what decisions
and steps of all take side by side.
"""
import argparse, copy, dataclasses, hashlib, json, math, multiprocessing, os, re, signal, statistics, sys
import threading, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import atp  # noqa: E402
import data  # noqa: E402
import export  # noqa: E402
import llama  # noqa: E402
import train  # noqa: E402
from data import InputError  # noqa: E402
from scripts import measures, prepare  # noqa: E402
from scripts.find_model import find  # noqa: E402

DECIDED_FIRST = ["taylor", "two-stage", "activation", "magnitude", "random"]
METHODS = {"atp": {}, **{name: {"decisions": name} for name in DECIDED_FIRST},
           "paper": train.PAPER, "none": {"decisions": "none"}}
QUICK = ["none", "atp", "taylor", "random", "two-stage"]
BUDGETS = ["steps", "time"]
BASELINES = [name for name in METHODS if name not in ("atp", "none")]
ALTERNATE = {"alternate": True}
ABLATIONS = {"alternate": ALTERNATE, "alternate, masked-both": ALTERNATE | {"aware": False},
             "alternate, sampled": ALTERNATE | {"budget": "loss", "sample": True},
             "no lasso": {"lasso": "none"}, "lasso in the loss": {"lasso": "loss", "lasso_weight": 10.0},
             "budget loss": {"budget": "loss"}, "straight-through": {"straight_through": True},
             "no warm start": {"warm_start": 0.0}, "warm start alone": {"warm_start": 1.0},
             "no annealing": {"anneal": 0.0},
             # A search first, as long as the paper's while tuning.
             "two-stage, long": {"decisions": "two-stage", "freeze_at": 0.5, "warm_start": 0.016},
             **{f"T_end {x}": {"freeze_at": x} for x in (0.1, 0.25, 0.5, 0.75)},
             **{f"temperature {x}": {"temperature": x} for x in (0.1, 1.0)},
             **{f"rank {x}": {"rank": x} for x in (2, 32)},
             **{f"alternate, generator every {x}": ALTERNATE | {"generator_every": x} for x in (1, 4)}}
# Options that only a search reads: results of methods without one stand when they change.
OF_THE_SEARCH = {"freeze_at", "warm_start", "anneal", "temperature", "straight_through", "budget", "sample",
                 "generator_lr", "lasso", "lasso_weight", "alternate", "generator_every", "aware"}
NOT_VARIED = {"seed": "give --seeds", "space": "give --spaces", "prune": "give --ratios", "steps": "give --steps",
              **dict.fromkeys(["seq_len", "answer_only"], "it changes what is measured"),
              **dict.fromkeys(["model", "data", "device", "dtype"], "all runs of a comparison share it"),
              **dict.fromkeys(["out", "dense", "shard", "log_every", "eval_every"], "no comparison reads it")}


def new_run(options: dict) -> tuple[train.Run, data.Tokenizer, data.Rows]:
    """A run as `train.py` would begin it, its tokenizer, and held-out rows of the train split."""
    config = train.Config(**options)
    tokenizer = data.Tokenizer(config.model)
    rows = data.load(config.data, tokenizer, config.seq_len)
    held_out = max(1, len(rows.train.tokens) // 20)
    learned, tail = (data.Rows(*(part[where] for part in rows.train))
                     for where in (slice(-held_out), slice(-held_out, None)))
    model = llama.load(config.model, getattr(torch, config.dtype))
    return train.Run(config, model, rows._replace(train=learned)), tokenizer, tail


def one_run(options: dict, threads: int, tuning: bool) -> dict:
    """A run through the functions of train.py, measured; in a process of its own, for its peak of memory."""
    torch.set_num_threads(threads)
    run, tokenizer, tail = new_run(options)
    begin, flips, config, rows = time.monotonic(), [], run.config, run.rows
    run.decide_first()
    while run.step < run.steps:
        terms = run.advance()
        flips += [terms["flips"]] if "flips" in terms else []
    seconds = time.monotonic() - begin
    masks, measured, d = run.masks(), tail if tuning else rows.validation, run.decisions.d
    loss = export.validation_loss(run.model, measured, config.batch_size, masks)
    accuracy = None
    if not tuning:
        accuracy = measures.answer_accuracy(run.model, tokenizer, rows.questions, config.seq_len, masks)
    per_layer = [{kind: len(kept) for kind, kept in layer.items()} for layer in run.groups.kept_groups(d)]
    return {"val_loss": loss, "accuracy": accuracy, "seconds": seconds,
            "peak_memory_bytes": measures.peak_memory(run.device),
            "lora_steps": config.steps, "obtained_prune": 1 - run.groups.kept(d) / run.groups.total,
            "flips": statistics.mean(flips) if flips else None, "kept_groups": per_layer}


def measure_costs(cell: list[dict], setting: dict, threads: int) -> dict[str, tuple[float, float]]:
    """By method, the seconds of its whole run in `cell`, a result of each, and of a step after the freeze.

    In one process, all runs in turn, each with layers cut to the sizes that `cell` says it decided on. All
    that are cut have as many parameters, and repeated measurements rank them anew each time, by a tenth, more
    than most methods differ by: the median of theirs counts for each."""
    torch.set_num_threads(threads)
    runs = {r["method"]: new_run(options_of(r, setting, setting["steps"]))[0] for r in cell}
    searching = {method: run for method, run in runs.items() if run.decisions.search_steps}
    decide = fastest(runs, seconds_of_deciding)
    for run in searching.values():
        run.step = run.decisions.warm_steps  # the dearer part of the search
    search = fastest(searching, seconds_of_a_step)
    for result in cell:
        run = runs[result["method"]]
        sizes = torch.zeros_like(run.decisions.d)
        for layer, kind, start, _ in run.groups.segments:
            sizes[start:start + result["kept_groups"][layer][kind]] = True
        run.freeze(sizes)
        run.step = run.decisions.search_steps  # T_end
    after = fastest(runs, seconds_of_a_step)
    cut = [method for method, run in runs.items() if run.cut]
    after |= dict.fromkeys(cut, statistics.median(after[method] for method in cut))
    costs = {}
    for method, run in runs.items():
        seconds = run.step * search.get(method, 0.0) + (run.steps - run.step) * after[method]
        costs[method] = decide[method] + seconds, after[method]
    return costs


def fastest(runs: dict[str, train.Run], seconds_of, rounds=8) -> dict[str, float]:
    """By method, the least seconds of some work: what it takes where nothing disturbs it. In turns, so that a
    slow moment hits all alike; on new copies, as the place of a run's tensors makes it a tenth slower."""
    found = {method: [] for method in runs}
    for _ in range(rounds):
        for method, run in runs.items():
            found[method].append(seconds_of(copy.deepcopy(run)))
    return {method: min(seconds) for method, seconds in found.items()}


def seconds_of_deciding(run: train.Run) -> float:
    """Of what decides first, and cuts; or of the cut at the end of a search."""
    begin = time.monotonic()
    run.decide_first()
    if not run.decisions.frozen:
        run.freeze(run.decisions.final())
    return time.monotonic() - begin


def seconds_of_a_step(run: train.Run) -> float:
    """Of two, as only every second may update the generator. A copy's first one is slow, and not counted."""
    if not run.decisions.frozen:
        run.decisions.search_steps += 4  # no freeze within the timing
        run.lora_begins += 4 if run.lora_begins else 0
    run.advance()
    begin = time.monotonic()
    run.advance()
    run.advance()
    return (time.monotonic() - begin) / 2


# ------------------------------------------------------------------------------------------------ what to run

def options_of(job: dict, setting: dict, steps: int) -> dict:
    """A job's options for `train.Config`. A longer run searches as many steps, a shorter as large a share."""
    search = job["options"].get("freeze_at", train.Config().freeze_at) * setting["steps"]
    space = {} if job["method"] == "none" else {"space": job["space"], "prune": job["prune"]}
    freeze = {"freeze_at": search / steps} if steps > setting["steps"] else {}
    return setting | job["options"] | space | freeze | {"seed": job["seed"], "steps": steps}


def plan(spaces, ratios, seeds, methods: dict[str, dict], budgets=BUDGETS) -> list[list[dict]]:
    """Waves of jobs, one ratio after another; what is in one may need the results of those before. `methods`
    are options by name; "none" is dense LoRA, which knows neither space nor ratio."""
    spaces, ratios, seeds = (list(dict.fromkeys(given)) for given in (spaces, ratios, seeds))
    dense = dict(method="none", options=METHODS["none"], space="-", prune=0.0, budget="steps")
    waves = [[dense | {"seed": seed} for seed in seeds if "none" in methods]]
    for prune in ratios:
        for budget in budgets:  # ATP's run of the budget by steps is also that by time
            names = [name for name in methods if name != "none" and (name, budget) != ("atp", "time")]
            waves.append([dict(method=name, options=methods[name], space=space, prune=prune, seed=seed,
                               budget=budget) for seed in seeds for name in names for space in spaces])
    return [waves[0] + waves[1], *waves[2:]]


def varied(given: list[str]) -> dict[str, dict]:
    """ATP with each value of each `FIELD=VALUE,VALUE`: options by name, METHODS' own where it is one of them.
    Raises InputError."""
    fields, found = {field.name: field for field in dataclasses.fields(train.Config)}, {}
    for text in given:
        name, _, values = text.partition("=")
        if name not in fields or name in NOT_VARIED:
            problem = NOT_VARIED.get(name, "no field of train.Config; expected for example lasso=none,loss")
            raise InputError(f"--vary {text}: {problem}")
        kind = type(fields[name].default)
        for value in values.split(","):
            try:
                options = {name: {"true": True, "false": False}[value] if kind is bool else kind(value)}
                train.Config(**options)
            except (KeyError, ValueError, InputError):
                raise InputError(f"--vary {text}: {name} cannot be {value!r}; see train.py --help") from None
            known = [method for method in METHODS if METHODS[method] == options]
            found[known[0] if known else f"{name} {options[name]}"] = options
    return found


def lora_steps(job: dict, costs: dict, setting: dict) -> int:
    """As many steps as fit in the time of ATP's run on the same cell, by `measure_costs`."""
    if job["budget"] == "steps":
        return setting["steps"]
    (limit, _), (own, step) = (costs[job["space"], job["prune"]][method] for method in ("atp", job["method"]))
    if own > limit:
        return max(1, int(setting["steps"] * limit / own))
    return setting["steps"] + int((limit - own) / step)


def run_all(waves: list[list[dict]], setting: dict, path: Path, jobs: int, tuning=False) -> None:
    """Runs what is not in the results yet, `jobs` processes at a time, and appends to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    open(path, "ab").close()  # what cannot be written is refused before anything runs
    threads, made = max(1, torch.get_num_threads() // jobs), how_made(setting, tuning)
    results = {key(r): r for r in read_results(path)}
    costs = {(r["space"], r["prune"]): r["costs"] for r in results.values() if r["budget"] == "time"}
    left, begin, done = sum(key(job) not in results for wave in waves for job in wave), time.monotonic(), 0
    print(f"{sum(map(len, waves))} runs, {left} of them to do", flush=True)
    context = multiprocessing.get_context("spawn")
    for wave in waves:
        todo = [job for job in wave if key(job) not in results]
        pool = ProcessPoolExecutor(jobs, context, end_with_parent, max_tasks_per_child=1)
        try:
            cells = {(job["space"], job["prune"]): job["seed"] for job in todo if job["budget"] == "time"}
            measured, futures = {}, {}
            for cell in cells.keys() - costs.keys():
                by_steps = [r for r in results.values() if key(r)[1:] == (*cell, cells[cell], "steps")]
                measured[cell] = pool.submit(measure_costs, by_steps, setting, threads)
            for cell, future in measured.items():
                costs[cell] = future.result()
                shown = {method: f"{whole:.0f} s" for method, (whole, _) in costs[cell].items()}
                print("measured", *cell, shown, flush=True)
            for job in todo:
                options = options_of(job, setting, lora_steps(job, costs, setting))
                futures[pool.submit(one_run, options, threads, tuning)] = job
            for future in as_completed(futures):
                job = futures[future]
                result = job | future.result() | made
                if job["budget"] == "time":
                    result["costs"] = costs[job["space"], job["prune"]]
                with open(path, "ab", buffering=0) as file:  # a line at once, or not at all
                    file.write((json.dumps(result) + "\n").encode())
                results[key(result)], done = result, done + 1
                wait = (time.monotonic() - begin) / done * (left - done)
                print(f"{done}/{left}  {job['space']:5s} {job['prune']:.2f} {job['method']:18s} {job['budget']} "
                      f"seed {job['seed']}: loss {result['val_loss']:.4f}, {result['lora_steps']} steps in "
                      f"{result['seconds']:.0f} s; {wait / 60:.0f} min left", flush=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def end_with_parent() -> None:
    """In a worker: Ctrl-C ends it without a traceback, and so does the end of compare.py, however it came."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


KEY = ("method", "space", "prune", "seed", "budget")
OF_A_RESULT = {*KEY, "val_loss", "accuracy", "seconds", "lora_steps", "peak_memory_bytes", "options", "setting",
               "defaults"}


def key(result: dict) -> tuple:
    return tuple(result[name] for name in KEY)


def read_results(path: Path) -> list[dict]:
    """Raises InputError if the file holds anything else."""
    def result(record):
        if not isinstance(record, dict) or not record.keys() >= OF_A_RESULT:
            raise InputError("no result of compare.py; give another file")
        return record

    empty = not path.exists() or (path.is_file() and path.stat().st_size == 0)
    return [] if empty else prepare.read(path, result)


# ------------------------------------------------------------------------------------------------- the table

def summarize(results: list[dict]) -> dict[tuple, dict]:
    """(budget, space, prune, method) -> mean and spread over seeds of what the table shows."""
    if any(r["budget"] == "time" for r in results):  # whose ATP is the run by steps, which sets the time
        results = [r | {"budget": "time"} for r in results if r["method"] == "atp"] + results
    dense = {r["seed"]: r["val_loss"] for r in results if r["method"] == "none"}
    atp = {(r["space"], r["prune"], r["seed"]): r["val_loss"] for r in results if r["method"] == "atp"}
    rows = {}
    for r in results:
        rows.setdefault(tuple(r[name] for name in ("budget", "space", "prune", "method")), []).append(r)
    return {cell: {"loss": [r["val_loss"] for r in found],
                   "gap": [r["val_loss"] - dense[r["seed"]] for r in found if r["seed"] in dense],
                   "behind": {r["seed"]: r["val_loss"] - atp[(*cell[1:3], r["seed"])] for r in found
                              if (*cell[1:3], r["seed"]) in atp},
                   "accuracy": [r["accuracy"] for r in found if r["accuracy"] is not None],
                   "seconds": statistics.mean(r["seconds"] for r in found),
                   "steps": statistics.mean(r["lora_steps"] for r in found),
                   "memory": max(r["peak_memory_bytes"] for r in found)} for cell, found in rows.items()}


def mean(values, form: str) -> str:
    return format(statistics.mean(values), form) if values else "-"


def spread(values, form: str, of_mean=False) -> str:
    """Mean and, with more than one, standard deviation over seeds, or that of the mean: its standard error."""
    if len(values) < 2:
        return mean(values, form)
    error = statistics.stdev(values) / (len(values) ** 0.5 if of_mean else 1)
    return f"{mean(values, form)} ± {format(error, form)}"


def short_table(results: list[dict]) -> str:
    """For a terminal: dense LoRA and the methods, cell by cell; the error is the mean's, over seeds."""
    cells, lines = summarize(results), []
    width = max(len(method) for *_, method in cells) + 1
    for budget, space, prune in sorted({cell[:3] for cell in cells if cell[3] != "none"}):
        lines += ["", f"{space}, {prune:.0%} pruned, equal {budget}",
                  f"{'':{width}}seeds  val loss  nats behind dense  retained  accuracy  seconds"]
        for (*cell, method), row in cells.items():
            if method == "none" or cell == [budget, space, prune]:
                gaps = [] if method == "none" else row["gap"]
                behind, retained = spread(gaps, ".4f", of_mean=True), mean([math.exp(-x) for x in gaps], ".1%")
                lines.append(f"{method:{width}}{len(row['loss']):5d}{mean(row['loss'], '.4f'):>10}{behind:>19}"
                             f"{retained:>10}{mean(row['accuracy'], '.1%'):>10}{row['seconds']:9.0f}")
    return "\n".join(lines)


def table(results: list[dict]) -> str:
    """All cells as Markdown."""
    cells = summarize(results)
    order = {name: i for i, name in enumerate(METHODS)}
    lines = ["| equal | space | pruned | decisions | seeds | perplexity | gap to dense LoRA, nats | behind "
             "ATP, nats | retained | accuracy | LoRA steps | seconds | peak memory |", "|" + "---|" * 13]
    for (budget, space, prune, method), row in sorted(
            cells.items(), key=lambda item: (*item[0][:3], order.get(item[0][3], 99), item[0][3])):
        lines.append("| " + " | ".join([
            budget, space, f"{prune:.0%}", method, str(len(row["loss"])),
            spread([math.exp(x) for x in row["loss"]], ".2f"), spread(row["gap"], ".4f"),
            "-" if method == "atp" else spread(row["behind"].values(), ".4f"),
            spread([math.exp(-x) for x in row["gap"]], ".3f"), spread(row["accuracy"], ".3f"),
            f"{row['steps']:.0f}", f"{row['seconds']:.0f}", f"{row['memory'] / 2**30:.2f} GB"]) + " |")
    return "\n".join(lines)


def overall(results: list[dict]) -> str:
    """How far each method is behind ATP: each seed's mean over cells, their mean and its error; how often ahead."""
    cells = summarize(results)
    columns = [f"nats behind ATP, equal {budget} | ahead of it" for budget in BUDGETS]
    lines = [f"| decisions | {' | '.join(columns)} |", "|" + "---|" * 5]
    for name in BASELINES:
        line = [name]
        for budget in BUDGETS:
            rows = [row["behind"] for (own, _, _, method), row in cells.items() if (own, method) == (budget, name)]
            seeds = sorted({seed for row in rows for seed in row})
            means = [statistics.mean(row[seed] for row in rows if seed in row) for seed in seeds]
            pairs = [nats for row in rows for nats in row.values()]
            line += [spread(means, ".4f", of_mean=True), f"{sum(nats < 0 for nats in pairs)} of {len(pairs)}"]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def margins(results: list[dict]) -> dict[tuple, tuple[float, str]]:
    """Of each complete cell: by how many nats ATP's mean loss is below the best other method's; and whose."""
    cells, found = summarize(results), {}
    for *cell, method in cells:
        behind = {name: cells.get((*cell, name), {"behind": {}})["behind"].values() for name in BASELINES}
        runs = len(cells[(*cell, method)]["loss"])
        if method == "atp" and all(len(nats) == runs for nats in behind.values()):
            means = {name: statistics.mean(nats) for name, nats in behind.items()}
            best = min(means, key=means.get)
            found[tuple(cell)] = means[best], best
    return found


def check(results: list[dict]) -> int:
    """Prints ATP's margin in every complete cell; exit status 0 if there are any and all are positive."""
    found = margins(results)
    for (budget, space, prune), (margin, best) in sorted(found.items()):
        print(f"equal {budget:5s}  {space:5s}  {prune:.0%} pruned: "
              f"ATP is {margin:+.4f} nats better than the best other, {best}")
    worst = min((margin for margin, _ in found.values()), default=0.0)
    print(f"worst margin: {worst:+.4f} nats" if found else "no cell is complete yet")
    return int(worst <= 0)


def parse_arguments() -> argparse.Namespace:
    own, parser = train.Config(), data.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model directory in the raw format")
    parser.add_argument("--data", nargs="+", help="JSON lines files")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where results are, and go")
    parser.add_argument("--spaces", nargs="+", choices=list(atp.SPACES), default=["dims", "heads"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.4, 0.3, 0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--equal-steps", action="store_true", help="leave equal time for later")
    parser.add_argument("--steps", type=int, default=500, help="LoRA steps of ATP's run")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, sharing the cores")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}; unless given: two seeds of "
                        "train.py's default run, on the built-in model")
    parser.add_argument("--vary", action="append", metavar="FIELD=VALUE,VALUE", default=[],
                        help="as --quick, but ATP with a field of train.Config at each value; may be repeated")
    parser.add_argument("--ablations", action="store_true", help="ATP without each of its parts, at 40 %%")
    parser.add_argument("--tune", action="store_true", help="measure on held-out rows of the train split")
    parser.add_argument("--check", action="store_true", help="exit 0 only if ATP is best in every complete cell")
    parser.add_argument("--table", action="store_true", help="only make RESULTS.md from the results")
    args = parser.parse_args()
    if args.ablations:
        parser.set_defaults(ratios=[own.prune], equal_steps=True)
    elif args.quick or args.vary:
        parser.set_defaults(model=own.model, data=own.data, spaces=[own.space], ratios=[own.prune], seeds=[0, 1],
                            steps=own.steps, batch_size=own.batch_size, equal_steps=True)
    args = parser.parse_args()
    if args.ablations and (args.quick or args.vary):
        raise InputError("--ablations has its own runs; give it without --quick and --vary")
    if args.out and (args.check or args.table or HERE / "results" in args.out.resolve().parents):
        raise InputError(f"--out {args.out}: what is in {HERE / 'results'} is written and read without it")
    if not (args.check or args.table or (args.model and args.data)):
        raise InputError("give --model and --data (or --quick, --vary, --check or --table)")
    if args.jobs < 1:
        raise InputError(f"--jobs {args.jobs}: must be at least 1")
    return args


def compare(args: argparse.Namespace) -> Path:
    """Makes the runs that are asked for and not in their file yet, and shows them; returns the file."""
    setting = {"model": str(find(Path(args.model))), "data": args.data, "steps": args.steps,
               "batch_size": args.batch_size, "dtype": "float32", "device": "cpu"}
    defaults, kept = vars(train.Config()) | setting, not (args.out or args.tune or args.quick or args.vary)
    name = "tune" if args.tune else "ablations" if args.ablations else "main" if kept else "quick"
    path = args.out or (HERE / "results" if kept else Path("out/compare")) / f"{name}.jsonl"
    among = QUICK if args.quick else ["none", "atp"] if args.vary or args.ablations else METHODS
    methods = {name: METHODS[name] for name in among if not (kept and args.ablations)}  # the main table has them
    for name, options in (ABLATIONS if args.ablations else varied(args.vary)).items():
        if any(defaults[field] != value for field, value in options.items()):  # else it is ATP's own run
            methods[name] = options
    waves = plan(args.spaces, args.ratios, args.seeds, methods, BUDGETS[:1] if args.equal_steps else BUDGETS)
    jobs = [job for wave in waves for job in wave]
    model = new_run(options_of(jobs[0], setting, args.steps))[0].model
    for job in jobs:  # what no run could use is refused here, in one line
        config = train.Config(**options_of(job, setting, args.steps))
        atp.Groups(model.config, config.space, config.round_to, config.uniform).budget(1 - job["prune"])
    refuse_other_settings(path, setting, args.tune)
    run_all(waves, setting, path, args.jobs, args.tune)
    if not kept:
        results = {key(r): r for r in read_results(path)}
        print(f"\n{Path(args.model).name}, {', '.join(args.data)}: {args.steps} steps of {args.batch_size} rows; "
              "± is the standard error over seeds")
        for name in dict.fromkeys(text.partition("=")[0] for text in args.vary):
            print(f"atp has {name} {defaults[name]}")
        print(short_table([results[key(job)] for job in jobs]))
        print(f"\nresults: {path}; to go on: the same with other --seeds, or --vary lasso=none,loss")
    return path


def make_page() -> None:
    """Puts each table between its markers `<!-- NAME -->` and `<!-- end -->` in RESULTS.md; the text around stays.
    Ablations stand beside the same runs of the main table."""
    found = {name: read_results(HERE / f"results/{name}.jsonl") for name in ("main", "ablations")}
    setting = found["ablations"] and found["ablations"][0]["setting"]
    prunes = {r["prune"] for r in found["ablations"]}
    found["ablations"] += [r for r in found["main"] if r["setting"] == setting and r["budget"] == "steps" and (
        r["method"] == "none" or r["method"] in ("atp", "taylor", "two-stage") and r["prune"] in prunes)]
    tables = {name: table(rows) for name, rows in found.items() if rows}
    if found["main"]:
        tables["overall"] = overall(found["main"])
    path = HERE / "RESULTS.md"
    text = path.read_text()
    for name, content in tables.items():
        between = rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)"
        text = re.sub(between, lambda _: content + "\n", text, count=1, flags=re.S)
    data.write_atomic(path, lambda file: file.write(text.encode()))
    print(f"{path} is made; next: python benchmarks/compare.py --check")


def refuse_other_settings(path: Path, setting: dict, tuning: bool) -> None:
    """Raises InputError if a result in `path` has read another setting, or another default, than now."""
    made = how_made(setting, tuning)
    now = made["defaults"] | made["setting"]
    for r in read_results(path):
        then, own = r["defaults"] | r["setting"], {*r["options"]}
        if r["options"].get("decisions", "atp") not in ("atp", "two-stage"):
            own |= OF_THE_SEARCH
        other = {key: then.get(key) for key in then | now if key not in own and then.get(key) != now.get(key)}
        if other:
            raise InputError(f"{path}: {r['method']} made with other settings, {other}; move it away first")


def how_made(setting: dict, tuning: bool) -> dict:
    """What the results of a file share: the setting (files by their names, and how they begin), what is measured,
    and the defaults of all other options."""
    digest = hashlib.sha256()
    for path in [*sorted(Path(setting["model"]).glob("consolidated.*")), *setting["data"]]:
        with open(path, "rb") as file:
            digest.update(file.read(2**24))
    names = {"model": Path(setting["model"]).name, "data": [Path(path).name for path in setting["data"]]}
    files = {"files": digest.hexdigest()[:16], "measured": "held out of train" if tuning else "validation"}
    defaults = {name: value for name, value in vars(train.Config()).items() if name not in setting}
    return {"setting": setting | names | files, "defaults": defaults}


def main() -> None:
    args = parse_arguments()
    if args.check:
        sys.exit(check(read_results(HERE / "results/main.jsonl")))
    if args.table or compare(args).parent == HERE / "results":
        make_page()


if __name__ == "__main__":
    data.command(main)
