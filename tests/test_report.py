"""The page about runs: what it shows, that it is whole, safe and small, and what it refuses."""
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from conftest import command, content

import data
import llama
import train
from scripts import charts, prepare, report

KINDS = ["qk", "vo", "ffn"]
VOID = {"meta", "br"}


def write_run(path, layers=3, steps=40, search=20, dense=True, **config):
    """A run directory as train.py leaves it, of a model that is not there."""
    base = [[8, 16, 100] for _ in range(layers)]
    kept = [[8 - i % 4, 8, 60 + i % 7] for i in range(layers)]
    rows, log = ["base", *["dense"] * dense, "pruned", "exported"], []
    for step in range(2, steps + 1, 2):
        line = {"step": step, "phase": "search" if step <= search else "tune", "loss": 2 + 4 / step, "grad_norm": 0.5,
                "lr": 1e-3, "tokens_per_second": 1000.0 + step}
        if step <= search:
            line |= {"flips": 0.5 / step, "budget": 1 - 0.4 * step / search,
                     "kept": [[a - (a - b) * step // search for a, b in zip(*pair)] for pair in zip(base, kept)]}
        if step % 10 == 0:
            line["val_loss"] = 2.5 + 4 / step
        log.append(line)
    config = {"model": "models/none", "data": ["none.jsonl"], "out": str(path), "seq_len": 32, "prune": 0.4,
              "decisions": "atp", "steps": steps, "dtype": "float32", "seed": 0} | config
    summary = {
        "version": train.VERSION, "command": f"python train.py --out {path.name}", "config": config,
        "versions": {"python": "3.12.1", "torch": "2.13.0"}, "requested_prune": 0.4, "obtained_prune": 0.39876,
        "max_logit_diff": 1.7e-5, "prunable": {"base": 12345, "kept": 7407}, "kinds": KINDS,
        "groups": {"base": base, "kept": kept}, "params": {row: 7000 if row[0] in "pe" else 12000 for row in rows},
        "val_loss": {row: {"base": 6.0, "dense": 2.0}.get(row, 2.1) for row in rows},
        "accuracy": {row: None if row == "base" else 0.625 for row in rows},
        "retained": 0.905 if dense else None, "peak_memory_bytes": 2**30,
        "seconds": {"search": 5.0, "tune": 300.0, "evaluation": 2.0, "dense": None}}
    path.mkdir(parents=True)
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    if dense:
        (path / "dense").mkdir()
        (path / "dense" / "log.jsonl").write_text("".join(
            json.dumps({"step": line["step"], "phase": "tune", "val_loss": 1.5, "tokens_per_second": 1.0}) + "\n"
            for line in log))
    return path


def change(run, **values):
    """Other values in a run's summary; None removes a key."""
    summary = json.loads((run / "summary.json").read_text()) | values
    (run / "summary.json").write_text(json.dumps({key: v for key, v in summary.items() if v is not None}))


class Reader(HTMLParser):
    """What a browser would find: every tag closed in its turn, ids, texts by tag, table rows."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.used, self.attributes, self.texts, self.rows = [], [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.attributes += [(tag, *pair) for pair in attributes]
        self.ids += [given["id"]] if "id" in given else []
        self.used += given.get("aria-labelledby", "").split()
        self.rows += [[]] if tag == "tr" else []
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append((self.open[-1] if self.open else "", text))
        if {"td", "th"} & {*self.open}:
            self.rows[-1].append(text)

    def of(self, tag) -> list[str]:
        return [text for where, text in self.texts if where == tag]


def read_page(path) -> Reader:
    """A page, found to be whole, to need nothing else, and to run nothing."""
    text = path.read_text()
    page = Reader(text)
    assert len({*page.ids}) == len(page.ids) and {*page.used} <= {*page.ids}
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|https?:|javascript:", text)
    assert not [name for _, name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    return page


def test_the_page_of_a_run(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run")
    assert command(monkeypatch, run, "--no-samples", main=report.main) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [["model", "parameters", "val loss", "val ppl", "accuracy", "retained"],
             ["base", "12,000", "6.0000", "403.43", "-", "-"],
             ["dense", "12,000", "2.0000", "7.39", "62.5 %", "-"],
             ["pruned", "7,000", "2.1000", "8.17", "62.5 %", "90.5 %"]]
    assert [re.split("  +", line.strip()) for line in lines[:4]] == table
    assert lines[-1] == f"page: {run / 'report.html'}"
    page = read_page(run / "report.html")
    assert page.rows[:4] == table
    assert page.of("b") == [title for title, *_ in report.CHARTS.values()] + [str(run)]
    assert page.of("text").count("T_end") == len(report.CHARTS)
    assert "this run: 1 at step 0, 0.6 at step 20" in page.of("desc")  # the budget
    assert page.of("li") == ["this run", "the same without pruning"]
    assert "python train.py --out run" in page.of("pre") and "Samples" not in page.of("h2")
    named = dict(zip(page.of("dt"), page.of("dd")))
    assert {"decisions": "atp", "torch": "2.13.0", "pruned, obtained": "39.88 %", "time, tune": "5.0 min",
            "time, dense": "-", "time, total": "5.1 min",
            "tokens/s, search (median)": "1,011"}.items() <= named.items()


def test_the_map_shows_what_is_kept_and_how_it_moved(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", layers=2)
    command(monkeypatch, run, "--no-samples", main=report.main)
    page = read_page(run / "report.html")
    assert page.rows[-4:] == [["layer", *KINDS], ["0", "100%", "50%", "60%"], ["1", "88%", "50%", "61%"],
                              ["all", "15 of 16", "16 of 32", "121 of 200"]]
    assert ("td", "title", "7 of 8") in page.attributes and ("td", "style", "--kept:0.88") in page.attributes
    lines = [value for tag, name, value in page.attributes if (tag, name) == ("polyline", "points")][-6:]
    assert lines[0].split()[0] == "0,1.0" and lines[0].split()[-1] == "60,1.0"  # all stay
    assert lines[1].split()[-1] == "60,8.0" and len(lines[1].split()) == 11     # step 0 and ten lines of the log


def test_what_a_run_does_not_have_is_left_out(tmp_path, monkeypatch):
    """No search, no dense reference, no accuracy, another name for its row; values that cannot be drawn."""
    run = write_run(tmp_path / "run", dense=False)
    summary = json.loads((run / "summary.json").read_text())
    for key in ("params", "val_loss", "accuracy"):
        summary[key]["tuned"] = summary[key].pop("pruned")
    change(run, **summary)
    log = [{"step": 1, "phase": "tune", "tokens_per_second": 5.0}, {"step": 2, "phase": "tune", "loss": float("nan"),
           "tokens_per_second": 5.0, "val_loss": 3.0, "grad_norm": float("inf")}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    assert command(monkeypatch, run, "--no-samples", main=report.main) == 0
    page = read_page(run / "report.html")
    assert page.of("b")[:2] == ["Validation loss", "Training speed"] and "T_end" not in page.of("text")
    assert page.rows[2][0] == "tuned" and "nothing moved" in "".join(page.of("caption"))
    assert not re.search("nan|inf", " ".join(value or "" for _, name, value in page.attributes if name != "class"))


def test_several_runs_beside_each_other(tmp_path, monkeypatch, capsys):
    runs = [write_run(tmp_path / "runs" / name, seed=seed, decisions=name)
            for seed, name in enumerate(("atp", "taylor", "random"))]
    change(runs[2], config=json.loads((runs[2] / "summary.json").read_text())["config"] | {"lr": 0.25})
    assert command(monkeypatch, *runs, main=report.main) == 0
    told = capsys.readouterr().out
    page = read_page(tmp_path / "runs" / "report.html")
    assert page.rows[:4] == [re.split("  +", line.strip()) for line in told.splitlines()[:4]]
    assert page.rows[0] == ["run", "decisions", "seed", "lr", "pruned", *report.MEASURED, "time"]
    assert page.rows[1] == [str(runs[0]), "atp", "0", "-", "39.88 %", "7,000", "2.1000", "8.17", "62.5 %", "90.5 %",
                            "5.1 min"]
    assert page.of("li") == [str(run) for run in runs] * len(report.CHARTS)
    styles = [value for tag, name, value in page.attributes if (tag, name) == ("polyline", "class")]
    assert styles == ["curve k0", "curve k1", "curve k2"] * len(report.CHARTS)
    assert len(page.of("caption")) > 2 and not any((run / "report.html").exists() for run in runs)


def test_whatever_a_run_holds_stays_text(tmp_path, monkeypatch):
    evil = "</pre><script>alert('&\"')</script>\ud800"
    run = write_run(tmp_path / "<b>run&", model=evil, decisions=evil, **{"<i>": [evil]})
    change(run, command=evil, kinds=[evil, "<p>", "&"], versions={evil: evil}, seconds={evil: 1.0})
    assert command(monkeypatch, run, run, "--out", tmp_path / "both.html", main=report.main) == 0
    assert command(monkeypatch, run, main=report.main) == 0
    for path in (run / "report.html", tmp_path / "both.html"):
        page = read_page(path)
        assert evil.replace("\ud800", "?") in page.of("pre") and "<b>run&" in page.of("title")[0]


@pytest.fixture
def real_run(tmp_path, model_dir, data_file):
    """Base and pruned are the same model, so that they write the same; the dense one is not there."""
    run = write_run(tmp_path / "run", model=str(model_dir), data=[str(data_file)])
    (run / "pruned").symlink_to(model_dir)
    return run


def test_samples_of_all_models_that_are_there(real_run, model_dir, data_file, monkeypatch, capsys):
    assert command(monkeypatch, real_run, main=report.main) == 0
    first = (real_run / "report.html").read_bytes()
    page = read_page(real_run / "report.html")
    assert page.of("h4") == ["base", "pruned", "the record"] * 3
    assert f"dense is left out: {real_run / 'dense/pruned'} is not there." in page.of("p")
    validation = data.split(prepare.read(data_file), 0.05)["validation"]
    texts, question = [e for e in validation if not e.prompt], next(e for e in validation if e.prompt)
    given, base, pruned, rest = zip(*(page.of("pre")[i:i + 4] for i in (0, 4, 8)))
    assert given[2] == question.prompt and rest[2] == question.answer
    for i in range(2):
        assert texts[i].answer.startswith(given[i]) and given[i] + " " + rest[i] == texts[i].answer
    model, tokenizer = llama.load(model_dir, torch.float32), data.Tokenizer(model_dir)
    for prompt, written in zip(given, base):
        ids = [tokenizer.bos, *tokenizer.encode([prompt])[0]]
        torch.manual_seed(0)
        new = [*llama.generate(model, ids, 60, 0.3, stop=tokenizer.stop)]
        assert tokenizer.decode(ids[1:] + new).removeprefix(prompt).strip() == written
    assert base == pruned and any(base)
    assert command(monkeypatch, real_run, main=report.main) == 0
    assert (real_run / "report.html").read_bytes() == first


def test_damaged_models_and_data_cost_the_samples_alone(real_run, tmp_path, monkeypatch):
    (real_run / "dense" / "pruned").mkdir()
    assert command(monkeypatch, real_run, main=report.main) == 0
    assert "dense is left out: " in "".join(read_page(real_run / "report.html").of("p"))
    change(real_run, config=json.loads((real_run / "summary.json").read_text())["config"] | {"data": ["gone.jsonl"]})
    assert command(monkeypatch, real_run, main=report.main) == 0
    assert "gone.jsonl: cannot be read" in "".join(read_page(real_run / "report.html").of("p"))


def test_without_samples_no_model_is_loaded(real_run, monkeypatch):
    monkeypatch.setattr(llama, "load", None)
    assert command(monkeypatch, real_run, "--no-samples", main=report.main) == 0


def test_deep_models_and_long_logs_make_small_pages(tmp_path, monkeypatch):
    sizes = {}
    for layers in (32, 80):
        run = write_run(tmp_path / str(layers), layers=layers, steps=8000, search=4000)
        assert command(monkeypatch, run, "--no-samples", main=report.main) == 0
        sizes[layers] = (run / "report.html").stat().st_size
        assert len([row for row in read_page(run / "report.html").rows if row[0].isdigit()]) == layers
    assert sizes[32] < 2**18 and sizes[80] < 2**19


def summary_with(**values):
    return lambda run: change(run, **values)


def log_with(line):
    return lambda run: (run / "log.jsonl").write_text('{"step": 1, "phase": "tune", "tokens_per_second": 1}\n' + line)


@pytest.mark.parametrize("damage, says", [
    (lambda run: (run / "summary.json").unlink(), "the run is not finished; python train.py --resume"),
    (lambda run: [(run / name).unlink() for name in ("summary.json", "log.jsonl")], "not a run directory"),
    (lambda run: (run / "log.jsonl").unlink(), "log.jsonl: cannot be read"),
    (lambda run: (run / "summary.json").write_text('{"version": '), "summary.json: not JSON"),
    (lambda run: (run / "summary.json").write_bytes(b"\xff"), "summary.json: not JSON"),
    (lambda run: (run / "summary.json").write_text("[" * 100000), "summary.json: not JSON"),
    (lambda run: (run / "summary.json").write_text("[]"), "not of version"),
    (summary_with(version=None), "not of version"), (summary_with(version=train.VERSION - 1), "not of version"),
    (summary_with(version=str(train.VERSION)), "not of version"), (summary_with(config=[]), "'config' is not"),
    (summary_with(config={"model": 5, "data": [], "dtype": "float32"}), "'config' is not"),
    (summary_with(config={"model": "", "data": [], "dtype": "", "x": {}}), "'config' is not"),
    (summary_with(groups={"base": [[8, 16, 100]]}), "'groups' is not"), (summary_with(kinds=["qk"]), "do not fit"),
    (summary_with(groups={"base": [[8, 16, 1]], "kept": [[8, 16]]}), "do not fit"),
    (summary_with(prunable={"base": 1.5, "kept": 1}), "'prunable' is not"),
    (summary_with(params={"base": 10**30}), "'params' is not"), (summary_with(params={"base": 5}), "'params' is not"),
    (summary_with(accuracy={"base": "x"}), "'accuracy' is not"), (summary_with(val_loss={"base": True}), "'val_loss'"),
    (summary_with(command=None), "'command' is not"), (summary_with(seconds={"tune": []}), "'seconds' is not"),
    (log_with('{"step": "1", "phase": "tune"}'), "log.jsonl, line 2: not a line"),
    (log_with("[]"), "line 2: not a line"),
    (log_with('{"step": 1, "phase": "tune", "tokens_per_second": 1, "loss": "x"}'), "line 2: not a line"),
    (log_with('{"step": 1, "phase": "tune", "tokens_per_second": 1, "kept": [[1]]}'), "do not fit"),
    (log_with('{"step": 1'), "line 2: not JSON"),
    (lambda run: (run / "dense" / "log.jsonl").write_text("{}\n"), "dense/log.jsonl, line 1: not a line")])
def test_what_is_no_finished_run_is_refused(tmp_path, monkeypatch, capsys, damage, says):
    """In one line, also beside a good one, with nothing written."""
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad")
    damage(bad)
    before = content(tmp_path)
    for runs in ([bad], [good, bad]):
        assert command(monkeypatch, *runs, "--no-samples", main=report.main) == 2
        out, error = capsys.readouterr()
        assert out == "" and says in error and str(bad) in error and error.count("\n") == 1
    assert content(tmp_path) == before


@pytest.mark.parametrize("arguments, says", [
    (["nowhere"], "nowhere: not a run directory"), ([], "required: RUN"),
    (["run", "--out", "run/summary.json"], "must end in .html"), (["run", "--out", "no/such/page.html"], "cannot be"),
    (["run", "--out", "folder.html"], "cannot be written")])
def test_bad_arguments_are_refused(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    (tmp_path / "folder.html").mkdir()
    before = content(tmp_path)
    assert command(monkeypatch, *arguments, "--no-samples", main=report.main) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and content(tmp_path) == before


@pytest.mark.parametrize("low, high, labels", [
    (0, 300, ["0", "100", "200", "300"]), (0, 1.04, ["0.0", "0.5", "1.0"]),
    (1.9, 2.3, ["1.9", "2.0", "2.1", "2.2", "2.3"]), (0, 23000, ["0", "5,000", "10,000", "15,000", "20,000"]),
    (-3, 3, ["-2", "0", "2"]), (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    (0, 3e-7, ["0", "1e-07", "2e-07", "3e-07"]), (0, 4e8, ["0", "1e+08", "2e+08", "3e+08", "4e+08"])])
def test_ticks_are_round_numbers(low, high, labels):
    assert [label for _, label in charts.ticks(low, high)] == labels


def test_curves_are_drawn_to_scale():
    """By hand: 52 to 378 across, 194 up to 18."""
    curve = charts.Curve("a", [(0, 10.0), (50, 0.0), (100, 5.0)], 50)
    page = Reader(charts.chart("x", "T", "u", True, [curve]))
    assert charts.plane([curve], True) == charts.Plane(100, 0.0, 10.4)
    assert ("polyline", "points", "52.0,24.8 215.0,194.0 378.0,109.4") in page.attributes
    assert ("path", "d", "M215.0 18V194") in page.attributes
    assert "a: 10 at step 0, 5 at step 100" in page.of("desc")
    assert charts.chart("x", "T", "u", True, [curve._replace(points=[])]) == ""


def test_a_loss_may_begin_above_the_axis():
    """Its first 2 % of the steps are cut off there: later differences are what there is to see."""
    curve = charts.Curve("a", [(0, 50.0), (50, 3.0), (100, 2.0)], None)
    page = Reader(charts.chart("x", "T", "u", False, [curve]))
    assert charts.plane([curve], False) == charts.Plane(100, 1.96, 3.04)
    assert ("polyline", "points", "52.0,18.0 215.0,24.5 378.0,187.5") in page.attributes


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e29, 1e-300])
def test_a_flat_curve_has_an_axis(value):
    for from_zero in (False, True):
        Reader(charts.chart("x", "T", "u", from_zero, [charts.Curve("a", [(3, value)], None)]))


def test_of_several_freezes_the_first_is_named():
    curves = [charts.Curve(name, [(0, 1.0), (100, 2.0)], freeze) for name, freeze in zip("abcd", (30, 20, 30, None))]
    page = Reader(charts.chart("x", "T", "u", True, curves))
    assert page.attributes.count(("path", "class", "freeze")) == 2
    assert page.of("text").count("T_end") == 1 and page.of("li") == [*"abcd"]


@pytest.mark.parametrize("loss, says", [(2.0, "7.39"), (11.0, "59,874.14"), (16.0, "8.89e+06"), (5000.0, "1.01e+304"),
                                        (float("nan"), "nan")])
def test_perplexity_of_any_loss(loss, says):
    assert report.perplexity(loss) == says


def test_long_curves_are_thinned_by_means():
    assert charts.thin([(i, 2 * i) for i in range(6)], 3) == [(0.5, 1), (2.5, 5), (4.5, 9)]
    assert charts.thin([(1, 5)], 400) == [(1, 5)] and charts.thin([], 400) == []
    assert len(charts.thin([(i, 1) for i in range(1001)], 400)) <= 400


@pytest.mark.skipif(train.VERSION < 3, reason="train.py does not write what the page shows yet")
def test_a_run_of_train_py_has_what_the_page_shows(finished_run, tmp_path, monkeypatch):
    assert command(monkeypatch, finished_run, "--out", tmp_path / "page.html", main=report.main) == 0
    page = read_page(tmp_path / "page.html")
    assert page.of("b")[:4] == [title for title, *_ in report.CHARTS.values()][:4]
    assert page.of("text").count("T_end") == len(report.CHARTS) and page.of("h4")[0] == "base"
