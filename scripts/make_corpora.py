"""The two corpora: general English that the built-in base has read, and the legal text that it is tuned on.

    python scripts/make_corpora.py                          # legal.jsonl
    python scripts/make_corpora.py --english english.jsonl --records 20000       # to look at; it never ends

legal    {"text"}: clauses of contracts and statutes; {"prompt", "answer", "options"}: questions on a clause,
         its kind, a party, yes or no, an amount that stands in it
english  {"text"}: scenes, letters, rules and reports, some with questions and answers; no clauses

Both come from a seeded grammar: every machine writes the same bytes. The grammar is three text files in
grammar/ (lines that begin with a space continue the one above):

    words.txt    "name: entry, entry", or with " | " between entries that hold commas
    english.txt  "== name / kind" opens a scene, "-" is one phrasing of it, and "? question = answer ? ..."
                 are questions that every phrasing answers
    legal.txt    the same for clauses, "== contract / heading"; a "*" for clauses of any contract. First the
                 contracts, "@ contract / its names / pairs of roles / who can be A / who can be B". [X] and
                 [Y] are the roles, [A] and [B] their names; [D] and [E] are the roles in random order

    {a|b|c}         one of the alternatives (they nest; an empty one makes the text optional)
    [slot]          an entry of the table `slot`, itself expanded; or a variable bound earlier
    [x=slot]        the same, and remember it as [x]: this is how a name or an amount comes back later
    [x:words]       remember the words as [x] and print nothing
    [money 20-90]   a number of that kind in that range (see NUMBERS)
    [x.s]           a form of a word: plural, pronoun, ... (see FORMS)
    //              a new line

"a" becomes "an" and sentences get their capitals afterwards, so the files need not care.
"""
import argparse
import json
import random
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEXTS, QUESTIONS = 500, {"clause": 700, "party": 500, "yes or no": 500, "amount": 500}  # records of legal.jsonl


# -------------------------------------------------------------------------------------------------------- the grammar

def lines_of(name: str) -> list[str]:
    return re.sub(r"\n +", " ", (HERE / "grammar" / name).read_text().strip()).split("\n")


def read_words() -> dict[str, list[str]]:
    tables = dict(line.split(": ", 1) for line in lines_of("words.txt"))
    return {name: body.split(" | " if " | " in body else ", ") for name, body in tables.items()}


def read_blocks(name: str) -> list[dict]:
    """The scenes or clauses of a file: "of" and "heading" (around the slash), and their "-" and "?" lines."""
    blocks = []
    for line in lines_of(name):
        mark, line = line.split(" ", 1)
        if mark == "==":
            of, heading = line.split(" / ")
            blocks.append({"of": of, "heading": heading, "-": [], "?": []})
        elif mark in "-?":
            blocks[-1][mark] += line.split(" ? ") if mark == "?" else [line]
    return blocks


def read_contracts() -> dict[str, list[list[str]]]:
    """By contract: its names, its pairs of roles, and the tables of who can be A and who can be B."""
    contracts = [line[2:].split(" / ") for line in lines_of("legal.txt") if line.startswith("@")]
    return {of: [names.split("|"), [pair.split(",") for pair in pairs.split("|")], a, b]
            for of, names, pairs, a, b in contracts}


WORD, CONTRACTS = read_words(), read_contracts()
SCENES, CLAUSES, SHORT = (read_blocks(f"{name}.txt") for name in ("english", "legal", "questions"))
ASKED = [scene for scene in SCENES if scene["?"]]
ECHOES = [scene for scene in SCENES if scene["of"] in ("echo", "register")]
WORDY = [scene for scene in SCENES
         if scene["of"] in ("tales", "play", "cards", "dictation", "wordplay", "handbook", "exam")]
PARTIES = CLAUSES[0]
AGREED = [of for of in CONTRACTS if of not in ("will", "power", "statute")]  # by two parties


UNITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen""".split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(n):
    return UNITS[n] if n < 20 else TENS[n // 10] + ("-" + UNITS[n % 10] if n % 10 else "")


def integer(rng, lo, hi):
    return lo + int(rng.random() * (hi - lo + 1))  # random() alone is promised to be the same in every Python


def pick(rng, items):
    return items[integer(rng, 0, len(items) - 1)]


def money(rng, lo, hi):
    # amounts of every size up to hi, the large ones rounded as people round them
    n = int(lo * (hi / lo) ** rng.random())
    step = 1 if n < 100 else 5 if n < 1000 else 50 if n < 10000 else 500
    return f"${n // step * step:,}" + pick(rng, ["", "", "", ".00" if step > 1 else ".50"])


def period(unit):
    def draw(rng, lo, hi):
        n = integer(rng, lo, hi)
        return pick(rng, [f"{n} {unit}", f"{in_words(n)} {unit}", f"{in_words(n)} ({n}) {unit}"])
    return draw


NUMBERS = {
    "n": lambda rng, lo, hi: str(integer(rng, lo, hi)),
    "w": lambda rng, lo, hi: in_words(integer(rng, lo, hi)),
    "money": money,
    "days": period("days"), "months": period("months"), "years": period("years"),
    "pct": lambda rng, lo, hi: str(integer(rng, lo, hi)) + pick(rng, ["%", "%", ".5%", ".25%", " percent"]),
    "year": lambda rng: str(integer(rng, 1890, 2024)),
    "date": lambda rng: f"{pick(rng, WORD['month'])} {integer(rng, 1, 28)}, {integer(rng, 1985, 2029)}",
    "time": lambda rng: f"{integer(rng, 5, 22)}:{5 * integer(rng, 0, 11):02}",
}


def plural(word):
    head, _, last = word.rpartition(" ")
    odd = {"sheep": "sheep", "deer": "deer", "goose": "geese", "mouse": "mice", "ox": "oxen",
           "wolf": "wolves", "knife": "knives", "shelf": "shelves"}
    if last in odd:
        last = odd[last]
    elif last.endswith("y") and last[-2] not in "aeo":
        last = last[:-1] + "ies"
    else:
        last += "es" if re.search(r"(s|x|ch|sh|potato|tomato)$", last) else "s"
    return f"{head} {last}".strip()


FORMS = {
    "s": plural,
    "cap": lambda word: re.sub(r"\b(?!(?:of|and)\b)[a-z]", lambda m: m[0].upper(), word),
    "he": lambda name: "she" if name.split()[0] in WORD["female"] else "he",
    "him": lambda name: "her" if name.split()[0] in WORD["female"] else "him",
    "his": lambda name: "her" if name.split()[0] in WORD["female"] else "his",
}


def expand(rng, text, env):
    while "{" in text:  # the innermost alternatives first: that is all it takes to let them nest
        text = re.sub(r"\{([^{}]*)\}", lambda m: pick(rng, m[1].split("|")), text)
    return re.sub(r"\[([^\[\]]+)\]", lambda m: fill(rng, m[1], env), text)


def fill(rng, slot, env):
    if ":" in slot:
        name, env[name] = slot.split(":")[0], slot.split(":")[1]
        return ""
    var, _, source = slot.rpartition("=")
    source, _, form = source.partition(".")
    kind, _, span = source.partition(" ")
    if source in env:
        value = env[source]
    else:
        for _ in range(9):  # rather something that this record does not hold yet
            if kind in NUMBERS:
                value = NUMBERS[kind](rng, *map(int, span.split("-") if span else ()))
            else:
                value = expand(rng, pick(rng, WORD[kind]), env)
            if value not in env["seen"]:
                break
        env["seen"].append(value)
    value = FORMS[form](value) if form else value
    if var:
        env[var] = value
    return value


def tidy(text):
    text = re.sub(r"( *//)+ *", "\n", text)
    text = re.sub(r" +([,.;:?!)])", r"\1", re.sub(r" +", " ", text)).strip()
    vowel = r"(?=\"?\$?(?:8|1[18](?!\d)|hour|honest|heir|(?!uni|use|usu|one|once|eur)[aeiouAEIOU]))"
    text = re.sub(r"(?<!Schedule )\b([Aa]) " + vowel, r"\1n ", text)
    return text


def polish(text):
    return re.sub(r"(^|\n|[.?!] )([a-z])", lambda m: m[1] + m[2].upper(), tidy(text))


# ------------------------------------------------------------------------------------------------------------ English

def english(rng) -> dict | None:
    """A scene; some are followed by questions and answers, or by what kind of text it is."""
    scene, env = pick(rng, pick(rng, [ASKED, ASKED, ECHOES, WORDY, SCENES])), {"seen": []}
    text = polish(expand(rng, pick(rng, scene["-"]), env))
    asked = []
    if scene["?"]:
        for _ in range(integer(rng, 3, 6)):
            question, answer = expand(rng, pick(rng, scene["?"]), env).split(" = ")
            asked.append((question, answer))
    elif rng.random() < 0.15:
        asked = [("what is this", scene["heading"])]
    for question, answer in dict(asked).items():
        text += f"\n- {polish(question)}?\n- {tidy(answer)}."
    return {"text": text} if 120 <= len(text) <= 900 else None


# ---------------------------------------------------------------------------------------------------------------- law

def begin(rng, contract: str) -> dict:
    """A document's variables: its name, its roles [X] and [Y], and their names [A] and [B]."""
    names, pairs, a, b = CONTRACTS[contract]
    env = {"seen": [], "doc": pick(rng, names)}
    env["X"], env["Y"] = pick(rng, pairs)
    env["A"], env["B"] = fill(rng, a, env), fill(rng, b, env)
    return env


def clause_text(rng, clause: dict, env: dict) -> tuple[str, dict]:
    """One phrasing of the clause and the variables it binds; who is [D] is drawn anew for every clause."""
    env = dict(env)
    env["D"], env["E"] = pick(rng, [(env["X"], env["Y"]), (env["Y"], env["X"])])
    return expand(rng, pick(rng, clause["-"]), env), env


def clauses_of(contract: str) -> list[dict]:
    return [c for c in CLAUSES if c["of"] == contract or c["of"] == "*" and contract in AGREED]


def legal_text(rng) -> dict | None:
    """Several clauses of one document, as running text or with numbers and headings."""
    contract = pick(rng, AGREED + ["will", "power", "statute", "statute"])
    env, pool = begin(rng, contract), clauses_of(contract)
    own = [c for c in pool if c["of"] == contract]
    chosen = [PARTIES] if contract in AGREED and rng.random() < 0.4 else []
    for _ in range(integer(rng, 3, 5)):
        clause = pick(rng, own if rng.random() < 0.5 else pool)
        if clause not in chosen:
            chosen.append(clause)
    style, first, parts = pick(rng, ["plain", "plain", "section", "number"]), integer(rng, 1, 20), []
    for i, clause in enumerate(chosen):
        text, bound = clause_text(rng, clause, env)
        if rng.random() < 0.5 and contract in AGREED:
            text += " " + expand(rng, pick(rng, WORD["proviso"]), bound)
        head = {"plain": "", "section": f"Section {first + i}. {clause['heading']}. ",
                "number": f"{first}.{i + 1} {clause['heading']}. "}[style]
        parts.append(polish(head + polish(text)))
    text = ("\n" if style != "plain" else " ").join(parts)
    return {"text": text} if 250 <= len(text) <= 900 else None


def kind_of(clause: dict) -> str:
    """What a short clause is asked about, by the answer."""
    answer = clause["?"][0].rpartition(" = ")[2]
    return {"the [D]": "party", "[yn]": "yes or no"}.get(answer, "amount")


def choice(rng, answer: str, count: int, draw) -> list[str]:
    """The answer among others, in random order; draw() gives one."""
    options = [answer]
    while len(options) < count:
        other = draw()
        if other not in options:
            options.insert(integer(rng, 0, len(options)), other)
    return options


def legal_question(rng, wanted: str) -> dict:
    """A short clause, a question of the wanted kind, its options and the answer."""
    clause = pick(rng, [c for c in SHORT if wanted in ("clause", kind_of(c))])
    env = begin(rng, pick(rng, AGREED) if clause["of"] == "*" else clause["of"])
    text, bound = clause_text(rng, clause, env)
    yes_or_no = pick(rng, ["Yes", "No"])  # as often yes as no
    while wanted == "yes or no" and bound["yn"] != yes_or_no:
        text, bound = clause_text(rng, clause, env)
    question, template = clause["?"][0].split(" = ")
    question, answer = expand(rng, question, bound), expand(rng, template, bound)
    if wanted == "clause":
        question, answer = "which kind of clause is this", clause["heading"]
        options = choice(rng, answer, 4, lambda: pick(rng, SHORT)["heading"])
    elif wanted == "party":
        options = [f"the {env['X']}", f"the {env['Y']}"]
    elif wanted == "yes or no":
        options = ["Yes", "No"]
    else:  # amounts that the same clause might have
        options = choice(rng, answer, 3, lambda: expand(rng, template, clause_text(rng, clause, env)[1]))
    prompt = f"{polish(text)}\nQuestion: {polish(question)}?\nAnswer:"
    return {"prompt": prompt, "answer": answer, "options": options}


# -------------------------------------------------------------------------------------------------------------- files

def collect(make, rng, count: int) -> list[dict]:
    """So many different records; make() returns None for one that came out too short or too long."""
    records = {}
    while len(records) < count:
        record = make(rng)
        if record:
            records.setdefault(record.get("text") or record["prompt"], record)
    return list(records.values())


def make_english(part: int, count: int) -> list[str]:
    """The texts of one part of an endless corpus."""
    return [record["text"] for record in collect(english, random.Random(f"english {part}"), count)]


def make_legal() -> list[dict]:
    rng = random.Random("legal")
    records = collect(legal_text, rng, TEXTS)
    for wanted, count in QUESTIONS.items():
        records += collect(lambda rng: legal_question(rng, wanted), rng, count)
    rng.shuffle(records)
    return records


def write(path: Path, records: list[dict]) -> None:
    content = "".join(json.dumps(record) + "\n" for record in records).encode("ascii")
    path.write_bytes(content)
    print(f"{path}: {len(records)} records, {len(content) / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write legal.jsonl, or with --english general text.")
    parser.add_argument("--out", type=Path, default=HERE.parent / "legal.jsonl")
    parser.add_argument("--english", type=Path, help="write English text there instead")
    parser.add_argument("--records", type=int, default=20000, help="of English")
    args = parser.parse_args()
    if args.english:
        write(args.english, [{"text": text} for text in make_english(0, args.records)])
    else:
        write(args.out, make_legal())


if __name__ == "__main__":
    main()
