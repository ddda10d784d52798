"""The comparison: what it runs, that it skips what is done, its tables and verdict by hand-made results."""
import json
import math
import shutil
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import command

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import compare  # noqa: E402


def result(method, loss, seed=0, budget="steps", space="dims", prune=0.4):
    cell = {"method": method, "space": space, "prune": prune, "seed": seed, "budget": budget}
    return cell | {"val_loss": loss, "accuracy": 0.25, "seconds": 10.0, "peak_memory_bytes": 2**30,
                   "lora_steps": 100, "options": compare.METHODS.get(method, {}), "setting": {}, "defaults": {}}


def write_results(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def setting(model_dir, data_file):
    return {"model": str(model_dir), "data": [str(data_file)], "steps": 20, "batch_size": 1, "seq_len": 64,
            "dtype": "float32", "device": "cpu"}


@pytest.fixture
def quick(model_dir, data_file, tmp_path):
    """A short command line of --quick, where its results go, and what they say of how they were made."""
    setting = {"model": str(model_dir), "data": [str(data_file)], "steps": 4, "batch_size": 1,
               "dtype": "float32", "device": "cpu"}
    out = tmp_path / "new/results.jsonl"
    return ["--model", model_dir, "--data", data_file, "--quick", "--steps", 4, "--batch-size", 1, "--out", out
            ], out, compare.how_made(setting, tuning=False)


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs take turns in a thread of this process, where they can be replaced and start at once."""
    monkeypatch.setattr(compare, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))


@pytest.fixture
def made_up(monkeypatch, in_this_process):
    """Runs return a made-up loss at once; the list of what they were asked for."""
    asked = []

    def one_run(options, threads, tuning):
        asked.append(options)
        return {"val_loss": 2.0 + options["seed"] / 100, "accuracy": None if tuning else 0.5, "seconds": 3.0,
                "peak_memory_bytes": 2**20, "lora_steps": options["steps"]}

    monkeypatch.setattr(compare, "one_run", one_run)
    return asked


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Results and RESULTS.md in a temporary folder."""
    monkeypatch.setattr(compare, "HERE", tmp_path)
    return tmp_path


def test_a_run_of_each_kind_and_costs_worked_by_hand(monkeypatch, setting):
    """Deciding takes 2 seconds, a search step 0.5, one after the cut 0.1, 0.2, 0.3: their median counts."""
    methods = {"atp": {"freeze_at": 0.5}, "taylor": {"decisions": "taylor"},
               "two-stage": {"decisions": "two-stage", "freeze_at": 0.5}, "paper": compare.METHODS["paper"]}
    jobs = [dict(method=name, options=options, space="dims", prune=0.4, seed=0, budget="steps")
            for name, options in methods.items()]
    cell = [job | compare.one_run(compare.options_of(job, setting, 20), 1, tuning=False) for job in jobs]
    assert all(abs(r["obtained_prune"] - 0.4) < 0.01 and r["lora_steps"] == 20 for r in cell)
    assert [r["flips"] is not None for r in cell] == [True, False, True, True]

    def fastest(runs, seconds_of):
        seconds = {name: seconds_of(compare.copy.deepcopy(run)) for name, run in runs.items()}
        assert all(s > 0 for s in seconds.values())
        if seconds_of is compare.seconds_of_deciding:
            return dict.fromkeys(runs, 2.0)
        if not any(run.decisions.frozen for run in runs.values()):
            assert runs.keys() == {"atp", "two-stage", "paper"}
            return dict.fromkeys(runs, 0.5)
        assert all(run.decisions.frozen for run in runs.values())
        for r in cell:  # cut to the sizes that the result says
            run = runs[r["method"]]
            kept = run.groups.kept_groups(run.decisions.d)
            assert [{kind: len(k) for kind, k in layer.items()} for layer in kept] == r["kept_groups"]
        return {"atp": 0.1, "taylor": 0.2, "two-stage": 0.3, "paper": 0.7}

    monkeypatch.setattr(compare, "fastest", fastest)
    costs = compare.measure_costs(cell, setting, 1)
    assert costs == {"atp": (pytest.approx(2 + 10 * 0.5 + 10 * 0.2), 0.2),
                     "taylor": (pytest.approx(2 + 20 * 0.2), 0.2),
                     "two-stage": (pytest.approx(2 + 10 * 0.5 + 20 * 0.2), 0.2),
                     "paper": (pytest.approx(2 + 10 * 0.5 + 10 * 0.7), 0.7)}  # it masks to the end


def test_the_fastest_of_eight_copies_in_turns():
    seconds, order = {"a": [3, 5, 2, 4, 9, 9, 9, 8], "b": [7, 7, 7, 7, 7, 7, 6, 7]}, []

    def seconds_of(run):
        order.append(run["name"])
        run["used"] = True
        return seconds[run["name"]].pop(0)

    runs = {name: {"name": name} for name in seconds}
    assert compare.fastest(runs, seconds_of) == {"a": 2, "b": 6}
    assert order == ["a", "b"] * 8 and runs == {"a": {"name": "a"}, "b": {"name": "b"}}


def test_quick_needs_nothing_else(monkeypatch, tmp_path, made_up, capsys):
    """Five methods as train.py runs by itself, two seeds, one cell; results go to out/, not to the repository's."""
    shutil.copy(Path(compare.train.__file__).with_name("legal.jsonl"), tmp_path)
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "--quick", main=compare.main) == 0
    own = vars(compare.train.Config())
    for options in made_up:
        different = {key: value for key, value in options.items() if own[key] != value}
        assert different.keys() <= {"decisions", "seed", "dtype", "device"}
    assert sorted((options.get("decisions", "atp"), options["seed"]) for options in made_up) == [
        (method, seed) for method in ("atp", "none", "random", "taylor", "two-stage") for seed in (0, 1)]
    assert len(compare.read_results(tmp_path / "out/compare/quick.jsonl")) == 10
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    lines = [line.split() for line in out.splitlines()]
    assert "base, legal.jsonl: 300 steps of 8 rows; ± is the standard error over seeds\n" in out
    assert ["taylor", "2", "2.0050", "0.0000", "±", "0.0000", "100.0%", "50.0%", "3"] in lines
    assert ["none", "2", "2.0050", "-", "-", "50.0%", "3"] in lines
    assert "out/compare/quick.jsonl" in out.splitlines()[-1] and "--vary" in out.splitlines()[-1]
    made_up.clear()
    assert command(monkeypatch, "--quick", "--seeds", 0, 2, 2, main=compare.main) == 0
    assert {options["seed"] for options in made_up} == {2} and len(made_up) == 5


def test_vary_runs_every_value_and_the_default_once(monkeypatch, quick, made_up, capsys):
    """Beside ATP's own run and dense LoRA, each field by itself, by its type; METHODS keep their names."""
    arguments, out, _ = quick
    arguments = [x for x in arguments if x != "--quick"]
    varied = ["--vary", "lasso=none,loss,proximal", "--vary", "rank=2,8", "--vary", "uniform=true,false",
              "--vary", "freeze_at=0.5", "--vary", "decisions=atp,taylor,none"]
    assert command(monkeypatch, *arguments, *varied, "--seeds", 3, main=compare.main) == 0
    found = {r["method"]: r["options"] for r in compare.read_results(out)}
    assert found == {"none": {"decisions": "none"}, "atp": {}, "lasso none": {"lasso": "none"},
                     "lasso loss": {"lasso": "loss"}, "rank 2": {"rank": 2}, "uniform True": {"uniform": True},
                     "freeze_at 0.5": {"freeze_at": 0.5}, "taylor": {"decisions": "taylor"}}
    assert len(made_up) == len(found)
    shown = capsys.readouterr().out
    assert "atp has lasso proximal" in shown and "atp has rank 8" in shown
    rows = [line.split("  ")[0] for line in shown.split("seconds\n")[1].splitlines()]
    assert rows[:-2] == list(found)  # as they were given
    made_up.clear()  # in two spaces and ratios; with --quick's methods; on other rows, to another file
    more = [*arguments, "--vary", "rank=2", "--seeds", 3, "--spaces", "dims", "heads", "--ratios", 0.4, 0.5]
    assert command(monkeypatch, *more, main=compare.main) == 0
    assert len(made_up) == 2 * 4 - 2
    assert capsys.readouterr().out.count("\nrank 2 ") == 4
    made_up.clear()
    assert command(monkeypatch, *arguments, "--quick", "--vary", "rank=2", "--seeds", 3, main=compare.main) == 0
    assert len(made_up) == 2  # random and two-stage
    assert command(monkeypatch, *arguments, "--vary", "rank=2", "--tune", main=compare.main) == 2
    assert "held out" not in shown and "other settings, {'measured': 'validation'}" in capsys.readouterr().err


@pytest.mark.parametrize("field, reason", [
    ("rank=2,x", "rank cannot be 'x'"), ("rank=0", "rank cannot be '0'"), ("rank=", "rank cannot be ''"),
    ("rank", "rank cannot be ''"), ("lasso=none,nothing", "lasso cannot be 'nothing'"),
    ("uniform=1", "uniform cannot be '1'"), ("lr=nan", "lr cannot be 'nan'"), ("nothing=1", "lasso=none,loss"),
    ("seed=1,2", "--seeds"), ("seq_len=64", "measured"), ("dense=true", "no comparison reads it"),
    ("round_to=64", "lower --prune or --round-to")])
def test_vary_refuses_before_anything_runs(monkeypatch, quick, made_up, capsys, field, reason):
    arguments, out, _ = quick
    assert command(monkeypatch, *arguments, "--vary", field, main=compare.main) == 2
    printed, error = capsys.readouterr()
    assert printed == "" and error.count("\n") == 1 and reason in error
    assert not made_up and not out.parent.exists()


def test_every_field_is_varied_or_refused_with_a_reason():
    fields = vars(compare.train.Config())
    assert compare.NOT_VARIED.keys() < fields.keys() and compare.OF_THE_SEARCH <= fields.keys()
    for name in fields.keys() - compare.NOT_VARIED.keys():
        text = str(fields[name]).lower() if isinstance(fields[name], bool) else str(fields[name])
        (options,) = compare.varied([f"{name}={text}"]).values()
        assert options == {name: fields[name]} and type(options[name]) is type(fields[name])


@pytest.mark.parametrize("content", ["", "text\n", '{"text": "a record"}\n', "[1]\n", '{"method": "atp"}\n', None])
def test_out_holds_results_or_is_refused(monkeypatch, tmp_path, quick, made_up, capsys, content):
    """An empty file is as good as none; half a line, another file or a directory stays as it is."""
    arguments, out, _ = quick
    out.parent.mkdir()
    if content is None:
        out.mkdir()
    else:
        out.write_text(content)
    assert command(monkeypatch, *arguments, main=compare.main) == (0 if content == "" else 2)
    if content != "":
        printed, error = capsys.readouterr()
        assert printed == "" and error.count("\n") == 1 and str(out) in error and not made_up
        assert out.is_dir() if content is None else out.read_text() == content


def test_out_that_cannot_be_written_is_refused_before_anything_runs(monkeypatch, quick, made_up, capsys):
    arguments, out, _ = quick
    out.parent.mkdir()
    out.symlink_to("nowhere/results.jsonl")
    for path in (out, Path(arguments[3]) / "below_a_file.jsonl"):
        assert command(monkeypatch, *arguments, "--out", path, main=compare.main) == 2
        assert capsys.readouterr().err.count("\n") == 1 and not made_up


def test_out_is_none_of_the_repository_s_own(monkeypatch, here, quick, made_up, capsys):
    """With --out, neither the main table nor --ablations touches the page or its results; without, both do."""
    (here / "results").mkdir()
    arguments, out, _ = quick
    for where in ("main", "ablations", "other"):
        assert command(monkeypatch, *arguments, "--out", here / f"results/{where}.jsonl", main=compare.main) == 2
    for read_only in ("--check", "--table"):
        assert command(monkeypatch, read_only, "--out", out, main=compare.main) == 2
    assert not list(here.rglob("*.jsonl")) and not made_up
    arguments = [x for x in arguments if x != "--quick"] + ["--seeds", 0, "--equal-steps"]
    assert command(monkeypatch, *arguments, "--spaces", "dims", main=compare.main) == 0
    assert command(monkeypatch, *arguments, "--ablations", main=compare.main) == 0
    assert [path.name for path in here.rglob("*.jsonl")] == ["results.jsonl"]
    assert "\nno lasso " in capsys.readouterr().out
    arguments = [x for x in arguments if x not in ("--out", out)]
    (here / "RESULTS.md").write_text("<!-- main -->\n<!-- end -->\n<!-- ablations -->\n<!-- end -->")
    for more, name in ((["--spaces", "dims", "--ratios", 0.4], "main"), (["--ablations"], "ablations")):
        assert command(monkeypatch, *arguments, *more, main=compare.main) == 0
        rows = compare.read_results(here / f"results/{name}.jsonl")
        methods = {r["method"] for r in rows}
        assert {r["prune"] for r in rows} <= {0.0, 0.4}
        assert "atp" in methods if name == "main" else not methods & compare.METHODS.keys()
    assert "| no lasso |" in (here / "RESULTS.md").read_text()


def test_an_interrupted_comparison_loses_the_run_in_progress(monkeypatch, quick, made_up):
    arguments, out, _ = quick
    quick_run, ends_at = compare.one_run, 3

    def one_run(options, threads, tuning):
        if len(made_up) == ends_at:
            raise KeyboardInterrupt
        return quick_run(options, threads, tuning)

    monkeypatch.setattr(compare, "one_run", one_run)
    assert command(monkeypatch, *arguments, main=compare.main) == 130
    done = [compare.key(r) for r in compare.read_results(out)]
    assert len(done) == 3
    ends_at = None
    assert command(monkeypatch, *arguments, main=compare.main) == 0
    made = [compare.key(r) for r in compare.read_results(out)]
    assert made[:3] == done and len({*made}) == len(made) == len(made_up) == 10


def test_results_of_other_settings_or_files_are_not_mixed(monkeypatch, quick, made_up, capsys, tmp_path, data_file):
    """Nor of another version's options; that the files lie elsewhere does not matter, what is in them does."""
    arguments, out, made = quick
    done = [result(method, 3.0, seed) | made for method in compare.QUICK for seed in (0, 1)]
    done = [r | {"space": "-", "prune": 0.0} if r["method"] == "none" else r for r in done]
    write_results(out, done)
    before = out.read_text()
    moved = shutil.copytree(arguments[1], tmp_path / "moved" / arguments[1].name)
    assert command(monkeypatch, *arguments, "--model", moved, main=compare.main) == 0
    assert "0 of them to do" in capsys.readouterr().out
    (tmp_path / data_file.name).write_text(data_file.read_text().replace("On day 1", "On day 2"))
    for changed, named in ((["--batch-size", 3], "batch_size"), (["--data", tmp_path / data_file.name], "files"),
                           (["--tune"], "measured")):
        assert command(monkeypatch, *arguments, *changed, main=compare.main) == 2
        error = capsys.readouterr().err
        assert f"other settings, {{'{named}'" in error and error.count("\n") == 1
    write_results(out, [r | {"setting": made["setting"] | {"generator_batch_size": 4}} for r in done])
    assert command(monkeypatch, *arguments, main=compare.main) == 2
    assert "generator_batch_size" in capsys.readouterr().err
    write_results(out, done)
    assert not made_up and out.read_text() == before


def test_runs_begin_as_those_of_train(setting):
    """The same learning rate and, but for the rows held out, the same batches."""
    run, _, held_out = compare.new_run(setting)
    theirs = compare.train.open_run(compare.train.Config(**setting))
    assert run.config.lr == theirs.config.lr > 0
    n = len(run.rows.train.tokens)
    assert n + len(held_out.tokens) == len(theirs.rows.train.tokens)
    assert (run.rows.train.tokens == theirs.rows.train.tokens[:n]).all()


def test_quick_runs_really(monkeypatch, in_this_process, quick):
    """On a tiny model: all methods learn something, and prune what was asked for; --tune measures other rows."""
    arguments, out, _ = quick
    assert command(monkeypatch, *arguments, "--seeds", 0, main=compare.main) == 0
    found = {r["method"]: r for r in compare.read_results(out)}
    assert found.keys() == {*compare.QUICK} and len({r["val_loss"] for r in found.values()}) == 5
    assert all(abs(r["obtained_prune"] - r["prune"]) < 0.01 for r in found.values())
    tuned = out.with_name("tuned.jsonl")
    assert command(monkeypatch, *arguments, "--seeds", 0, "--tune", "--out", tuned, main=compare.main) == 0
    for r in compare.read_results(tuned):  # the same run, measured on other rows
        assert r["flips"] == found[r["method"]]["flips"] and r["val_loss"] != found[r["method"]]["val_loss"]
        assert r["accuracy"] is None


@pytest.mark.long
def test_quick_in_processes_of_its_own(monkeypatch, quick, capsys):
    arguments, out, _ = quick
    assert command(monkeypatch, *arguments, "--seeds", 0, main=compare.main) == 0
    before = out.read_text()
    assert len(before.splitlines()) == 5
    assert command(monkeypatch, *arguments, "--seeds", 0, main=compare.main) == 0
    assert "0 of them to do" in capsys.readouterr().out and out.read_text() == before


@pytest.mark.long
def test_equal_time_from_measured_costs(monkeypatch, tmp_path, setting):
    """The cell by steps comes first, its results set the sizes that are timed; neither is ever repeated."""
    path = tmp_path / "results/main.jsonl"
    methods = {name: compare.METHODS[name] for name in ("atp", "random", "paper")}
    waves = compare.plan(["dims"], [0.4], [0], methods)
    compare.run_all(waves, setting, path, 1)
    found = {(r["method"], r["budget"]): r for r in compare.read_results(path)}
    costs = found["random", "time"]["costs"]
    assert set(costs) == set(methods) and all(whole > 19 * step > 0 for whole, step in costs.values())
    for method in ("random", "paper"):
        r = found[method, "time"]
        assert r["costs"] == costs
        assert r["lora_steps"] == compare.lora_steps(r, {("dims", 0.4): costs}, setting)
    before = path.read_text()
    monkeypatch.setattr(compare, "measure_costs", None)
    compare.run_all(waves, setting, path, 1)
    assert path.read_text() == before


def test_equal_time_gives_a_cheaper_method_more_steps():
    costs = {("dims", 0.4): {"atp": (30.0, 0.3), "taylor": (22.0, 0.1), "paper": (60.0, 0.5)}}
    job = dict(method="taylor", options={}, space="dims", prune=0.4, seed=0, budget="time")
    assert compare.lora_steps(job, costs, {"steps": 100}) == 180  # 8 seconds to spare, 0.1 a step
    assert compare.lora_steps(job | {"method": "paper"}, costs, {"steps": 100}) == 50
    assert compare.lora_steps(job | {"budget": "steps"}, costs, {"steps": 100}) == 100


def test_a_setting_counts_only_where_a_method_reads_it(monkeypatch, quick, made_up, capsys):
    """With another T_end than now, results of Taylor stay as good as they were, and ATP's are refused."""
    arguments, out, made = quick
    for method, status in (("taylor", 0), ("atp", 2)):
        out.unlink(missing_ok=True)
        write_results(out, [result(method, 3.0) | made | {"defaults": made["defaults"] | {"freeze_at": 0.3}}])
        assert command(monkeypatch, *arguments, main=compare.main) == status
    assert "freeze_at" in capsys.readouterr().err


@pytest.mark.parametrize("changed", [["--data", "none.jsonl"], ["--model", "none"], ["--ratios", "0.4", "2"],
                                     ["--ratios", "0.99"], ["--steps", "0"], ["--ablations"], ["--jobs", "0"],
                                     ["--seeds", "-1"]])
def test_what_no_run_could_use_is_refused_at_once(monkeypatch, tmp_path, quick, made_up, capsys, changed):
    assert command(monkeypatch, *quick[0], *changed, main=compare.main) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and not made_up and not list(tmp_path.rglob("*.jsonl"))
    assert "no such directory" in error or "--model" not in changed


def test_the_search_of_a_longer_run_is_as_long():
    job = dict(method="two-stage", options={"freeze_at": 0.5}, space="dims", prune=0.4, seed=0, budget="time")
    options = compare.options_of(job, {"steps": 100}, 125)
    assert options["steps"] == 125 and options["freeze_at"] * 125 == pytest.approx(50)
    assert compare.options_of(job, {"steps": 100}, 50)["freeze_at"] == 0.5  # of a shorter one, in proportion


def test_every_job_of_the_main_table_is_a_valid_run():
    waves = compare.plan(["dims", "heads"], [0.3, 0.4, 0.5], [0, 1, 2], compare.METHODS)
    waves += compare.plan(["dims", "heads"], [0.4], [0], compare.ABLATIONS)
    jobs = [job for wave in waves for job in wave]
    of_the_table = {compare.key(job) for job in jobs if job["method"] in compare.METHODS}
    assert len(of_the_table) == 3 * (1 + 6 * 7 + 6 * 6)
    for job in jobs:
        compare.train.Config(**compare.options_of(job, {"steps": 100}, 100))


def test_ablations_are_shown_beside_the_same_runs_of_the_main_table(monkeypatch, here):
    """Those with its setting, space and ratio, without the others; how far behind is paired by seed."""
    markers = "a <!-- main -->\n<!-- end -->\nb <!-- ablations -->\nold\n<!-- end -->\nc"
    (here / "RESULTS.md").write_text(markers)
    main = [result("none", 2.5, space="-", prune=0.0), result("atp", 3.0), result("atp", 3.5, 1),
            result("atp", 9.0, prune=0.3), result("magnitude", 9.0), result("taylor", 3.1)]
    longer = result("two-stage", 9.0) | {"setting": {"steps": 900}}
    for name, rows in (("main", main), ("ablations", [result("no lasso", 3.6, 1)])):
        rows = [{"setting": {"steps": 500}} | r for r in rows] + [longer] * (name == "main")
        write_results(here / f"results/{name}.jsonl", rows)
    assert command(monkeypatch, "--table", main=compare.main) == 0
    before, after = (here / "RESULTS.md").read_text().split("\nb ")
    assert before.startswith("a <!-- main -->\n| equal") and "| magnitude |" in before
    assert "old" not in after and after.endswith("\nc")
    lines = [line.split(" | ") for line in after.splitlines() if line.startswith("| steps")]
    shown = {line[3]: line[4:8] for line in lines}
    assert shown.keys() == {"none", "atp", "taylor", "no lasso"} and shown["atp"][0] == "2"
    assert shown["taylor"][3] == shown["no lasso"][3] == "0.1000"  # each behind ATP of its own seed


def test_the_page_in_the_repository_is_what_its_results_say(monkeypatch, here):
    page = Path(compare.__file__).with_name("RESULTS.md")
    shutil.copytree(page.with_name("results"), here / "results")
    shutil.copy(page, here)
    assert command(monkeypatch, "--table", main=compare.main) == 0
    assert (here / "RESULTS.md").read_text() == page.read_text()


def test_table_and_verdict_by_hand():
    rows = [result("none", 3.0, space="-", prune=0.0), result("none", 3.2, 1, space="-", prune=0.0)]
    rows += [result("atp", 3.1, seed) for seed in (0, 1)]
    rows += [result(method, 3.3, seed, budget)
             for method in compare.BASELINES for seed in (0, 1) for budget in ("steps", "time")]
    text, both = compare.table(rows), ("steps", "time")
    atp, taylor = f"{math.exp(3.1):.2f} ± 0.00", f"{math.exp(3.3):.2f} ± 0.00"
    assert f"| steps | dims | 40% | atp | 2 | {atp} | 0.0000 ± 0.1414 | - | 1.005 ± 0.142 |" in text
    assert f"| time | dims | 40% | taylor | 2 | {taylor} | 0.2000 ± 0.1414 | 0.2000 ± 0.0000 |" in text
    assert text.count("| time | dims | 40% | atp |") == 1
    assert compare.margins(rows) == {(budget, "dims", 0.4): (pytest.approx(0.2), "taylor") for budget in both}
    other_cell = [result("atp", 3.1, prune=0.3), result("taylor", 3.3, prune=0.3)]
    ahead = [result("atp", 3.4, prune=0.5), result("taylor", 3.3, prune=0.5)]  # by 0.1; else behind by 0.2
    # Seed 0 is behind by 0.2, 0.2 and -0.1 in three cells, seed 1 by 0.2 in one.
    assert ("| taylor | 0.1500 ± 0.0500 | 1 of 4 | 0.2000 ± 0.0000 | 0 of 2 |"
            in compare.overall(rows + other_cell + ahead))
    assert compare.check(rows) == 0
    fewer = rows[:-1]  # a cell that lacks a seed does not count
    assert compare.check(fewer) == 0 and len(compare.margins(fewer)) == 1
    assert compare.check(rows + [result("magnitude", 2.8, 0, "time")]) == 1
    assert compare.check([]) == 1


def test_errors_treat_seeds_as_independent_and_not_cells():
    """Two seeds, three cells: the standard error of two means, however many cells repeat what a seed does."""
    behind = {0: [0.1, 0.2, 0.3], 1: [0.3, 0.4, 0.5]}
    ratios = [0.3, 0.4, 0.5]
    rows = [result("atp", 3.0, seed, prune=prune) for seed in behind for prune in ratios]
    rows += [result("taylor", 3.0 + nats, seed, prune=prune) for seed in behind
             for prune, nats in zip(ratios, behind[seed])]
    assert "| taylor | 0.3000 ± 0.1000 | 0 of 6 |" in compare.overall(rows)
    dense = [result("none", 2.9, seed, space="-", prune=0.0) for seed in behind]
    shown = compare.short_table(rows + dense).splitlines()
    gaps = [0.3 + 0.1, 0.5 + 0.1]  # at 50 %
    retained = statistics.mean(math.exp(-gap) for gap in gaps)
    assert [line.split() for line in shown][-2] == [
        "taylor", "2", "3.4000", "0.5000", "±", "0.1000", f"{retained:.1%}", "25.0%", "10"]
    one = compare.short_table([r for r in rows + dense if r["seed"] == 0])
    assert "±" not in one and "  0.4000" in one
