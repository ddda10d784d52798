"""The comparison: what it runs, that it skips what is done, its table and its verdict by hand-made results."""
import json
import math
import sys
from pathlib import Path

import pytest
from conftest import command

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import compare  # noqa: E402


def result(method, loss, seed=0, budget="steps", space="dims", prune=0.4):
    return {"method": method, "space": space, "prune": prune, "seed": seed, "budget": budget, "val_loss": loss, "accuracy": 0.25,
            "seconds": 10.0, "peak_memory_bytes": 2**30, "lora_steps": 100}


def test_quick_runs_once_and_is_not_repeated(monkeypatch, tmp_path, model_dir, data_file, capsys):
    monkeypatch.setattr(compare, "HERE", tmp_path)
    (tmp_path / "results").mkdir()
    arguments = ["--model", model_dir, "--data", data_file, "--quick", "--seeds", 0, "--batch-size", 1, "--steps", 100]
    assert command(monkeypatch, *arguments, main=compare.main) == 0
    lines = (tmp_path / "results/quick.jsonl").read_text().splitlines()
    found = {r["method"]: r for r in map(json.loads, lines)}
    assert set(found) == {"atp", "taylor", "random"} and len(lines) == 3
    assert all({"space", "prune", "seed", "budget", "lora_steps", "seconds", "val_loss", "accuracy", "peak_memory_bytes"} <= r.keys()
               for r in found.values())
    assert all(abs(r["obtained_prune"] - 0.4) < 0.01 for r in found.values()) and found["atp"]["flips"] is not None
    assert command(monkeypatch, *arguments, main=compare.main) == 0
    assert (tmp_path / "results/quick.jsonl").read_text().splitlines() == lines
    assert "0 of them to do" in capsys.readouterr().out
    assert command(monkeypatch, *arguments, "--tune", main=compare.main) == 0
    tuned = {r["method"]: r for r in compare.read_results(tmp_path / "results/tune.jsonl")}
    for method, r in tuned.items():  # the same run, measured on other rows
        assert r["flips"] == found[method]["flips"] and r["val_loss"] != found[method]["val_loss"] and r["accuracy"] is None
    assert command(monkeypatch, *arguments, "--batch-size", 3, main=compare.main) == 2  # never mixed with other settings
    assert "other settings" in capsys.readouterr().err


def test_equal_time_gives_a_cheaper_method_more_steps():
    costs = {("dims", 0.4): {"atp": (30.0, 0.3), "taylor": (22.0, 0.1), "paper": (60.0, 0.5)}}
    job = dict(method="taylor", options={}, space="dims", prune=0.4, seed=0, budget="time")
    assert compare.lora_steps(job, costs, {"steps": 100}) == 180  # 8 seconds to spare, 0.1 a step
    assert compare.lora_steps(job | {"method": "paper"}, costs, {"steps": 100}) == 50
    assert compare.lora_steps(job | {"budget": "steps"}, costs, {"steps": 100}) == 100


def test_equal_time_from_measured_costs(monkeypatch, tmp_path, model_dir, data_file):
    """The cell by steps comes first; its results set the sizes that are timed; done once, neither is repeated."""
    monkeypatch.setattr(compare, "HERE", tmp_path)
    path, setting = tmp_path / "results/main.jsonl", {"model": str(model_dir), "data": [str(data_file)], "steps": 20, "batch_size": 1, "seq_len": 64, "dtype": "float32", "device": "cpu"}
    methods = {name: compare.METHODS[name] for name in ("atp", "random", "paper")}
    waves = compare.main_jobs(["dims"], [0.4], [0], methods)
    compare.run_all(waves, setting, path, 1)
    found = {(r["method"], r["budget"]): r for r in compare.read_results(path)}
    costs = found["random", "time"]["costs"]
    assert set(costs) == set(methods) and all(whole > 19 * step > 0 for whole, step in costs.values())
    for method in ("random", "paper"):
        r = found[method, "time"]
        assert r["lora_steps"] == compare.lora_steps(r, {("dims", 0.4): costs}, setting) and r["costs"] == costs
    before = path.read_text()
    monkeypatch.setattr(compare, "measure_costs", None)
    compare.run_all(waves, setting, path, 1)
    assert path.read_text() == before


def test_a_setting_counts_only_where_a_method_reads_it(monkeypatch, tmp_path, model_dir, data_file, capsys):
    """With another T_end than now, results of Taylor stay as good as they were, and ATP's are refused."""
    monkeypatch.setattr(compare, "HERE", tmp_path)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(compare, "run_all", lambda *_: None)
    setting = compare.shared({"model": str(model_dir), "data": [str(data_file)], "steps": 400, "batch_size": 2,
                              "generator_batch_size": 4, "dtype": "float32", "device": "cpu"})
    arguments = ["--model", model_dir, "--data", data_file, "--quick"]
    for method, status in (("taylor", 0), ("atp", 2)):
        r = result(method, 3.0) | {"options": compare.METHODS[method], "setting": setting,
                                   "defaults": vars(compare.train.Config()) | {"freeze_at": 0.3}}
        (tmp_path / "results/quick.jsonl").write_text(json.dumps(r) + "\n")
        assert command(monkeypatch, *arguments, main=compare.main) == status
    assert "freeze_at" in capsys.readouterr().err


def test_the_search_of_a_longer_run_is_as_long():
    job = dict(method="two-stage", options={"freeze_at": 0.5}, space="dims", prune=0.4, seed=0, budget="time")
    options = compare.options_of(job, {"steps": 100}, 125)
    assert options["steps"] == 125 and options["freeze_at"] * 125 == pytest.approx(50)
    assert compare.options_of(job, {"steps": 100}, 50)["freeze_at"] == 0.5  # of a shorter one, in proportion


def test_every_job_of_the_main_table_is_a_valid_run():
    waves = compare.main_jobs(["dims", "heads"], [0.3, 0.4, 0.5], [0, 1, 2], compare.METHODS)
    jobs = [job for wave in waves + compare.ablation_jobs(["dims", "heads"], [0]) for job in wave]
    assert len({compare.key(job) for job in jobs if job["method"] in compare.METHODS}) == 3 * (1 + 6 * 7 + 6 * 6)
    for job in jobs:
        compare.train.Config(**compare.options_of(job, {"steps": 100}, 100))


def test_ablations_are_shown_beside_the_same_runs_of_the_main_table(monkeypatch, tmp_path):
    """Those with its setting, space and ratio, without the others; how far behind is paired by seed."""
    monkeypatch.setattr(compare, "HERE", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "RESULTS.md").write_text("a <!-- main -->\n<!-- end -->\nb <!-- ablations -->\nold\n<!-- end -->\nc")
    main = [result("none", 2.5, space="-", prune=0.0), result("atp", 3.0), result("atp", 3.5, 1), result("atp", 9.0, prune=0.3),
            result("magnitude", 9.0), result("taylor", 3.1)]
    longer = result("two-stage", 9.0) | {"setting": {"steps": 900}}
    for name, rows in (("main", main), ("ablations", [result("no lasso", 3.6, 1)])):
        rows = [{"setting": {"steps": 500}} | r for r in rows] + [longer] * (name == "main")
        (tmp_path / f"results/{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert command(monkeypatch, "--table", main=compare.main) == 0
    before, after = (tmp_path / "RESULTS.md").read_text().split("\nb ")
    assert before.startswith("a <!-- main -->\n| equal") and "| magnitude |" in before and "old" not in after and after.endswith("\nc")
    shown = {line.split(" | ")[3]: line.split(" | ")[4:8] for line in after.splitlines() if line.startswith("| steps")}
    assert shown.keys() == {"none", "atp", "taylor", "no lasso"} and shown["atp"][0] == "2"
    assert shown["taylor"][3] == "0.1000" and shown["no lasso"][3] == "0.1000"  # each behind ATP of its own seed


def test_table_and_verdict_by_hand():
    rows = [result("none", 3.0, space="-", prune=0.0), result("none", 3.2, 1, space="-", prune=0.0)]
    rows += [result("atp", 3.1, seed) for seed in (0, 1)]
    rows += [result(method, 3.3, seed, budget) for method in compare.BASELINES for seed in (0, 1) for budget in ("steps", "time")]
    text = compare.table(rows)
    assert f"| steps | dims | 40% | atp | 2 | {math.exp(3.1):.2f} ± 0.00 | 0.0000 ± 0.1414 | - | 1.005 ± 0.142 |" in text
    assert f"| time | dims | 40% | taylor | 2 | {math.exp(3.3):.2f} ± 0.00 | 0.2000 ± 0.1414 | 0.2000 ± 0.0000 |" in text
    assert text.count("| time | dims | 40% | atp |") == 1
    assert compare.margins(rows) == {(budget, "dims", 0.4): (pytest.approx(0.2), "taylor") for budget in ("steps", "time")}
    other_cell = [result("atp", 3.1, prune=0.3), result("taylor", 3.3, prune=0.3)]
    ahead = [result("atp", 3.4, prune=0.5), result("taylor", 3.3, prune=0.5)]  # by -0.1; the others are behind by 0.2
    assert "| taylor | 0.1250 ± 0.0750 | 1 of 4 | 0.2000 ± 0.0000 | 0 of 2 |" in compare.overall(rows + other_cell + ahead)
    assert compare.check(rows) == 0
    assert compare.check(rows[:-1]) == 0 and len(compare.margins(rows[:-1])) == 1  # a cell that lacks a seed does not count
    assert compare.check(rows + [result("magnitude", 2.8, 0, "time")]) == 1
    assert compare.check([]) == 1
