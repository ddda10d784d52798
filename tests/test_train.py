"""The loop on a random model: it learns, prunes, freezes, exports, resumes, and refuses what it cannot do."""
import json
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_same_run, command, content, random_model, read_log

import atp
import data
import export
import llama
import train
from scripts import measures, prepare
from scripts.criteria import CRITERIA
from scripts.find_model import find

long = pytest.mark.long


# ------------------------------------------------------------------------------------------------- whole runs

def check_run(run):
    """What holds of every finished run: the loss fell, the budget is met to within one chunk, the exported
    model is the trained one."""
    summary, log = json.loads((run / "summary.json").read_text()), read_log(run)
    config = train.Config(**llama.read_tensors(run / "ckpt.pt", mmap=False)["config"])
    base = llama.LlamaConfig.read(Path(config.model) / "params.json")
    groups = atp.Groups(base, config.space, config.round_to, config.uniform)
    losses, value = [line["loss"] for line in log if "loss" in line], summary["val_loss"]
    assert log[-1]["step"] == config.steps + (8 if config.decisions == "two-stage" else 0)
    assert losses[-1] < losses[0] and value["exported"] < value["base"]
    rounding = (0.05, 0.1) if config.dtype == "bfloat16" else (1e-4, 1e-4)
    assert abs(value["exported"] - value["pruned" if "pruned" in value else "tuned"]) < rounding[0] and summary["max_logit_diff"] < rounding[1]
    assert summary["requested_prune"] == (0 if config.decisions == "none" else config.prune)
    over = summary["obtained_prune"] - summary["requested_prune"]
    assert 0 <= over < int(groups.chunk_cost.max()) / groups.total
    name = "pruned" if summary["requested_prune"] else "tuned"
    kinds, of_base, kept = summary["kinds"], summary["groups"]["base"], summary["groups"]["kept"]
    search = [line for line in log if line["phase"] == "search"]
    assert all(1 - summary["obtained_prune"] <= line["budget"] + 1e-9 for line in search)
    assert all(line["phase"] == "tune" and not {"budget", "kept"} & line.keys() for line in log[len(search):])
    if search and config.decisions == "atp":
        assert search[-1]["kept"] == kept and search[-1]["budget"] == pytest.approx(1 - summary["obtained_prune"])
    assert kinds == list(atp.SPACES[config.space])
    assert len(of_base) == base.n_layers and sum(map(sum, of_base)) == len(groups) >= sum(map(sum, kept))
    assert summary["config"]["steps"] == config.steps and summary["versions"]["torch"] == torch.__version__
    assert summary["seconds"].keys() >= {"search", "tune", "evaluation"} and summary["seconds"]["tune"] > 0
    pruned = llama.load(run / "pruned")
    assert llama.count_parameters(pruned) == summary["params"][name] == summary["params"]["exported"]
    assert pruned.norm.weight.dtype == getattr(torch, config.dtype)
    return config, pruned


@pytest.mark.parametrize("extra", [
    "--space heads --prune 0.5 --uniform --round-to 4",
    "--paper",
    "--alternate --generator-every 3 --answer-only --accumulate 2",
    "--dtype bfloat16 --checkpointing",
    "--decisions two-stage",
    "--decisions taylor --no-slice-at-freeze",
    *[pytest.param(extra, marks=long) for extra in (
        "--space heads --prune 0.5", "--no-slice-at-freeze", "--straight-through --lasso none",
        "--alternate --no-aware", "--decisions magnitude", "--decisions activation", "--decisions random",
        "--decisions none")]])
def test_a_run_learns_prunes_and_exports(monkeypatch, options, tmp_path, extra):
    assert command(monkeypatch, *options, *extra.split()) == 0
    config, pruned = check_run(tmp_path / "run")
    if config.uniform:
        size = pruned.config.layers[0]
        assert all(other == size for other in pruned.config.layers) and size.hidden_dim % 4 == 0


def test_the_searched_budget_anneals_to_the_target(finished_run):
    check_run(finished_run)
    kept = [line["budget"] for line in read_log(finished_run) if line["phase"] == "search"]
    assert kept == sorted(kept, reverse=True) and kept[0] == 1 and any(0.62 < x < 1 for x in kept)
    assert kept[-1] == pytest.approx(0.6, abs=0.02)


def test_slicing_at_the_freeze_makes_no_jump(monkeypatch, options, tmp_path, finished_run):
    """At the freeze, the cut model's validation loss is the masked one's; the exported models end alike."""
    assert command(monkeypatch, *options, "--no-slice-at-freeze") == 0
    sliced, masked = ({line["step"]: line["val_loss"] for line in read_log(run) if "val_loss" in line}
                      for run in (finished_run, tmp_path / "run"))
    assert sliced[8] == pytest.approx(masked[8], abs=1e-5)
    assert sliced[16] == pytest.approx(masked[16], abs=0.05)


# In the search, at the freeze, after it.
@pytest.mark.parametrize("stop", [pytest.param(5, marks=long), 8, 11])
def test_a_resumed_run_ends_like_an_uninterrupted_one(monkeypatch, options, tmp_path, capsys, stop):
    """Asked by SIGTERM to stop, it saves after the step and says how to go on: to the same log and model."""
    whole, step = tmp_path / "whole", train.Run.advance
    options = [*options, "--paper", "--slice-at-freeze", "--log-every", 1]
    assert command(monkeypatch, *options, "--out", whole) == 0

    def interrupted(run):
        if run.step == stop - 1:
            assert callable(signal.getsignal(signal.SIGTERM))
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "advance", interrupted)
        assert command(patch, *options) == 130
    assert f"--resume {tmp_path / 'run'}" in capsys.readouterr().out
    assert read_log(tmp_path / "run")[-1]["step"] == stop and not (tmp_path / "run/pruned").exists()
    assert command(monkeypatch, "--resume", tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", whole)


def test_a_run_that_ends_between_checkpoint_and_log_loses_neither(monkeypatch, options, tmp_path,
                                                                  finished_run):
    """In the last of its five saves, of which each writes two files."""
    write, written = data.write_atomic, []

    def dying(path, how):
        write(path, how)
        written.append(path)
        if len(written) == 9:
            raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(data, "write_atomic", dying)
        assert command(patch, *options) == 9
    assert command(monkeypatch, "--resume", tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", finished_run)


# ----------------------------------------------------------------------------------------- the players' steps

@pytest.mark.parametrize("decisions", ["atp", "two-stage", *CRITERIA, "none"])
def test_methods_differ_in_their_decisions_alone(model_dir, data_file, tokenizer, decisions):
    """Criteria, and no decisions, are cut before the first step; two-stage learns without LoRA first; LoRA
    learns alike in all."""
    model = llama.load(model_dir)
    config = train.Config(model=str(model_dir), steps=8, seq_len=32, batch_size=4, lr=1e-2, freeze_at=0.5,
                          decisions=decisions)
    run = train.Run(config, model, data.load([str(data_file)], tokenizer, config.seq_len))
    run.decide_first()
    assert run.decisions.frozen == run.cut == (decisions not in ("atp", "two-stage"))
    before, learned, lr = {}, [], []
    while run.step < run.steps:
        terms = run.advance()
        now = {name: p.detach().clone() for name, p in model.lora().items()}
        learned.append([name for name in now if name in before and not torch.equal(now[name], before[name])])
        before, lr = now, lr + [terms[key] for key in ("lr",) if key in terms]
    assert lr == pytest.approx([1e-2] + [1e-2 * (0.55 + 0.45 * math.cos(math.pi * i / 7)) for i in range(7)])
    assert len(learned[-1]) == len(now) == 3 * 7 * 2  # after a cut, too, the optimizer moves every parameter
    assert [bool(names) for names in learned[1:3]] == [decisions != "two-stage"] * 2
    kept = run.groups.kept(run.decisions.d) / run.groups.total
    assert kept == pytest.approx(1 if decisions == "none" else 0.6, abs=0.01) and run.cut
    assert kept * run.groups.total == pytest.approx(sum(linear.weight.numel() for linear in model.linears()))


def searching_run(model_dir, data_file, tokenizer, **config):
    """A run in the middle of its search that has no validation split: none of its steps may look there."""
    model = llama.load(model_dir)
    config = train.Config(model=str(model_dir), steps=100, seq_len=32, batch_size=4, lr=1e-2,
                          freeze_at=0.5, **config)
    rows = data.load([str(data_file)], tokenizer, config.seq_len)._replace(validation=None, questions=None)
    run = train.Run(config, model, rows)
    for linear in model.linears():
        linear.B.data.normal_(std=0.1)
    run.generator_step(0)  # one of the warm start
    run.step = 45  # the budget is at its target
    return run


def lora_of(run, removed: bool, what=lambda B: B):
    """B (or its gradient) of w1 and w3, in the removed or in the kept groups of the first layer."""
    linears, axes = run.model.layers[0].linears(), run.groups.axes[0]
    return [what(linears[name].B)[run.decisions.d[axes[(name, 0)][0]] != removed] for name in ("w1", "w3")]


def test_the_players_move_apart_and_never_look_at_the_validation_split(model_dir, data_file, tokenizer):
    run = searching_run(model_dir, data_file, tokenizer, alternate=True, lasso="none")
    decisions, lora = run.decisions, {name: p.detach().clone() for name, p in run.model.lora().items()}
    assert decisions.generator.prior.std() > 0.5  # the warm start
    logits, rows = decisions.generator().detach(), run.rows
    run.rows = rows._replace(train=None)
    run.generator_step(0)
    assert not torch.equal(decisions.generator(), logits) and 0 < int((~decisions.d).sum()) < len(decisions.d)
    for name, p in run.model.lora().items():
        assert torch.equal(p, lora[name]) and p.grad is None
    logits, d = decisions.generator().detach(), decisions.d
    run.rows = rows._replace(decision=None)
    run.lora_step()
    assert torch.equal(decisions.generator(), logits) and decisions.d is d
    # Through the LoRA-aware forward, B gets gradients where its groups are off just as where they are on.
    for removed in (True, False):
        assert all(len(rows) and rows.any(dim=1).all() for rows in lora_of(run, removed, lambda B: B.grad))


def test_the_warm_start_costs_nothing(model_dir, data_file, tokenizer):
    """While everything is kept, LoRA's own passes add up Taylor's saliency; the search begins from it."""
    run = searching_run(model_dir, data_file, tokenizer)
    decisions, generator = run.decisions, run.decisions.generator
    generator.gradients.zero_()
    run.step, wanted = 0, 0
    while run.step < decisions.warm_steps:
        tokens, targets = run.rows.train.batch(run.config.batch_size, run.step, run.config.seed)
        d = torch.ones(len(run.groups), requires_grad=True)
        loss = run.model.nll(tokens, targets, run.groups.masks(d, aware=False)) / (targets >= 0).sum()
        wanted += torch.autograd.grad(loss, d)[0].abs()
        assert run.advance()["loss"] == pytest.approx(loss.item(), abs=1e-5) and decisions.d.all()
    assert decisions.warm_steps == 25 and torch.allclose(generator.gradients, wanted, rtol=1e-3)
    assert generator().std().item() == pytest.approx(2, rel=1e-4)
    assert torch.equal(decisions.final(), run.groups.decide(atp.log_saliency(run.groups, wanted), 0.6))
    prior = generator.prior.clone()
    run.advance()
    assert not decisions.d.all() and torch.equal(generator.prior, prior)
    assert not torch.equal(generator(), prior)


def test_one_pass_teaches_both_players(model_dir, data_file, tokenizer):
    """The generator's gradient is that of the loss in its logits, by autograd all the way; so is LoRA's."""
    run = searching_run(model_dir, data_file, tokenizer, lasso="none")
    tokens, targets = run.rows.train.batch(run.config.batch_size, run.step, run.config.seed)
    soft = run.decisions.soft(run.step)
    loss = run.model.nll(tokens, targets, run.groups.masks(soft, aware=False)) / (targets >= 0).sum()
    players = [list(run.decisions.generator.parameters()), list(run.model.lora().values())]
    of_generator, of_lora = (torch.autograd.grad(loss, player, retain_graph=True) for player in players)
    before = [[p.detach().clone() for p in player] for player in players]
    assert run.joint_step()["loss"] == pytest.approx(loss.item(), abs=1e-5)
    for player, old, wanted, norm in zip(players, before, (of_generator, of_lora), (3, 1)):
        clipping = min(1, norm / torch.stack([g.norm() for g in wanted]).norm())
        for p, gradient in zip(player, wanted, strict=True):
            assert torch.allclose(p.grad, gradient * clipping, atol=1e-5)
        assert not all(map(torch.equal, player, old))
    assert 0 < int((~run.decisions.d).sum()) < len(run.decisions.d)


def test_accumulated_batches_count_as_one(model_dir, data_file, tokenizer):
    """Two passes of 4 rows are one of 8: the loss and every gradient, however many targets each pass has."""
    run = searching_run(model_dir, data_file, tokenizer, accumulate=2)
    batches = run.train_batches()
    for i, (tokens, *_) in enumerate(batches):  # at step 45, these are the 90th and the 91st
        assert torch.equal(tokens, run.rows.train.batch(4, 90 + i, run.config.seed)[0])
    batches[0][1][:, 5:] = data.IGNORE
    batches = [(tokens, targets, (targets != data.IGNORE).sum()) for tokens, targets, _ in batches]
    both = [torch.cat(parts) for parts in zip(*(batch[:2] for batch in batches))]
    d = torch.ones(len(run.groups))
    once = run.gradients([(*both, sum(batch[2] for batch in batches))], d, False, run.lora)
    for a, b in zip(run.gradients(batches, d, False, run.lora), once, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lasso", ["proximal", "loss"])
def test_the_lasso_acts_in_the_loop(model_dir, data_file, tokenizer, lasso):
    run = searching_run(model_dir, data_file, tokenizer, alternate=True, lasso=lasso, lasso_weight=100.0)
    run.generator_step(0)
    before = {removed: lora_of(run, removed) for removed in (True, False)}
    run.lora_step()
    if lasso == "proximal":
        assert not any(rows.any() for rows in lora_of(run, removed=True))
    else:  # where B is removed, and only there, its gradient points along B
        for removed, rows in before.items():
            for gradient, row in zip(lora_of(run, removed, lambda B: B.grad), rows):
                along = torch.cosine_similarity(gradient, row)
                assert (along > 0.99).all() if removed else (along < 0.99).all()
    for rows, old in zip(lora_of(run, removed=False), before[False]):
        assert rows.any(dim=1).all() and abs(rows.norm() / old.norm() - 1) < 0.2


# ------------------------------------------------------------------------------------- what a user gets to see

def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def test_the_price_of_pruning_is_that_of_the_same_tuning_without(monkeypatch, options, tmp_path, capsys,
                                                                 finished_run):
    """Also if the run is killed while it tunes for comparison: it goes on there, and prunes nothing twice."""
    advance = train.Run.advance

    def dying(run):
        if run.config.decisions == "none" and run.step == 10:
            raise SystemExit(9)
        return advance(run)

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "advance", dying)
        assert command(patch, *options, "--dense") == 9
    assert not (tmp_path / "run/summary.json").exists()
    assert command(monkeypatch, "--resume", tmp_path / "run") == 0
    shown = capsys.readouterr().out
    assert command(monkeypatch, *options, "--decisions", "none", "--out", tmp_path / "none") == 0
    assert "dense" not in summary_of(finished_run)["val_loss"] and summary_of(finished_run)["retained"] is None
    pruned, found, alone = summary_of(finished_run), summary_of(tmp_path / "run"), summary_of(tmp_path / "none")
    assert list(found["val_loss"]) == ["base", "dense", "pruned", "exported"]
    assert list(alone["val_loss"]) == ["base", "tuned", "exported"] and alone["obtained_prune"] == 0
    for key in ("params", "val_loss", "accuracy"):
        assert found[key]["dense"] == alone[key]["tuned"] and found[key]["pruned"] == pruned[key]["pruned"]
    retained = math.exp(found["val_loss"]["dense"] - found["val_loss"]["pruned"])
    assert found["retained"] == pytest.approx(retained) and f"retained: {retained:.1%}" in shown
    assert found["by_format"].keys() == {"text", "prompt and answer"} and "perplexity by format: " in shown
    assert found["seconds"]["dense"] > 0
    assert_same_run(tmp_path / "run", finished_run)


def test_a_two_stage_run_goes_on_as_far_as_its_lora_steps_say(monkeypatch, options, tmp_path, capsys):
    """Four steps search before LoRA's first: of 8 in all, LoRA has done 4, and 6 are two more."""
    run = tmp_path / "run"
    assert command(monkeypatch, *options, "--decisions", "two-stage", "--steps", 4, "--freeze-at", 1) == 0
    assert read_log(run)[-1]["step"] == 8
    assert command(monkeypatch, "--resume", run, "--steps", 6) == 0
    assert read_log(run)[-1]["step"] == 10
    for steps in (0, -1, 3):
        assert command(monkeypatch, "--resume", run, "--steps", steps) == 2
        assert capsys.readouterr().err.count("\n") == 1 and read_log(run)[-1]["step"] == 10


def test_a_replaced_run_leaves_no_dense_run_behind(monkeypatch, options, tmp_path, capsys):
    assert command(monkeypatch, *options, "--dense", "--steps", 2, "--lr", 1e-9) == 0
    assert command(monkeypatch, *options, "--dense", "--steps", 4, "--overwrite") == 0
    found = summary_of(tmp_path / "run")["val_loss"]
    assert found["dense"] < found["base"] - 0.1 and read_log(tmp_path / "run/dense")[-1]["step"] == 4


def test_a_finished_run_says_so_and_goes_on_if_asked(monkeypatch, tmp_path, capsys, finished_run):
    """From step 16 to 20, with the decisions that it has."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = content(run)
    assert command(monkeypatch, "--resume", run) == 0
    assert "is finished" in capsys.readouterr().out
    assert {p: c for p, c in content(run).items() if p.name != "lock"} == {
        p: c for p, c in before.items() if p.name != "lock"}
    assert command(monkeypatch, "--resume", run, "--steps", 12) == 2
    assert "16 steps are done" in capsys.readouterr().err
    assert command(monkeypatch, "--resume", run, "--steps", 20) == 0
    assert read_log(run)[-1]["step"] == 20 and summary_of(run)["groups"] == summary_of(finished_run)["groups"]
    assert read_log(run)[:-2] == read_log(finished_run)
    config, _ = check_run(run)
    assert round(config.freeze_at * 20) == 8


def test_what_the_cut_leaves_is_drawn(monkeypatch, options, tmp_path, capsys):
    assert command(monkeypatch, *options, "--steps", 1) == 0
    shown = capsys.readouterr().out
    assert shown.count("cut: 55,264 to ") == 1
    groups = summary_of(tmp_path / "run")["groups"]
    for kind, name in enumerate(atp.SPACES["dims"]):
        line = next(line for line in shown.splitlines() if line.strip().startswith(name + " "))
        bars, percent = line.split()[1:]
        kept, of = ([layer[kind] for layer in groups[key]] for key in ("kept", "base"))
        assert percent == f"{sum(kept) / sum(of):.0%}" and len(bars) == len(kept)
        eighths = ["▁▂▃▄▅▆▇█".index(bar) for bar in bars]  # of 0 to 7, the last only if all stay
        assert all(i / 7 <= n / m < (i + 1) / 7 for i, n, m in zip(eighths, kept, of))


def test_a_step_that_compiles_does_not_count_in_the_time_left(monkeypatch, options, tmp_path, capsys):
    step = train.Run.advance

    def slow_once(run):
        if run.step == 0:
            time.sleep(3)
        return step(run)

    monkeypatch.setattr(train.Run, "advance", slow_once)
    assert command(monkeypatch, *options, "--eval-every", 100, "--log-every", 5) == 0
    left = re.search(r"step +3/16 .* ([0-9.]+) min left", capsys.readouterr().out)
    assert float(left[1]) < 0.2


def test_a_model_is_found_where_people_point(monkeypatch, options, tmp_path, capsys, finished_run, model_dir):
    """A run means its pruned model; what is no model directory is told which command makes one of it."""
    assert find(finished_run) == finished_run / "pruned" and find(model_dir) == model_dir
    shutil.copytree(model_dir, tmp_path / "meta/original")
    assert find(tmp_path / "meta") == tmp_path / "meta/original"
    assert command(monkeypatch, finished_run, "--max-tokens", 2, main=llama.main) == 0
    assert command(monkeypatch, *options, "--model", finished_run, "--steps", 1, "--prune", 0.2) == 0
    capsys.readouterr()
    for name in ("hf", "begun", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    (tmp_path / "begun/ckpt.pt").write_text("")
    (tmp_path / "m.gguf").write_text("GGUF")
    hints = {"hf": "scripts/convert_hf.py", "begun": "--resume", "empty": "params.json",
             "m.gguf": "scripts/from_gguf.py", "meta-llama/Llama-2-7b": "hf download"}
    for name, hint in hints.items():
        for main, given in ((llama.main, [tmp_path / name]),
                            (train.main, [*options, "--model", tmp_path / name, "--out", tmp_path / "new"])):
            assert command(monkeypatch, *given, main=main) == 2
            error = capsys.readouterr().err
            assert hint in error and error.count("\n") == 1 and not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------ what is around it

def test_export_again_from_the_checkpoint(monkeypatch, options, tmp_path, capsys, finished_run):
    assert command(monkeypatch, *options, "--no-slice-at-freeze") == 0
    for run, again in ((finished_run, "cut"), (tmp_path / "run", "masked")):
        assert command(monkeypatch, run, "--out", tmp_path / again, main=export.main) == 0
        ours, theirs = (llama.load(path).parameters() for path in (run / "pruned", tmp_path / again))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    half = tmp_path / "half"
    assert command(monkeypatch, finished_run, "--out", half, "--dtype", "bfloat16", main=export.main) == 0
    capsys.readouterr()
    ask = [half, "--prompt", "On day 5 the bank shall", "--max-tokens", 8]
    assert command(monkeypatch, *ask, main=llama.main) == 0
    assert "8 tokens" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(monkeypatch, options, tmp_path,
                                                                          capsys):
    step = train.Run.advance

    def poisoned(run):
        if run.step == 6:
            next(iter(run.model.lora().values())).data.fill_(math.nan)
        return step(run)

    monkeypatch.setattr(train.Run, "advance", poisoned)
    assert command(monkeypatch, *options) == 2
    error = capsys.readouterr().err
    assert "not finite" in error and "--lr" in error and error.count("\n") == 1
    saved = llama.read_tensors(tmp_path / "run/ckpt.pt", mmap=False)
    assert saved["step"] == 4 and all(p.isfinite().all() for p in saved["lora"].values())


def test_resuming_with_other_data_or_another_base_is_refused(monkeypatch, options, tmp_path, data_file,
                                                             model_dir, capsys):
    texts, model = tmp_path / "copy.jsonl", tmp_path / "model"
    shutil.copytree(model_dir, model)
    texts.write_bytes(data_file.read_bytes())
    assert command(monkeypatch, *options, "--data", texts, "--model", model, "--steps", 1) == 0
    texts.write_bytes(data_file.read_bytes() + b'{"text": "one more"}\n')
    assert command(monkeypatch, "--resume", tmp_path / "run") == 2
    assert "changed since the checkpoint" in capsys.readouterr().err
    texts.write_bytes(data_file.read_bytes())
    llama.save(random_model(lora=False, seed=1), model, model_dir)
    assert command(monkeypatch, "--resume", tmp_path / "run") == 2
    assert "changed since the checkpoint" in capsys.readouterr().err


def test_a_run_is_replaced_only_when_asked(monkeypatch, options, tmp_path, capsys, finished_run):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = content(run)
    assert command(monkeypatch, *options, "--steps", 10) == 2
    error = capsys.readouterr().err
    assert "--resume" in error and "--overwrite" in error and content(run) == before
    assert command(monkeypatch, *options, "--steps", 10, "--overwrite") == 0
    assert read_log(run)[-1]["step"] == 10


def test_a_model_directory_may_hold_more_than_the_model(monkeypatch, options, tmp_path, model_dir):
    model = tmp_path / "model"
    shutil.copytree(model_dir, model)
    (model / ".git").mkdir()
    (model / "README.md").write_text("A LLaMA.")
    assert command(monkeypatch, *options, "--model", model, "--steps", 1) == 0


def test_a_checkpoint_of_a_7b_run_is_under_600_mb():
    """LLaMA-2-7B, rank 8, all seven linears: what is learned and AdamW's two moments, in float32."""
    config = llama.LlamaConfig(dim=4096, n_layers=32, n_heads=32, vocab_size=32000, multiple_of=256)
    groups = atp.Groups(config, "dims")
    with torch.device("meta"):
        model = llama.Llama(config)
        model.add_lora(8, 2.0)
    learned = [*model.lora().values(), *atp.Generator(groups).parameters()]
    assert llama.count_parameters(model) == 6_738_415_616
    assert 3 * 4 * sum(p.numel() for p in learned) + len(groups) < 600e6


def test_schedule_worked_by_hand():
    rise = [train.schedule(step, 110, warmup=10 / 110) for step in (0, 4, 9)]
    assert rise == pytest.approx([0.1, 0.5, 1.0])
    assert train.schedule(60, 110, 10 / 110) == pytest.approx(0.55)
    assert train.schedule(110, 110, 10 / 110) == pytest.approx(0.1)


@pytest.mark.parametrize("seq_len, few", [(16, False), (256, True)])
def test_the_data_line_has_epochs_and_a_warning_of_little_validation(model_dir, data_file, capsys, seq_len, few):
    config = train.Config(model=str(model_dir), data=[str(data_file)], device="cpu", seq_len=seq_len, steps=100,
                          batch_size=4, accumulate=2)
    run = train.open_run(config)
    rows, printed = [len(part.tokens) for part in run.rows[:3]], capsys.readouterr().out
    assert (rows[2] < 20) == few == ("warning: fewer than 20 rows of validation" in printed)
    sizes = "{} train, {} decision, {} validation".format(*rows)
    assert f"rows: {sizes}; {100 * 4 * 2 / rows[0]:.2g} epochs\n" in printed


def test_answer_accuracy_of_known_answers(model_dir, tokenizer):
    """A question whose answer is what the model would say is right, any other is wrong; options are ranked by
    likelihood."""
    model = llama.load(model_dir)
    prompt = "On day 5 the bank shall pay"
    ids = [tokenizer.bos] + tokenizer.encode([prompt])[0]
    scores = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
    likely = scores.argsort(descending=True).tolist()
    pieces = [t for t in likely if tokenizer.encode([tokenizer.decode([t])]) == [[t]]]
    options = tuple(tokenizer.decode([t]) for t in (pieces[-1], pieces[0], pieces[-2]))

    def score(text):
        row = ids + tokenizer.encode([text])[0] + [tokenizer.eos]
        logp = model(torch.tensor([row]))[0].log_softmax(-1)
        return sum(float(logp[i - 1, row[i]]) for i in range(len(ids), len(row))) / (len(row) - len(ids))

    best = max(options, key=score)
    for answer in options:
        asked = data.Example(prompt, answer, options)
        assert measures.answer_accuracy(model, tokenizer, [asked], 64) == (answer == best)
    assert measures.answer_accuracy(model, tokenizer, [data.Example(prompt, "lot 17")], 64) == 0
    assert measures.answer_accuracy(model, tokenizer, [], 64) is None


def test_answers_weighed_together_score_as_alone(model_dir, tokenizer, data_file):
    """Of unequal lengths, more than fit in one pass, some longer than a row."""
    model = llama.load(model_dir)
    examples = [example for example in prepare.read(data_file) if example.prompt][:40]
    examples += [example._replace(prompt=20 * example.prompt, answer=example.answer * n) for n, example in
                 enumerate(examples[:5], 1)]
    lengths = {len(ids) for ids, _ in data.encode(examples, tokenizer)}
    assert len({n for n in lengths if n < 120}) > 3 and max(lengths) > 121
    together = measures.answer_scores(model, tokenizer, examples, 120)
    for example, (score, greedy) in zip(examples, together, strict=True):
        (alone, greedy_alone), = measures.answer_scores(model, tokenizer, [example], 120)
        assert score == pytest.approx(alone, abs=1e-4) and greedy == greedy_alone


@long
def test_compiled_layers_take_new_decisions_without_compiling_again(monkeypatch, options, tmp_path,
                                                                    finished_run):
    """Without graph breaks; after the cut, each layer of another size is compiled once."""
    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile",
                        lambda self, **how: compile(self, backend="aot_eager", **how))
    counters, graphs, step = torch._dynamo.utils.counters, [], train.Run.advance
    counters.clear()

    def counted(run):
        terms = step(run)
        graphs.append(counters["stats"]["unique_graphs"])
        return terms

    monkeypatch.setattr(train.Run, "advance", counted)
    assert command(monkeypatch, *options, "--compile") == 0
    assert 0 < graphs[0] == graphs[7] < graphs[8] == graphs[-1] <= graphs[7] + 3
    assert not counters["graph_break"]
    for eager, compiled in zip(read_log(finished_run), read_log(tmp_path / "run"), strict=True):
        assert eager.get("kept") == compiled.get("kept")
        assert eager["loss"] == pytest.approx(compiled["loss"], abs=1e-3)


def test_the_loss_by_format_is_that_of_each_formats_records_alone(model_dir, data_file, tokenizer):
    """As if the other format's records were not in the file; nothing for a file of one format."""
    model, config = llama.load(model_dir), train.Config(model=str(model_dir), data=[str(data_file)], seq_len=32)
    run = SimpleNamespace(config=config, tokenizer=tokenizer)
    found = measures.loss_by_format(run, model)
    examples = data.split(prepare.read(data_file))["validation"]
    for name in ("text", "prompt and answer"):
        some = [example for example in examples if bool(example.prompt) == (name != "text")]
        rows = data.pack(data.encode(some, tokenizer), 32, False, tokenizer.eos)
        assert found[name] == pytest.approx(export.validation_loss(model, rows, 8))
    texts = data_file.with_name("texts.jsonl")
    texts.write_text("".join(line + "\n" for line in data_file.read_text().splitlines() if '"text"' in line))
    run.config = train.Config(model=str(model_dir), data=[str(texts)], seq_len=32)
    assert measures.loss_by_format(run, model) == {}
