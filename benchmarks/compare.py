"""Does learning the decisions while tuning beat taking them first? Every method through train.py's own loop.

    python benchmarks/compare.py --model DIR --data FILES           # the main table, hours; stop it at will
    python benchmarks/compare.py --model DIR --data FILES --quick   # ATP, Taylor and random at 40 %, minutes
    python benchmarks/compare.py --model DIR --data FILES --ablations
    python benchmarks/compare.py --check                            # is ATP best in every complete cell?
    python benchmarks/compare.py --table                            # results/*.jsonl to RESULTS.md

Runs are appended to results/NAME.jsonl, one JSON object each, and never made twice. Two notions of equal
budget: `steps`, the same number of LoRA steps; and `time`, the same wall time for the whole procedure,
decisions included: a method gets as many LoRA steps as fit in the time of ATP's run, by what decisions and
steps of all take side by side.
"""
import copy
import json
import math
import multiprocessing
import os
import re
import signal
import statistics
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import atp  # noqa: E402
import data  # noqa: E402
import llama  # noqa: E402
import train  # noqa: E402
from data import InputError  # noqa: E402

DECIDED_FIRST = ["taylor", "two-stage", "activation", "magnitude", "random"]
METHODS = {"atp": {}, **{name: {"decisions": name} for name in DECIDED_FIRST},
           "paper": train.PAPER, "none": {"decisions": "none"}}
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
             "two-stage, long": {"decisions": "two-stage", "freeze_at": 0.5, "warm_start": 0.016}}
# Options that only a search reads: results of methods without one stand when they change.
OF_THE_SEARCH = {"freeze_at", "warm_start", "anneal", "temperature", "straight_through", "budget", "sample",
                 "generator_lr", "lasso", "lasso_weight", "alternate", "generator_every", "aware"}


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
    loss = train.validation_loss(run.model, measured, config.batch_size, masks)
    accuracy = None
    if not tuning:
        accuracy = train.answer_accuracy(run.model, tokenizer, rows.questions, config.seq_len, masks)
    per_layer = [{kind: len(kept) for kind, kept in layer.items()} for layer in run.groups.kept_groups(d)]
    return {"val_loss": loss, "accuracy": accuracy, "seconds": seconds,
            "peak_memory_bytes": train.peak_memory(run.device),
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


def main_jobs(spaces, ratios, seeds, methods, budgets=BUDGETS) -> list[list[dict]]:
    """Waves of jobs, one ratio after another; what is in one may need the results of those before."""
    waves = []
    for prune in ratios:
        for budget in budgets:  # ATP's run of the budget by steps is also that by time
            names = [name for name in methods if name != "none" and (name, budget) != ("atp", "time")]
            waves.append([dict(method=name, options=METHODS[name], space=space, prune=prune, seed=seed,
                               budget=budget) for seed in seeds for name in names for space in spaces])
    dense = dict(method="none", options=METHODS["none"], space="-", prune=0.0, budget="steps")
    return [[dense | {"seed": seed} for seed in seeds if "none" in methods] + waves[0], *waves[1:]]


def ablation_jobs(spaces, seeds) -> list[list[dict]]:
    """ATP of the main table with one thing changed; a variant that the defaults have become is left out."""
    defaults, variants = train.Config(), ABLATIONS.copy()
    variants |= {f"T_end {x}": {"freeze_at": x} for x in (0.1, 0.25, 0.5, 0.75)}
    variants |= {f"temperature {x}": {"temperature": x} for x in (0.1, 1.0)}
    variants |= {f"rank {x}": {"rank": x} for x in (2, 32)}
    variants |= {f"alternate, generator every {x}": ALTERNATE | {"generator_every": x} for x in (1, 4)}
    return [[dict(method=name, options=options, space=space, prune=defaults.prune, seed=seed, budget="steps")
             for seed in seeds for space in spaces for name, options in variants.items()
             if any(getattr(defaults, key) != value for key, value in options.items())]]


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
    path.parent.mkdir(exist_ok=True)
    threads = max(1, torch.get_num_threads() // jobs)
    results = {key(r): r for r in read_results(path)}
    costs = {(r["space"], r["prune"]): r["costs"] for r in results.values() if r["budget"] == "time"}
    left, begin, done = sum(key(job) not in results for wave in waves for job in wave), time.monotonic(), 0
    print(f"{sum(map(len, waves))} runs, {left} of them to do", flush=True)
    context = multiprocessing.get_context("spawn")
    for wave in waves:
        todo = [job for job in wave if key(job) not in results]
        with ProcessPoolExecutor(jobs, context, end_with_parent, max_tasks_per_child=1) as pool:
            try:
                cells = {(job["space"], job["prune"]): job["seed"] for job in todo if job["budget"] == "time"}
                measured = {}
                for cell in cells.keys() - costs.keys():
                    by_steps = [r for r in results.values() if key(r)[1:] == (*cell, cells[cell], "steps")]
                    measured[cell] = pool.submit(measure_costs, by_steps, setting, threads)
                for cell, future in measured.items():
                    costs[cell] = future.result()
                    shown = {method: f"{whole:.0f} s" for method, (whole, _) in costs[cell].items()}
                    print("measured", *cell, shown, flush=True)
                futures = {}
                for job in todo:
                    options = options_of(job, setting, lora_steps(job, costs, setting))
                    futures[pool.submit(one_run, options, threads, tuning)] = job
                for future in as_completed(futures):
                    job = futures[future]
                    result = {name: job[name] for name in KEY} | future.result() | {
                        "options": job["options"], "setting": shared(setting),
                        "defaults": shared(vars(train.Config()))}
                    if job["budget"] == "time":
                        result["costs"] = costs[job["space"], job["prune"]]
                    with open(path, "a") as file:
                        file.write(json.dumps(result) + "\n")
                    results[key(result)], done = result, done + 1
                    wait = (time.monotonic() - begin) / done * (left - done)
                    print(f"{done}/{left}  {job['space']:5s} {job['prune']:.2f} {job['method']:18s} "
                          f"{job['budget']} seed {job['seed']}: loss {result['val_loss']:.4f}, "
                          f"{result['lora_steps']} steps in {result['seconds']:.0f} s; "
                          f"{wait / 60:.0f} min left", flush=True)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def end_with_parent() -> None:
    """In a worker: Ctrl-C ends it without a traceback, and so does the end of compare.py, however it came."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


KEY = ("method", "space", "prune", "seed", "budget")


def key(result: dict) -> tuple:
    return tuple(result[name] for name in KEY)


def read_results(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ------------------------------------------------------------------------------------------------- the table

def summarize(results: list[dict]) -> dict[tuple, dict]:
    """(budget, space, prune, method) -> mean and spread over seeds of what the table shows."""
    dense = {r["seed"]: r["val_loss"] for r in results if r["method"] == "none"}
    atp = {(r["space"], r["prune"], r["seed"]): r["val_loss"] for r in results if r["method"] == "atp"}
    rows = {}
    for r in results:
        rows.setdefault(tuple(r[name] for name in ("budget", "space", "prune", "method")), []).append(r)
    return {cell: {"seeds": sorted(r["seed"] for r in found),
                   "loss": [r["val_loss"] for r in found],
                   "gap": [r["val_loss"] - dense[r["seed"]] for r in found if r["seed"] in dense],
                   "behind": [r["val_loss"] - atp[(*cell[1:3], r["seed"])] for r in found
                              if (*cell[1:3], r["seed"]) in atp],
                   "accuracy": [r["accuracy"] for r in found if r["accuracy"] is not None],
                   "seconds": statistics.mean(r["seconds"] for r in found),
                   "steps": statistics.mean(r["lora_steps"] for r in found),
                   "memory": max(r["peak_memory_bytes"] for r in found)} for cell, found in rows.items()}


def spread(values: list[float], form: str) -> str:
    """Mean and, with more than one, standard deviation over seeds."""
    if not values:
        return "-"
    text = format(statistics.mean(values), form)
    return text + (f" ± {format(statistics.stdev(values), form)}" if len(values) > 1 else "")


def table(results: list[dict]) -> str:
    """All cells as Markdown. A time budget's ATP is its run of the budget by steps, which sets the time."""
    cells = summarize(results)
    if any(budget == "time" for budget, *_ in cells):
        cells |= {("time", *rest): value for (budget, *rest), value in cells.items() if rest[-1] == "atp"}
    order = {name: i for i, name in enumerate(METHODS)}
    lines = ["| equal | space | pruned | decisions | seeds | perplexity | gap to dense LoRA, nats | behind "
             "ATP, nats | retained | accuracy | LoRA steps | seconds | peak memory |", "|" + "---|" * 13]
    for (budget, space, prune, method), row in sorted(
            cells.items(), key=lambda item: (*item[0][:3], order.get(item[0][3], 99), item[0][3])):
        lines.append("| " + " | ".join([
            budget, space, f"{prune:.0%}", method, str(len(row["seeds"])),
            spread([math.exp(x) for x in row["loss"]], ".2f"), spread(row["gap"], ".4f"),
            "-" if method == "atp" else spread(row["behind"], ".4f"),
            spread([math.exp(-x) for x in row["gap"]], ".3f"), spread(row["accuracy"], ".3f"),
            f"{row['steps']:.0f}", f"{row['seconds']:.0f}", f"{row['memory'] / 2**30:.2f} GB"]) + " |")
    return "\n".join(lines)


def overall(results: list[dict]) -> str:
    """How far each method is behind ATP in all cells and seeds: mean, standard error, how often ahead."""
    cells = summarize(results)
    columns = [f"nats behind ATP, equal {budget} | ahead of it" for budget in BUDGETS]
    lines = [f"| decisions | {' | '.join(columns)} |", "|" + "---|" * 5]
    for name in BASELINES:
        line = [name]
        for budget in BUDGETS:
            behind = [x for (*where, method), row in cells.items() if (where[0], method) == (budget, name)
                      for x in row["behind"]]
            error = statistics.stdev(behind) / len(behind) ** 0.5 if len(behind) > 1 else math.nan
            line += [f"{statistics.mean(behind):.4f} ± {error:.4f}" if behind else "-",
                     f"{sum(x < 0 for x in behind)} of {len(behind)}"]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def margins(results: list[dict]) -> dict[tuple, tuple[float, str]]:
    """Of each complete cell: by how many nats ATP's mean loss is below the best other method's; and whose."""
    by_cell = {}
    for r in results:
        methods = by_cell.setdefault((r["budget"], r["space"], r["prune"]), {})
        methods.setdefault(r["method"], {})[r["seed"]] = r["val_loss"]
    found = {}
    for (budget, space, prune), methods in by_cell.items():
        atp = by_cell.get(("steps", space, prune), {}).get("atp", {})
        others = {name: methods.get(name, {}) for name in BASELINES}
        if atp and all(atp.keys() <= losses.keys() for losses in others.values()):
            means = {name: statistics.mean(losses[seed] - atp[seed] for seed in atp)
                     for name, losses in others.items()}
            best = min(means, key=means.get)
            found[budget, space, prune] = means[best], best
    return found


def check(results: list[dict]) -> int:
    """Prints ATP's margin in every complete cell; exit status 0 if there are any and all are positive."""
    found = margins(results)
    for (budget, space, prune), (margin, best) in sorted(found.items()):
        print(f"equal {budget:5s}  {space:5s}  {prune:.0%} pruned: "
              f"ATP is {margin:+.4f} nats better than the best other, {best}")
    if not found:
        print("no cell is complete yet")
        return 1
    worst = min(found, key=lambda cell: found[cell][0])
    print(f"worst margin: {found[worst][0]:+.4f} nats, at {worst}")
    return int(found[worst][0] <= 0)


def write_report(path: Path, tables: dict[str, str]) -> None:
    """Puts each table between its markers `<!-- NAME -->` and `<!-- end -->`; the text around stays."""
    text = path.read_text()
    for name, content in tables.items():
        between = rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)"
        text = re.sub(between, lambda _: content + "\n", text, count=1, flags=re.S)
    data.write_atomic(path, lambda file: file.write(text.encode()))


def main() -> None:
    parser = data.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model directory in the raw format")
    parser.add_argument("--data", nargs="+", help="JSON lines files")
    parser.add_argument("--spaces", nargs="+", choices=list(atp.SPACES), default=["dims", "heads"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.4, 0.3, 0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--equal-steps", action="store_true", help="leave equal time for later")
    parser.add_argument("--steps", type=int, default=500, help="LoRA steps of ATP's run")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, sharing the cores")
    parser.add_argument("--quick", action="store_true",
                        help="ATP, Taylor and random only; unless given: one cell, two seeds, 400 steps")
    parser.add_argument("--ablations", action="store_true", help="ATP without each of its parts, at 40 %%")
    parser.add_argument("--tune", action="store_true",
                        help="measure on held-out rows of the train split; to tune.jsonl")
    parser.add_argument("--check", action="store_true",
                        help="exit 0 only if ATP is best in every complete cell of main.jsonl")
    parser.add_argument("--table", action="store_true", help="only make RESULTS.md from the results")
    args = parser.parse_args()
    if args.quick:
        parser.set_defaults(spaces=["dims"], ratios=[0.4], seeds=[0, 1], steps=400, equal_steps=True)
        args = parser.parse_args()
    results = HERE / "results"
    if not (args.check or args.table):
        if args.quick and args.ablations:
            raise InputError("--quick is a short main table; give it without --ablations")
        if not args.model or not args.data:
            raise InputError("give --model and --data (or --check, or --table)")
        name = "tune" if args.tune else "quick" if args.quick else "ablations" if args.ablations else "main"
        setting = {"model": args.model, "data": args.data, "steps": args.steps, "batch_size": args.batch_size,
                   "dtype": "float32", "device": "cpu"}
        refuse_other_settings(results / f"{name}.jsonl", setting)
        if args.ablations:
            waves = ablation_jobs(args.spaces, args.seeds)
        else:
            methods = ["atp", "taylor", "random"] if args.quick else METHODS
            budgets = BUDGETS[:1] if args.equal_steps else BUDGETS
            waves = main_jobs(args.spaces, args.ratios, args.seeds, methods, budgets)
        jobs = [job for wave in waves for job in wave]
        for job in jobs:  # what no run could use is refused here, in one line
            train.Config(**options_of(job, setting, args.steps))
        new_run(options_of(jobs[0], setting, args.steps))
        run_all(waves, setting, results / f"{name}.jsonl", args.jobs, args.tune)
        if args.quick or args.tune:
            return print(table(read_results(results / f"{name}.jsonl")))
    found = {name: read_results(results / f"{name}.jsonl") for name in ("main", "ablations")}
    if args.check:
        sys.exit(check(found["main"]))
    setting, prune = found["ablations"] and found["ablations"][0]["setting"], train.Config().prune
    rivals = {("none", 0.0), ("atp", prune), ("taylor", prune), ("two-stage", prune)}
    found["ablations"] += [r for r in found["main"] if r["setting"] == setting and r["budget"] == "steps"
                           and (r["method"], r["prune"]) in rivals]
    tables = {name: table(rows) for name, rows in found.items() if rows}
    if found["main"]:
        tables["overall"] = overall(found["main"])
    write_report(HERE / "RESULTS.md", tables)
    print(f"{HERE / 'RESULTS.md'} is made; next: python benchmarks/compare.py --check")


def refuse_other_settings(path: Path, setting: dict) -> None:
    """Raises InputError if a result in `path` has read another setting, or another default, than now."""
    now = vars(train.Config()) | shared(setting)
    for r in read_results(path):
        then, own = r["defaults"] | r["setting"], {*r["options"]}
        if r["options"].get("decisions", "atp") not in ("atp", "two-stage"):
            own |= OF_THE_SEARCH
        other = {key: then.get(key) for key in then | now if key not in own and then.get(key) != now.get(key)}
        if other:
            raise InputError(f"{path}: {r['method']} made with other settings, {other}; move it away first")


def shared(setting: dict) -> dict:
    """A setting without where things are on this machine."""
    names = [Path(path).name for path in setting["data"]]
    return setting | {"model": Path(setting["model"]).name, "data": names}


if __name__ == "__main__":
    data.command(main)
