"""What a run measures beside its validation loss: questions answered rightly, the loss by format, memory.

With options a question is a choice, ranked by the mean log-likelihood of their tokens; without, only an answer that
greedy decoding gives word for word is right.
"""
import resource
import sys

import torch
import torch.nn.functional as F

import data
from export import validation_loss
from llama import Llama
from scripts.prepare import read

ROWS = 16  # answers that are weighed in one pass

@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def answer_scores(model: Llama, tokenizer: data.Tokenizer, examples, seq_len: int, masks=None) -> list:
    """Of each example the mean log-likelihood in nats of its answer's tokens and EOS, and whether greedy decoding
    gives them. ROWS at a time; a long prompt loses its beginning, so that both fit in `seq_len`."""
    found, output = [], model.output or model.tok_embeddings
    documents = [data.last_answer(*document) for document in data.encode(examples, tokenizer)]
    for some in (documents[i:i + ROWS] for i in range(0, len(documents), ROWS)):
        rows = [(before + ids)[-seq_len - 1:] for before, ids in some]
        width = max(map(len, rows))
        padded = torch.tensor([row + (width - len(row)) * [tokenizer.eos] for row in rows], device=output.weight.device)
        hidden = model.hidden(padded[:, :-1], masks)
        for row, h, (_, ids) in zip(rows, hidden, some):
            n = min(len(ids), len(row) - 1)
            wanted = padded.new_tensor(row[-n:])
            logp = F.linear(h[len(row) - 1 - n:len(row) - 1], output.weight).float().log_softmax(-1)  # n V
            found.append((logp.gather(1, wanted[:, None]).mean().item(), bool((logp.argmax(-1) == wanted).all())))
    return found


def answer_accuracy(model: Llama, tokenizer: data.Tokenizer, questions, seq_len: int, masks=None) -> float | None:
    """Fraction of questions whose likeliest option is the true one, or whose answer greedy decoding gives."""
    candidates = [[question._replace(answer=option) for option in question.options] or [question]
                  for question in questions]
    scores, right = iter(answer_scores(model, tokenizer, sum(candidates, []), seq_len, masks)), 0
    for question, answers in zip(questions, candidates):
        of_answers = [next(scores) for _ in answers]
        best = of_answers.index(max(of_answers))
        right += answers[best] == question if question.options else of_answers[best][1]
    return right / len(questions) if questions else None


def loss_by_format(run, model: Llama) -> dict[str, float]:
    """Validation loss, nats a token, of each format's records by themselves; nothing if there is but one format."""
    config, documents = run.config, {}
    examples = data.split([example for path in config.data for example in read(path)])["validation"]
    for example, document in zip(examples, data.encode(examples, run.tokenizer)):
        documents.setdefault(example.format, []).append(document)
    rows = {name: data.pack(some, config.seq_len, config.answer_only, run.tokenizer.eos)
            for name, some in documents.items()}
    return {name: validation_loss(model, some, config.batch_size) for name, some in rows.items() if len(rows) > 1}


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or that the process took otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
