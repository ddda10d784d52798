"""What a run measures beside its validation loss: questions answered rightly, the loss by format, memory.

With options a question is a choice, ranked by the mean log-likelihood of their tokens; without, only an answer that
greedy decoding gives word for word is right.
"""
import resource
import sys

import torch

import data
from export import validation_loss
from llama import Llama
from scripts.prepare import read


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def answer_score(model: Llama, tokenizer: data.Tokenizer, example: data.Example, seq_len: int, masks=None):
    """Mean log-likelihood in nats of the answer's tokens and EOS, and whether greedy decoding gives them; a
    long prompt loses its beginning, so that both fit in `seq_len`."""
    before, ids = data.last_answer(*data.encode([example], tokenizer)[0])
    row = torch.tensor((before + ids)[-seq_len - 1:], device=model.norm.weight.device)
    n = min(len(ids), len(row) - 1)
    logp = model(row[None, :-1], masks)[0, -n:].log_softmax(-1)  # n V
    return logp.gather(1, row[-n:, None]).mean().item(), bool((logp.argmax(-1) == row[-n:]).all())


def answer_accuracy(model: Llama, tokenizer: data.Tokenizer, questions, seq_len: int, masks=None) -> float | None:
    """Fraction of questions whose likeliest option is the true one, or whose answer greedy decoding gives."""
    right = 0
    for question in questions:
        answers = [question._replace(answer=option) for option in question.options] or [question]
        scores = [answer_score(model, tokenizer, answer, seq_len, masks) for answer in answers]
        best = scores.index(max(scores))
        right += answers[best] == question if question.options else scores[best][1]
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
