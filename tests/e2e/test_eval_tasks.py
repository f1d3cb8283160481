"""Tasks scored through the mesh are scored as transformers scores them."""

import json
from pathlib import Path

import pytest
import torch
from mesh import Mesh
from reference import Reference
from terminal import Terminal

EXAMPLES = Path(__file__).parents[2] / "examples" / "tasks.jsonl"


def continuation_score(reference: Reference, context: str, continuation: str) -> tuple[float, bool]:
    """Sum of the log-probabilities of a continuation's tokens, and whether each of them is the most likely one."""
    encode = lambda text: reference.tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    tokens, num_context = encode(context + continuation), len(encode(context))
    with torch.no_grad():
        logits = reference.model(torch.tensor([tokens])).logits[0, num_context - 1 : -1]
    targets = torch.tensor(tokens[num_context:])
    logprobs = logits.log_softmax(-1).gather(1, targets[:, None])
    return float(logprobs.sum()), bool((logits.argmax(-1) == targets).all())


def test_tasks_equal_transformers(
    two_stages: Mesh, stories260k: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every log-probability is within 1e-3, and every choice and greedy match the same, on the example file."""
    lines = [json.loads(line) for line in EXAMPLES.read_text().splitlines()]
    reference = Reference.load(stories260k)

    flags = ("--model", stories260k, "--tasks", EXAMPLES, "--scheme", "w16", "--json")
    outcome = Terminal(monkeypatch, capsys).run(
        "eval", "tasks", *flags, "--coordinator", two_stages.coordinator.address
    )

    assert outcome.status == 0, outcome.err
    document = json.loads(outcome.out)
    samples = [sample for task in document["tasks"] for sample in task["samples"]]
    assert [sample["line"] for sample in samples] == list(range(1, len(lines) + 1))
    for line, sample in zip(lines, samples, strict=True):
        if "choices" in line:
            expected = [continuation_score(reference, line["context"], " " + choice)[0] for choice in line["choices"]]
            per_character = [score / len(choice) for score, choice in zip(expected, line["choices"], strict=True)]
            assert sample["is_right"] == (expected.index(max(expected)) == line["answer"])
            assert sample["is_right_by_length"] == (per_character.index(max(per_character)) == line["answer"])
        else:
            context, word = line["text"].rsplit(" ", 1)
            logprob, is_greedy = continuation_score(reference, context, " " + word)
            expected = [logprob]
            assert sample["is_right"] == is_greedy
        assert sample["logprobs"] == pytest.approx(expected, abs=1e-3)
    assert {task["acc"] for task in document["tasks"]}.isdisjoint({0.0, 1.0})
