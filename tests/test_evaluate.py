"""Metrics against values worked out by hand, and the whole evaluation on a random model."""
import json

import pytest
from conftest import command

import llama
from benchmarks import evaluate


def test_macro_f1_worked_by_hand():
    # a: TP 1, FP 1, FN 1 -> 1/2; b: TP 1, FP 1, FN 1 -> 1/2; c: TP 0, FN 1 -> 0; d: said, never true -> 0
    found = evaluate.macro_f1(["a", "a", "b", "b", "c"], ["a", "b", "b", "a", "d"])
    assert found == pytest.approx((0.5 + 0.5 + 0 + 0) / 4)
    assert evaluate.macro_f1([0, 1], [0, 1]) == 1


def test_rouge_worked_by_hand():
    reference, said = "The lessee shall pay the rent.", "the lessee must pay rent"
    # 6 and 5 words; shared: the (once), lessee, pay, rent = 4 -> 8 / 11; bigrams 5, 4; "the lessee" -> 2 / 9
    assert evaluate.rouge_n(reference, said, 1) == pytest.approx(8 / 11)
    assert evaluate.rouge_n(reference, said, 2) == pytest.approx(2 / 9)
    assert evaluate.rouge_l(reference, said) == pytest.approx(8 / 11)  # the lessee pay rent
    assert evaluate.rouge_l("a b c d", "c d a b") == pytest.approx(4 / 8)
    assert evaluate.rouge_n("a", "", 1) == evaluate.rouge_l("", "a") == evaluate.rouge_n("a", "a", 2) == 0


def test_every_task_from_a_file_as_it_is(tmp_path, model_dir, monkeypatch, capsys):
    holdings = {f"holding_{i}": f"holding number {i}" for i in range(5)}
    records = [{"text": "On day 5 the lessee shall pay."}] * 3 + [
        {"citing_prompt": "the bank", "label": "2", **holdings},
        {"source": "the court shall keep lot 17", "summary": "keep lot 17"},
        {"sentence1": "the bank", "sentence2": "a bank", "gold_label": "entailment"},
        {"question": "Is it?", "context": {"contexts": ["It is."]}, "final_decision": "yes"},
        {"CHQ": "long", "Summary": "short"}, {"prompt": "which day?", "answer": "5"},
        {"prompt": "which day?", "answer": "5", "options": ["5", "6"]}]
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert command(monkeypatch, model_dir, path, "--max-tokens", 4, "--seq-len", 64, "--json",
                   tmp_path / "out.json", main=evaluate.main) == 0
    found = json.loads((tmp_path / "out.json").read_text())[str(path)]
    assert set(found) == {"text", "CaseHOLD", "BillSum", "MedNLI", "PubMedQA (Hugging Face)", "HQS",
                          "prompt and answer", "prompt and answer and options"}
    assert found["text"]["records"] == 3 and found["text"]["perplexity"] > 1
    for choice in ("CaseHOLD", "MedNLI", "PubMedQA (Hugging Face)", "prompt and answer and options"):
        assert found[choice]["accuracy"] in (0, 1) and "macro_f1" in found[choice]
    assert all("rougeL" in found[task] for task in ("BillSum", "HQS", "prompt and answer"))
    assert command(monkeypatch, model_dir, path, "--seq-len", 4, main=evaluate.main) == 2
    assert llama.load(model_dir)  # untouched


def test_a_bad_record_is_one_line_and_nothing_is_written(tmp_path, model_dir, monkeypatch, capsys):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"CHQ": "long", "Summary": "short"}\n{"CHQ": "long"}\n')
    assert command(monkeypatch, model_dir, path, "--json", tmp_path / "out.json", main=evaluate.main) == 2
    error = capsys.readouterr().err
    assert "tasks.jsonl, line 2" in error and error.count("\n") == 1 and not (tmp_path / "out.json").exists()
