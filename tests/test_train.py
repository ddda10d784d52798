"""The loop on a random model: it learns, prunes, freezes, exports, resumes; and the commands refuse what they cannot do."""
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import command

import export
import llama
import train
from atp import log_saliency


def read_log(run, timing=False):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return lines if timing else [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


@pytest.mark.parametrize("extra", [[], ["--space", "heads", "--prune", "0.5"], ["--no-slice-at-freeze"], ["--paper"],
                                   ["--answer-only", "--accumulate", "2", "--alternate", "--generator-every", "3"], ["--checkpointing"],
                                   ["--dtype", "bfloat16"], ["--uniform", "--space", "heads", "--round-to", "4"], ["--straight-through", "--lasso", "none"], ["--alternate", "--no-aware"],
                                   *[["--decisions", name] for name in train.DECISIONS[1:-1]]])
def test_a_run_learns_prunes_and_exports(monkeypatch, options, tmp_path, extra):
    if "--decisions" in extra and "two-stage" not in extra:
        options = options[:-2]  # no search, so none of its flags
    assert command(monkeypatch, *options, *extra) == 0
    summary, log = json.loads((tmp_path / "run/summary.json").read_text()), read_log(tmp_path / "run")
    losses = [line["loss"] for line in log if "loss" in line]
    assert log[-1]["step"] == 16 + 8 * ("two-stage" in extra) and losses[-1] < losses[0]
    loss = summary["val_loss"]
    assert loss["exported"] < loss["base"] and abs(loss["exported"] - loss["pruned"]) < (0.05 if "bfloat16" in extra else 1e-4)
    config = train.Config(**export.read_checkpoint(tmp_path / "run")["config"])
    groups = train.Groups(llama.LlamaConfig.read(Path(config.model) / "params.json"), config.space, config.round_to, config.uniform)
    assert 0 <= summary["obtained_prune"] - summary["requested_prune"] < int(groups.chunk_cost.max()) / groups.total
    assert summary["max_logit_diff"] < (0.1 if "bfloat16" in extra else 1e-4)
    assert all(line["kept"] == log[-1]["kept"] for line in log if line["phase"] == "tune")
    assert llama.count_parameters(llama.load(tmp_path / "run/pruned")) == summary["params"]["pruned"]


def test_the_searched_budget_anneals_to_the_target(monkeypatch, options, tmp_path):
    assert command(monkeypatch, *options) == 0
    kept = [line["kept"] for line in read_log(tmp_path / "run")]
    assert kept == sorted(kept, reverse=True) and kept[0] == 1 and any(0.62 < x < 1 for x in kept) and kept[-1] == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("decisions", train.DECISIONS)
def test_methods_differ_in_their_decisions_alone(model_dir, data_file, tokenizer, decisions):
    """Static and no decisions are cut before the first step, two-stage learns without LoRA first; all LoRA learns alike."""
    model = llama.load(model_dir)
    config = train.Config(model=str(model_dir), steps=8, seq_len=32, batch_size=4, lr=1e-2, freeze_at=0.5, decisions=decisions)
    groups = train.Groups(model.config, config.space)
    export.add_lora(model, rank=4, scale=2.0)
    run = train.Run(config, model, groups, train.data.load([str(data_file)], tokenizer, config.seq_len))
    run.decide_first()
    assert run.frozen == run.sliced == (decisions not in ("atp", "two-stage"))
    before, learned, lr = {}, [], []
    while run.step < run.steps:
        terms = run.advance()
        now = {name: p.detach().clone() for name, p in export.lora_parameters(model).items()}
        learned.append([name for name in now if name in before and not torch.equal(now[name], before[name])])
        before, lr = now, lr + [terms[key] for key in ("lr",) if key in terms]
    assert lr == [config.lr * train.schedule(step, 8, config.warmup) for step in range(8)]
    assert len(learned[-1]) == len(now) == 3 * 7 * 2  # after a cut, too, the optimizer moves every LoRA parameter
    assert [bool(names) for names in learned[1:3]] == [decisions != "two-stage"] * 2
    assert groups.kept(run.d) / groups.total == pytest.approx(1 if decisions == "none" else 0.6, abs=0.01)


def searching_run(model_dir, data_file, tokenizer, **config):
    """A run in the middle of its search that has no validation split at all: none of its steps may look there."""
    model = llama.load(model_dir)
    config = train.Config(model=str(model_dir), steps=100, seq_len=32, batch_size=4, lr=1e-2, warmup=0.0, freeze_at=0.5, **config)
    rows = train.data.load([str(data_file)], tokenizer, config.seq_len)
    rows.validation = rows.questions = None
    torch.manual_seed(0)
    groups = train.Groups(model.config, "dims")
    export.add_lora(model, rank=4, scale=2.0)
    for linear in model.linears():
        linear.B.data.normal_(std=0.1)
    run = train.Run(config, model, groups, rows)
    run.generator_step()  # one of the warm start
    run.step = 45  # the budget is at its target
    return run


def lora_of(run, removed: bool, what=lambda B: B):
    """B (or its gradient) of w1 and w3, in the removed or in the kept groups of the first layer."""
    linears, axes = run.model.layers[0].linears(), run.groups.axes[0]
    return [what(linears[name].B)[run.d[axes[(name, 0)][0]] != removed] for name in ("w1", "w3")]


def test_the_players_move_apart_and_never_look_at_the_validation_split(model_dir, data_file, tokenizer):
    run = searching_run(model_dir, data_file, tokenizer, alternate=True, lasso="none")
    lora = {name: p.detach().clone() for name, p in export.lora_parameters(run.model).items()}
    assert run.generator.prior.std() > 0.5  # the warm start
    logits = run.generator().detach()
    run.generator_step()
    assert not torch.equal(run.generator(), logits) and 0 < int((~run.d).sum()) < len(run.d)
    for name, p in export.lora_parameters(run.model).items():
        assert torch.equal(p, lora[name]) and p.grad is None
    logits, d = run.generator().detach(), run.d
    run.lora_step()
    assert torch.equal(run.generator(), logits) and run.d is d
    # Through the LoRA-aware forward, B gets gradients where its groups are off just as where they are on.
    for removed in (True, False):
        assert all(len(rows) and rows.any(dim=1).all() for rows in lora_of(run, removed, lambda B: B.grad))


def test_the_warm_start_costs_nothing(model_dir, data_file, tokenizer):
    """While everything is kept, LoRA's own passes add up Taylor's saliency; then the search begins from it."""
    run = searching_run(model_dir, data_file, tokenizer, spread=3.0)
    run.generator.gradients.zero_()
    run.step, wanted = 0, 0
    while run.step < run.warm_steps:
        batch = run.batch(run.rows.train, run.config.batch_size, run.step, run.config.seed)
        d = torch.ones(len(run.groups), requires_grad=True)
        loss = run.model.nll(*batch[:2], run.groups.masks(d, aware=False)) / batch[2]
        wanted += torch.autograd.grad(loss, d)[0].abs()
        assert run.advance()["loss"] == pytest.approx(loss.item(), abs=1e-5) and run.d.all()
    assert run.warm_steps == 25 and torch.allclose(run.generator.gradients, wanted, rtol=1e-3)
    assert run.generator().std().item() == pytest.approx(3, rel=1e-4)
    assert torch.equal(run.target_decisions(), run.groups.decide(log_saliency(run.groups, wanted), 0.6)[0])
    prior = run.generator.prior.clone()
    run.advance()
    assert not run.d.all() and torch.equal(run.generator.prior, prior) and not torch.equal(run.generator(), prior)


def test_one_pass_teaches_both_players(model_dir, data_file, tokenizer):
    """The generator's gradient is that of the loss in its logits, by autograd all the way; so is LoRA's."""
    run = searching_run(model_dir, data_file, tokenizer, lasso="none", clip=1e9)
    tokens, targets = run.rows.train.batch(run.config.batch_size, run.step, run.config.seed)
    loss = run.model.nll(tokens, targets, run.groups.masks(run.soft_decisions(), aware=False)) / (targets >= 0).sum()
    players = [list(run.generator.parameters()), list(export.lora_parameters(run.model).values())]
    wanted = torch.autograd.grad(loss, sum(players, []))
    before = [[p.detach().clone() for p in player] for player in players]
    assert run.lora_step()["loss"] == pytest.approx(loss.item(), abs=1e-5)
    clipping = min(1, 3 / torch.stack([g.norm() for g in wanted[:len(players[0])]]).norm())  # the generator's
    for p, gradient in zip(sum(players, []), [g * clipping for g in wanted[:len(players[0])]] + list(wanted[len(players[0]):])):
        assert torch.allclose(p.grad, gradient, atol=1e-5)
    for player, old in zip(players, before):
        assert not all(map(torch.equal, player, old))
    assert 0 < int((~run.d).sum()) < len(run.d)


def test_the_lasso_acts_in_the_loop(model_dir, data_file, tokenizer):
    run = searching_run(model_dir, data_file, tokenizer, alternate=True, lasso_weight=100.0)
    run.generator_step()
    run.lora_step()
    assert not any(rows.any() for rows in lora_of(run, removed=True))
    assert all(rows.any(dim=1).all() for rows in lora_of(run, removed=False))


def test_slicing_at_the_freeze_makes_no_jump(monkeypatch, options, tmp_path):
    """At the freeze, the validation loss of the cut model is the masked one's; the exported models end alike."""
    at_freeze, at_end = [], []
    for flag in ("--slice-at-freeze", "--no-slice-at-freeze"):
        assert command(monkeypatch, *options, flag, "--out", tmp_path / flag) == 0
        losses = {line["step"]: line["val_loss"] for line in read_log(tmp_path / flag) if "val_loss" in line}
        at_freeze.append(losses[8])
        at_end.append(losses[16])
    assert at_freeze[0] == pytest.approx(at_freeze[1], abs=1e-5)
    assert at_end[0] == pytest.approx(at_end[1], abs=0.05)


@pytest.mark.parametrize("stop", [5, 8, 11])  # in the search, at the freeze, after it
def test_a_resumed_run_ends_like_an_uninterrupted_one(monkeypatch, options, tmp_path, stop):
    whole = tmp_path / "whole"
    assert command(monkeypatch, *options, "--out", whole, "--paper", "--slice-at-freeze") == 0
    step = train.Run.lora_step

    def interrupted(run):
        terms = step(run)
        run.stop_asked = run.step == stop - 1
        return terms

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "lora_step", interrupted)
        assert command(patch, *options, "--paper", "--slice-at-freeze") == 130
    assert command(monkeypatch, "--resume", tmp_path / "run") == 0
    steps = {line["step"] for line in read_log(whole)}
    assert [line for line in read_log(tmp_path / "run") if line["step"] in steps] == read_log(whole)
    for (name, a), b in zip(llama.load(whole / "pruned").named_parameters(), llama.load(tmp_path / "run/pruned").parameters()):
        assert torch.equal(a, b), name


def test_export_again_from_the_checkpoint(monkeypatch, options, tmp_path, capsys):
    assert command(monkeypatch, *options, "--no-slice-at-freeze") == 0
    run = tmp_path / "run"
    assert command(monkeypatch, run, "--out", tmp_path / "again", main=export.main) == 0
    for a, b in zip(llama.load(run / "pruned").parameters(), llama.load(tmp_path / "again").parameters()):
        assert torch.equal(a, b)
    assert command(monkeypatch, run, "--out", tmp_path / "half", "--dtype", "bfloat16", main=export.main) == 0
    capsys.readouterr()
    assert command(monkeypatch, tmp_path / "half", "--prompt", "On day 5 the bank shall", "--max-tokens", 8, main=llama.main) == 0
    assert "8 tokens in" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(monkeypatch, options, tmp_path, capsys):
    step = train.Run.lora_step

    def poisoned(run):
        if run.step >= 6:
            next(iter(export.lora_parameters(run.model).values())).data.fill_(math.nan)
        return step(run)

    monkeypatch.setattr(train.Run, "lora_step", poisoned)
    assert command(monkeypatch, *options) == 2
    error = capsys.readouterr().err
    assert "not finite" in error and "--lr" in error and error.count("\n") == 1
    assert export.read_checkpoint(tmp_path / "run")["step"] == 5


@pytest.mark.parametrize("player, flags, updates", [("lora_step", ["--alternate"], 1), ("generator_step", ["--alternate"], 1), ("lora_step", [], 2)])
def test_one_bad_batch_is_skipped_and_counted(monkeypatch, options, tmp_path, player, flags, updates):
    nll, step = llama.Llama.nll, getattr(train.Run, player)

    def poisoned(run):
        with monkeypatch.context() as patch:
            if run.step == 2:
                patch.setattr(llama.Llama, "nll", lambda *arguments: nll(*arguments) * math.nan)
            return step(run)

    monkeypatch.setattr(train.Run, player, poisoned)
    assert command(monkeypatch, *options, *flags) == 0
    assert [line["skipped"] for line in read_log(tmp_path / "run")] == [0] + [updates] * 7
    assert all(p.isfinite().all() for p in llama.load(tmp_path / "run/pruned").parameters())


def test_resuming_with_other_data_is_refused_by_name(monkeypatch, options, tmp_path, data_file, capsys):
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(data_file.read_bytes())
    assert command(monkeypatch, *options, "--data", copy) == 0
    copy.write_bytes(data_file.read_bytes() + b'{"text": "one more"}\n')
    assert command(monkeypatch, "--resume", tmp_path / "run") == 2
    assert "copy.jsonl changed" in capsys.readouterr().err


def test_a_run_is_replaced_only_when_asked(monkeypatch, options, tmp_path, capsys):
    assert command(monkeypatch, *options) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert command(monkeypatch, *options, "--steps", 10) == 2
    error = capsys.readouterr().err
    assert "--resume" in error and "--overwrite" in error
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert command(monkeypatch, *options, "--steps", 10, "--overwrite") == 0
    assert read_log(tmp_path / "run")[-1]["step"] == 10


def test_a_checkpoint_of_a_7b_run_is_under_600_mb():
    """LLaMA-2-7B, rank 8, all seven linears: what is learned and AdamW's two moments, in float32."""
    config = llama.LlamaConfig(dim=4096, n_layers=32, n_heads=32, vocab_size=32000, multiple_of=256)
    groups = train.Groups(config, "dims")
    with torch.device("meta"):
        model = llama.Llama(config)
        export.add_lora(model, 8, 2.0)
    learned = [*export.lora_parameters(model).values(), *train.Generator(groups).parameters()]
    assert llama.count_parameters(model) == 6_738_415_616
    assert 3 * 4 * sum(p.numel() for p in learned) + len(groups) < 600e6


def test_schedule_worked_by_hand():
    assert [train.schedule(step, 110, warmup=10 / 110) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert train.schedule(60, 110, 10 / 110) == pytest.approx(0.55) and train.schedule(110, 110, 10 / 110) == pytest.approx(0.1)


def test_answer_accuracy_of_known_answers(model_dir, tokenizer):
    """A question whose answer is what the model would say is right, any other is wrong; options are ranked by likelihood."""
    model = llama.load(model_dir)
    prompt = "On day 5 the bank shall pay"
    ids = [tokenizer.bos] + tokenizer.encode([prompt])[0]
    scores = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
    pieces = [t for t in scores.argsort(descending=True).tolist() if tokenizer.encode([tokenizer.decode([t])]) == [[t]]]
    options = tuple(tokenizer.decode([t]) for t in (pieces[-1], pieces[0], pieces[-2]))

    def score(text):
        row = ids + tokenizer.encode([text])[0] + [tokenizer.eos]
        logp = model(torch.tensor([row]))[0].log_softmax(-1)
        return sum(float(logp[i - 1, row[i]]) for i in range(len(ids), len(row))) / (len(row) - len(ids))

    best = max(options, key=score)
    for answer in options:
        question = train.data.Example(prompt, answer, options)
        assert train.answer_accuracy(model, tokenizer, [question], 64) == (answer == best)
    assert train.answer_accuracy(model, tokenizer, [train.data.Example(prompt, "lot 17")], 64) == 0
    assert train.answer_accuracy(model, tokenizer, [], 64) is None


def test_compiled_layers_take_new_decisions_without_compiling_again(monkeypatch, options, tmp_path):
    """Without graph breaks; after the cut, each layer of another size is compiled once."""
    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compile(self, backend="aot_eager", **how))
    counters, graphs, step = torch._dynamo.utils.counters, [], train.Run.advance
    counters.clear()

    def counted(run):
        terms = step(run)
        graphs.append(counters["stats"]["unique_graphs"])
        return terms

    assert command(monkeypatch, *options) == 0
    monkeypatch.setattr(train.Run, "advance", counted)
    assert command(monkeypatch, *options, "--compile", "--out", tmp_path / "compiled") == 0
    assert 0 < graphs[0] == graphs[7] < graphs[8] == graphs[-1] <= graphs[7] + 3 and not counters["graph_break"]
    for eager, compiled in zip(read_log(tmp_path / "run"), read_log(tmp_path / "compiled")):
        assert eager["kept"] == compiled["kept"] and eager["loss"] == pytest.approx(compiled["loss"], abs=1e-3)
