"""A page about a run, or about several beside each other: one HTML file that needs nothing else.

    python scripts/report.py out/legal                         # writes out/legal/report.html
    python scripts/report.py out/atp out/taylor out/random     # writes report.html beside the first, in out/

A run's page has its numbers, its curves, what was pruned where, what the models write, options and command.
That of several runs has the options in which they differ, and their numbers, curves and maps together.
"""
import html
import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import llama  # noqa: E402
import train  # noqa: E402
from data import InputError  # noqa: E402
from scripts.charts import Curve, chart, sparkline  # noqa: E402
from scripts.prepare import read  # noqa: E402

CHARTS = {  # of a number in the log: title, what is measured, whether the axis begins at zero
    "loss": ("Training loss", "nats a token", False),
    "val_loss": ("Validation loss", "nats a token, as pruned at that step", False),
    "budget": ("Budget during the search", "fraction of the prunable parameters kept", True),
    "flips": ("Flips during the search", "fraction of the groups whose decision changed", True),
    "tokens_per_second": ("Training speed", "tokens a second", True),
    "grad_norm": ("Norm of LoRA's gradient", "before clipping", True)}
COUNTS = [[int]]  # groups: a list a layer, in it a number a kind
LINE = {**{key: (float, None) for key in CHARTS}, "step": int, "phase": str, "tokens_per_second": float,
        "kept": (COUNTS, None)}
SUMMARY = {"version": int, "command": str, "versions": {...: str}, "seconds": {...: (float, None)},
           "config": {"model": str, "data": [str], "dtype": str, ...: (str, float, bool, [str], None)},
           "requested_prune": float, "obtained_prune": float, "retained": (float, None), "max_logit_diff": float,
           "prunable": {"base": int, "kept": int}, "kinds": [str], "groups": {"base": COUNTS, "kept": COUNTS},
           "params": {"base": int, ...: int}, "val_loss": {...: float}, "accuracy": {...: (float, None)},
           "peak_memory_bytes": int}
NOTE = "<p><small>Retained: the perplexity of the same tuning without pruning, over that with pruning.</small></p>"
STYLE = Path(__file__).with_suffix(".css")
OPENING, LONGEST, GOES_ON = 25, 200, 40  # samples: words of a text, of a prompt at most, of how it goes on
TOKENS, TEMPERATURE = 60, 0.3


# --- what a run left ---

class Finished(NamedTuple):
    path: Path
    summary: dict      # summary.json
    log: list[dict]    # log.jsonl
    dense: list[dict]  # the log of the same tuning without pruning, where there is one


def has_shape(value, shape) -> bool:
    """Whether a JSON value has a shape: a type; a tuple's alternatives; a list's items; the keys of a dict, and
    with the key ... whatever others there are."""
    if isinstance(shape, tuple):
        return any(has_shape(value, each) for each in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(has_shape(item, shape[0]) for item in value)
    if isinstance(shape, dict):
        others = dict.fromkeys(value, shape.get(..., object)) if isinstance(value, dict) else {}
        return isinstance(value, dict) and all(has_shape(value.get(key), part) for key, part in (others | shape).items()
                                               if key is not ...)
    if shape in (int, float):
        return type(value) is int and abs(value) < 2**63 or shape is float and isinstance(value, float)
    return value is None if shape is None else isinstance(value, shape)


def parse_line(line) -> dict:
    """A line of log.jsonl. Raises InputError."""
    if not has_shape(line, LINE):
        raise InputError("not a line as train.py writes it; the log is damaged, run it anew")
    return line


def read_summary(path: Path) -> dict:
    """Raises InputError for another version's, or for what is damaged."""
    try:
        summary = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({data.first_line(error)}); damaged, run it anew") from None
    if not has_shape(summary, {"version": int}) or summary["version"] != train.VERSION:
        raise InputError(f"{path}: not of version {train.VERSION}, which this code writes; run it anew")
    wrong = [key for key, shape in SUMMARY.items() if not has_shape(summary.get(key), shape)]
    if wrong or not summary["params"].keys() == summary["val_loss"].keys() == summary["accuracy"].keys():
        raise InputError(f"{path}: {(wrong or ['params'])[0]!r} is not as train.py writes it; damaged, run it anew")
    return summary


def read_run(path: Path) -> Finished:
    """The run in a directory. Raises InputError unless it is one, of this version, finished and undamaged."""
    if not (path / "summary.json").exists():
        unfinished = (path / "log.jsonl").exists() or (path / "ckpt.pt").exists()
        raise InputError(f"{path}: the run is not finished; python train.py --resume {path} goes on with it"
                         if unfinished else f"{path}: not a run directory, it has no summary.json")
    summary, of_dense = read_summary(path / "summary.json"), path / "dense" / "log.jsonl"
    summary["seconds"].setdefault("total", sum(filter(None, summary["seconds"].values())))
    log = read(path / "log.jsonl", parse_line)
    shape = [len(summary["kinds"])] * len(summary["groups"]["base"])
    for counts in [*summary["groups"].values(), *(line["kept"] for line in log if line.get("kept"))]:
        if list(map(len, counts)) != shape:
            raise InputError(f"{path}: groups of its log and its summary do not fit each other; run it anew")
    return Finished(path, summary, log, read(of_dense, parse_line) if of_dense.exists() else [])


def freeze_step(log: list[dict]) -> int | None:
    """T_end, from a log; None if nothing was searched for."""
    return max((line["step"] for line in log if line.get("kept")), default=None)


def points(log: list[dict], key: str) -> list[tuple[float, float]]:
    """(step, value) of the lines that have a value that can be drawn; every search begins with all kept."""
    found = [(line["step"], line[key]) for line in log if line.get(key) is not None and abs(line[key]) < 1e30]
    return [(0, 1.0), *found] if found and key == "budget" else found


# --- numbers as text, tables ---

def show(value) -> str:
    """Any JSON value as text that can be printed, a dash for None."""
    if isinstance(value, list):
        return ", ".join(map(show, value))
    text = "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.encode(errors="replace").decode()  # half a character, which JSON can hold


def escape(value) -> str:
    return html.escape(show(value))


def percent(fraction: float | None, digits: int = 1) -> str:
    return show(fraction) if fraction is None else f"{100 * fraction:.{digits}f} %"


def perplexity(loss: float) -> str:
    value = math.exp(min(loss, 700))
    return f"{value:,.2f}" if value < 1e6 else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return show(None)
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def of_rows(run: Finished) -> list[str]:
    """The models of a run's summary. The exported one has the pruned one's numbers, or would not be written."""
    return [name for name in run.summary["params"] if name != "exported"]


def measured(run: Finished, name: str) -> list[str]:
    params, loss, accuracy = (run.summary[key][name] for key in ("params", "val_loss", "accuracy"))
    retained = run.summary.get("retained") if name == of_rows(run)[-1] else None
    return [f"{params:,}", f"{loss:.4f}", perplexity(loss), percent(accuracy), percent(retained)]


MEASURED = ["parameters", "val loss", "val ppl", "accuracy", "retained"]


def overview(runs: list[Finished]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the main table: a run's models, or several runs with the options that differ."""
    if len(runs) == 1:
        return ["model", *MEASURED], [[name, *measured(runs[0], name)] for name in of_rows(runs[0])]
    configs = [run.summary["config"] for run in runs]
    keys = [key for key in {key: None for config in configs for key in config}
            if key != "out" and any(config.get(key) != configs[0].get(key) for config in configs)]
    rows = [[show(run.path), *(show(config.get(key)) for key in keys), percent(run.summary["obtained_prune"], 2),
             *measured(run, of_rows(run)[-1]), duration(run.summary["seconds"].get("total"))]
            for run, config in zip(runs, configs)]
    return ["run", *keys, "pruned", *MEASURED, "time"], rows


def facts(run: Finished) -> list[tuple]:
    """Sizes, time and speed of a run, as (name, value)."""
    summary, weights = run.summary, (run.path / "pruned").glob("consolidated.*.pth")
    size, prunable = sum(file.stat().st_size for file in weights), summary["prunable"]
    found = [("prunable parameters, before", f"{prunable['base']:,}"),
             ("prunable parameters, after", f"{prunable['kept']:,}"),
             ("pruned, asked for", percent(summary["requested_prune"], 2)),
             ("pruned, obtained", percent(summary["obtained_prune"], 2)),
             ("exported weights", f"{size / 2**20:,.1f} MB" if size else None),
             ("largest logit difference of the export", f"{summary['max_logit_diff']:.1e}")]
    found += [(f"time, {part}", duration(seconds)) for part, seconds in summary["seconds"].items()]
    for phase in ("search", "tune"):
        speeds = [line["tokens_per_second"] for line in run.log if line["phase"] == phase]
        found.append((f"tokens/s, {phase} (median)", f"{statistics.median(speeds):,.0f}" if speeds else None))
    return [*found, ("peak memory", f"{summary['peak_memory_bytes'] / 2**30:.2f} GB"), *summary["versions"].items()]


def in_terminal(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    return "\n".join("  ".join(cell.rjust(width) if i else cell.ljust(width)
                               for i, (cell, width) in enumerate(zip(row, widths))) for row in [header, *rows])


def as_table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "\n".join(f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
                     + "</tr>" for first, *cells in rows)
    return ('<div class="wide" role="region" aria-label="Numbers" tabindex="0"><table>'
            f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>")


def as_list(pairs: list[tuple]) -> str:
    return "<dl>" + "\n".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
                              for name, value in pairs) + "</dl>"


# --- pictures ---

def in_grid(parts) -> str:
    return f'<div class="grid">{"".join(parts)}</div>'


def layer_map(run: Finished) -> str:
    """Layers x kinds: the fraction kept as colour and number, and how it moved while the run searched."""
    base, kept, kinds = run.summary["groups"]["base"], run.summary["groups"]["kept"], run.summary["kinds"]
    searched = [line for line in run.log if line.get("kept")]

    def cell(layer, kind):
        n, now = max(1, base[layer][kind]), kept[layer][kind]
        history = [(0, 1.0)] + [(line["step"], line["kept"][layer][kind] / n) for line in searched]
        return (f'<td style="--kept:{now / n:.2f}" title="{now:,} of {base[layer][kind]:,}"><span>{now / n:.0%}</span>'
                + (sparkline(history) if searched else "") + "</td>")

    rows = [f'<tr><th scope="row">{layer}</th>' + "".join(cell(layer, kind) for kind in range(len(kinds))) + "</tr>"
            for layer in range(len(base))]
    sums = [[sum(layer[kind] for layer in counts) for kind in range(len(kinds))] for counts in (kept, base)]
    total = "".join(f"<td>{now:,} of {n:,}</td>" for now, n in zip(*sums))
    head = "".join(f'<th scope="col">{escape(kind)}</th>' for kind in kinds)
    about = ("each line shows how it moved during the search, from all kept (top) at its beginning to T_end"
             if searched else "decided before the first step, so nothing moved")
    return (f'<div><table class="map"><caption><b>{escape(run.path)}</b>: groups kept, by layer and kind; {about}.'
            f'</caption>\n<thead><tr><th scope="col">layer</th>{head}</tr></thead>\n<tbody>' + "\n".join(rows)
            + f'</tbody>\n<tfoot><tr><th scope="row">all</th>{total}</tr></tfoot></table></div>')


# --- what the models write ---

def openings(examples: list[data.Example]) -> list[tuple[str, str]]:
    """Three records as (what is given to the models, how the record goes on): two texts and a question, if
    there are both. Of a text they get the first words, of a question the prompt."""
    texts, questions = ([e for e in examples if bool(e.prompt) == asked] for asked in (False, True))
    pairs = []
    for example in (texts[:2] + questions[:1] + texts[2:] + questions[1:])[:3]:
        prompt, answer = (re.findall(r"\S+\s*", text.strip()) for text in (example.prompt, example.answer))
        n = 0 if prompt else min(OPENING, (len(answer) + 1) // 2)
        given, rest = prompt[-LONGEST:] or answer[:n], answer[n:n + GOES_ON]
        pairs.append(("".join(given).strip(), "".join(rest).strip()))
    return pairs


def continuations(directory: Path, dtype: torch.dtype, prompts: list[str]) -> list[str]:
    """What the model in a directory writes after each prompt. Raises InputError."""
    model, tokenizer = llama.load(directory, dtype, data.find_device()), data.Tokenizer(directory)
    tokenizer.check(model.config.vocab_size)
    written = []
    for ids in tokenizer.encode(prompts):
        torch.manual_seed(0)
        new = [*llama.generate(model, [tokenizer.bos, *ids], TOKENS, TEMPERATURE, stop=tokenizer.stop)]
        written.append(tokenizer.decode(ids + new)[len(tokenizer.decode(ids)):])
    return written


def samples(run: Finished) -> str:
    """Validation records, continued by base, dense and pruned side by side; a word for what is missing."""
    config, sections, missing = run.summary["config"], {}, []
    models = {"base": Path(config["model"]), "dense": run.path / "dense" / "pruned",
              of_rows(run)[-1]: run.path / "pruned"}
    dtype = torch.bfloat16 if config["dtype"] == "bfloat16" else torch.float32
    try:
        examples = [example for path in config["data"] for example in read(path)]
        given = openings(data.split(examples)["validation"])
    except InputError as error:
        return f"<p>None, as the data cannot be read. {escape(error)}</p>"
    for name, directory in models.items():
        if not directory.exists():
            missing.append(f"{name} is left out: {directory} is not there.")
            continue
        print(f"samples: {directory} writes ...", flush=True)
        try:
            sections[name] = continuations(directory, dtype, [prompt for prompt, _ in given])
        except InputError as error:
            missing.append(f"{name} is left out: {error}")
    sections["the record"] = [rest for _, rest in given]
    parts = [f"<p>{escape(word)}</p>" for word in missing]
    for i, (prompt, _) in enumerate(given):
        columns = (f"<div><h4>{escape(name)}</h4><pre>{escape(texts[i].strip())}</pre></div>"
                   for name, texts in sections.items())
        parts.append(f'<article><h3>Validation record {i + 1}</h3><pre class="given">{escape(prompt)}</pre>'
                     f"{in_grid(columns)}</article>")
    return "\n".join(parts)


# --- the page ---


def headline(run: Finished) -> str:
    """What the run is, in a sentence or two."""
    summary, name = run.summary, of_rows(run)[-1]
    config, params, loss = (summary[key] for key in ("config", "params", "val_loss"))
    files = ", ".join(Path(path).name for path in config["data"])
    text = (f"{Path(config['model']).name}, a LLaMA of {params['base']:,} parameters, tuned on {files}. "
            f"{percent(summary['obtained_prune'], 2)} of the prunable parameters were removed, {params[name]:,} are "
            f"left. Validation perplexity went from {perplexity(loss['base'])} to {perplexity(loss[name])}.")
    if "dense" in loss:
        text += f" The same tuning without pruning comes to {perplexity(loss['dense'])}."
    return text


def page(runs: list[Finished], with_samples: bool) -> str:
    one = runs[0] if len(runs) == 1 else None
    names = ", ".join(run.path.resolve().name for run in runs)
    title = f"{names}: tuned, {percent(one.summary['obtained_prune'])} pruned" if one else f"{len(runs)} runs: {names}"
    about = headline(one) if one else "Runs beside each other, with the options in which they differ."
    curves = {key: [Curve("this run" if one else show(run.path), points(run.log, key), freeze_step(run.log))
                    for run in runs] for key in CHARTS}
    if one and one.dense:
        curves["val_loss"].append(Curve("the same without pruning", points(one.dense, "val_loss"), None))
    sections = {"Numbers": as_table(*overview(runs)) + NOTE,
                "Curves": in_grid(chart(key, *CHARTS[key], curves[key]) for key in CHARTS),
                "What was pruned": in_grid([*map(layer_map, runs), as_list(facts(one)) if one else ""])}
    if one and with_samples:
        sections["Samples"] = (f"<p>{TOKENS} tokens at temperature {TEMPERATURE}, by each model from the same "
                               f"beginning, and how the record itself goes on.</p>{samples(one)}")
    sections["How it was made"] = "".join(f'<pre class="command">{escape(run.summary["command"])}</pre>'
                                          for run in runs) + (as_list(one.summary["config"].items()) if one else "")
    body = "\n".join(f"<section><h2>{name}</h2>\n{content}</section>" for name, content in sections.items())
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text()}</style></head>\n"
            f"<body><main><h1>{escape(title)}</h1>\n<p>{escape(about)}</p>\n{body}</main></body></html>\n")


def main() -> None:
    parser = data.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a finished run's directory")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in the run, or beside the first)")
    parser.add_argument("--no-samples", action="store_true", help="load no model, let none write")
    args = parser.parse_args()
    runs = [read_run(path) for path in args.runs]
    out = args.out or (args.runs[0] if len(runs) == 1 else args.runs[0].parent) / "report.html"
    if out.suffix not in (".html", ".htm"):
        raise InputError(f"--out {out}: must end in .html, so that nothing else is replaced")
    print(in_terminal(*overview(runs)), flush=True)
    content = page(runs, not args.no_samples).encode()
    data.write_atomic(out, lambda file: file.write(content))
    print(f"\npage: {out}")


if __name__ == "__main__":
    data.command(main)
