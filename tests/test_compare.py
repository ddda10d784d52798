"""The comparison: what it runs, that it skips what is done, its tables and verdict by hand-made results."""
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
from conftest import command

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import compare  # noqa: E402


def result(method, loss, seed=0, budget="steps", space="dims", prune=0.4):
    cell = {"method": method, "space": space, "prune": prune, "seed": seed, "budget": budget}
    return cell | {"val_loss": loss, "accuracy": 0.25, "seconds": 10.0, "peak_memory_bytes": 2**30,
                   "lora_steps": 100}


def write_results(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def setting(model_dir, data_file):
    return {"model": str(model_dir), "data": [str(data_file)], "steps": 20, "batch_size": 1, "seq_len": 64,
            "dtype": "float32", "device": "cpu"}


@pytest.fixture
def quick(model_dir, data_file):
    """The command line of --quick, and what it writes to its results as the setting."""
    setting = {"model": str(model_dir), "data": [str(data_file)], "steps": 400, "batch_size": 2,
               "dtype": "float32", "device": "cpu"}
    return ["--model", model_dir, "--data", data_file, "--quick"], compare.shared(setting)


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


def test_what_is_done_is_not_repeated(monkeypatch, here, quick, capsys):
    """Nor mixed with runs of other settings, or of another version's options."""
    monkeypatch.setattr(compare, "one_run", None)
    arguments, setting = quick
    done = [result(method, 3.0, seed) | {"options": compare.METHODS[method], "setting": setting,
                                         "defaults": compare.shared(vars(compare.train.Config()))}
            for method in ("atp", "taylor", "random") for seed in (0, 1)]
    path = here / "results/quick.jsonl"
    write_results(path, done)
    before = path.read_text()
    assert command(monkeypatch, *arguments, main=compare.main) == 0
    assert "0 of them to do" in capsys.readouterr().out and path.read_text() == before
    assert command(monkeypatch, *arguments, "--batch-size", 3, main=compare.main) == 2
    assert "other settings" in capsys.readouterr().err
    write_results(path, [done[0] | {"setting": setting | {"generator_batch_size": 4}}])
    assert command(monkeypatch, *arguments, main=compare.main) == 2
    error = capsys.readouterr().err
    assert "generator_batch_size" in error and error.count("\n") == 1


@pytest.mark.long
def test_quick_runs_once_and_is_not_repeated(monkeypatch, here, model_dir, data_file, capsys):
    arguments = ["--model", model_dir, "--data", data_file, "--quick", "--seeds", 0, "--batch-size", 1,
                 "--steps", 100]
    assert command(monkeypatch, *arguments, main=compare.main) == 0
    lines = (here / "results/quick.jsonl").read_text().splitlines()
    found = {r["method"]: r for r in map(json.loads, lines)}
    assert set(found) == {"atp", "taylor", "random"} and len(lines) == 3
    assert all({"space", "prune", "seed", "budget", "lora_steps", "seconds", "val_loss", "accuracy",
                "peak_memory_bytes"} <= r.keys() for r in found.values())
    assert all(abs(r["obtained_prune"] - 0.4) < 0.01 for r in found.values())
    assert found["atp"]["flips"] is not None
    assert command(monkeypatch, *arguments, main=compare.main) == 0
    assert (here / "results/quick.jsonl").read_text().splitlines() == lines
    assert "0 of them to do" in capsys.readouterr().out
    assert command(monkeypatch, *arguments, "--tune", main=compare.main) == 0
    tuned = {r["method"]: r for r in compare.read_results(here / "results/tune.jsonl")}
    for method, r in tuned.items():  # the same run, measured on other rows
        assert r["flips"] == found[method]["flips"] and r["val_loss"] != found[method]["val_loss"]
        assert r["accuracy"] is None
    assert command(monkeypatch, *arguments, "--batch-size", 3, main=compare.main) == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.long
def test_equal_time_from_measured_costs(monkeypatch, tmp_path, setting):
    """The cell by steps comes first, its results set the sizes that are timed; neither is ever repeated."""
    path = tmp_path / "results/main.jsonl"
    methods = {name: compare.METHODS[name] for name in ("atp", "random", "paper")}
    waves = compare.main_jobs(["dims"], [0.4], [0], methods)
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


def test_a_setting_counts_only_where_a_method_reads_it(monkeypatch, here, quick, capsys):
    """With another T_end than now, results of Taylor stay as good as they were, and ATP's are refused."""
    monkeypatch.setattr(compare, "run_all", lambda *_: None)
    arguments, setting = quick
    for method, status in (("taylor", 0), ("atp", 2)):
        r = result(method, 3.0) | {"options": compare.METHODS[method], "setting": setting,
                                   "defaults": vars(compare.train.Config()) | {"freeze_at": 0.3}}
        write_results(here / "results/quick.jsonl", [r])
        assert command(monkeypatch, *arguments, main=compare.main) == status
    assert "freeze_at" in capsys.readouterr().err


@pytest.mark.parametrize("changed", [["--data", "none.jsonl"], ["--model", "none"], ["--ratios", "0.4", "2"],
                                     ["--steps", "0"], ["--ablations"]])
def test_what_no_run_could_use_is_refused_at_once(monkeypatch, here, quick, capsys, changed):
    assert command(monkeypatch, *quick[0], *changed, main=compare.main) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and not list(here.rglob("*.jsonl"))


def test_the_search_of_a_longer_run_is_as_long():
    job = dict(method="two-stage", options={"freeze_at": 0.5}, space="dims", prune=0.4, seed=0, budget="time")
    options = compare.options_of(job, {"steps": 100}, 125)
    assert options["steps"] == 125 and options["freeze_at"] * 125 == pytest.approx(50)
    assert compare.options_of(job, {"steps": 100}, 50)["freeze_at"] == 0.5  # of a shorter one, in proportion


def test_every_job_of_the_main_table_is_a_valid_run():
    waves = compare.main_jobs(["dims", "heads"], [0.3, 0.4, 0.5], [0, 1, 2], compare.METHODS)
    jobs = [job for wave in waves + compare.ablation_jobs(["dims", "heads"], [0]) for job in wave]
    of_the_table = {compare.key(job) for job in jobs if job["method"] in compare.METHODS}
    assert len(of_the_table) == 3 * (1 + 6 * 7 + 6 * 6)
    for job in jobs:
        compare.train.Config(**compare.options_of(job, {"steps": 100}, 100))
    assert compare.OF_THE_SEARCH <= vars(compare.train.Config()).keys()


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
    assert ("| taylor | 0.1250 ± 0.0750 | 1 of 4 | 0.2000 ± 0.0000 | 0 of 2 |"
            in compare.overall(rows + other_cell + ahead))
    assert compare.check(rows) == 0
    fewer = rows[:-1]  # a cell that lacks a seed does not count
    assert compare.check(fewer) == 0 and len(compare.margins(fewer)) == 1
    assert compare.check(rows + [result("magnitude", 2.8, 0, "time")]) == 1
    assert compare.check([]) == 1
