"""The evaluations of the command line, against a coordinator that scores every token alike."""

import json
from pathlib import Path

import pytest
from fake_coordinator import PLAN, TOKEN_LOGPROB, FakeCoordinator
from terminal import Outcome, Terminal

from llmpq.cli.eval_text import encoder, first_tokens, read_text
from llmpq.errors import InvalidInputError
from llmpq.tokenizer import load_tokenizer
from llmpq.v1 import coordinator_service_pb2 as pb

STORIES = Path(__file__).parents[1] / "data" / "stories260K"
BATCH_KEYS = {"batch_id", "state", "model", "wall_s", "plan_hash", "stages"}
DESCRIBED = {"scheme", "group", "rounding", "symmetric", "precisions"}


def ppl(terminal: Terminal, address: str, text: Path, *flags: object) -> Outcome:
    """Runs `llmpq eval ppl` on the fake coordinator."""
    return terminal.run("eval", "ppl", "--model", STORIES, "--text", text, "--coordinator", address, "--json", *flags)


def tasks(terminal: Terminal, address: str, path: Path, *flags: object) -> Outcome:
    """Runs `llmpq eval tasks` on the fake coordinator."""
    return terminal.run("eval", "tasks", "--model", STORIES, "--tasks", path, "--coordinator", address, *flags)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """More than 33 tokens of plain text."""
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time there was a little girl. " * 20)
    return path


def test_perplexity_is_the_mean_over_scored_tokens(terminal: Terminal, address: str, text: Path) -> None:
    """Windows do not overlap, their first tokens are not scored, a window of one token is left out."""
    outcome = ppl(terminal, address, text, "--scheme", "w4", "--group", 64, "--tokens", 33, "--window", 16)
    document = json.loads(outcome.out)
    assert outcome.status == 0, outcome.err
    assert document["perplexity"] == pytest.approx(8.0)
    assert (document["tokens"], document["scored_tokens"], document["window"]) == (33, 30, 16)
    described = {"scheme": "w4", "group": 64, "rounding": "nearest", "symmetric": False}
    assert document | described | {"precisions": {"w8": 2, "w4": 2}} == document
    assert set(document) >= BATCH_KEYS


def test_documents_are_joined_before_they_are_cut(terminal: Terminal, address: str, tmp_path: Path) -> None:
    """A .jsonl file is the text of its lines with blank lines between; other fields and empty lines are ignored."""
    documents, plain = tmp_path / "c4.jsonl", tmp_path / "c4.txt"
    documents.write_text('{"text": "One day.", "url": "u"}\n\n{"text": "Two dogs ran."}\n')
    plain.write_text("One day.\n\nTwo dogs ran.")
    counts = [json.loads(ppl(terminal, address, path).out)["tokens"] for path in (documents, plain)]
    assert counts[0] == counts[1]


def test_rounding_is_passed_on(
    terminal: Terminal, background_coordinator: FakeCoordinator, address: str, text: Path
) -> None:
    """--rounding and --symmetric become options of the plan, and stand in the document."""
    outcome = ppl(terminal, address, text, "--scheme", "w3", "--rounding", "gptq", "--symmetric")
    rounding = background_coordinator.submissions[0].plan_options.rounding
    assert (rounding.method, rounding.is_symmetric) == ("gptq", True)
    assert json.loads(outcome.out) | {"rounding": "gptq", "symmetric": True} == json.loads(outcome.out)


def test_precisions_are_given_layer_by_layer(
    terminal: Terminal, background_coordinator: FakeCoordinator, address: str, text: Path
) -> None:
    """Runs of schemes become one scheme a layer; there is then no scheme of the whole model."""
    outcome = ppl(terminal, address, text, "--precisions", "w8*2, w4,w3*3", "--group", 128)
    options = background_coordinator.submissions[0].plan_options
    assert list(options.layer_schemes) == ["w8", "w8", "w4", "w3", "w3", "w3"]
    assert (list(options.allowed_schemes), options.group_size) == ([], 128)
    assert json.loads(outcome.out)["scheme"] is None


def test_a_plan_gives_the_precisions(
    terminal: Terminal, background_coordinator: FakeCoordinator, address: str, text: Path, tmp_path: Path
) -> None:
    """What `plan --json` and `status --json` write can be served as it is but for what flags say."""
    lengths = ("--batch", 8, "--prompt-len", 16, "--gen-len", 4)
    planned = terminal.run("plan", "--model", "m", *lengths, "--coordinator", address, "--json").out
    document = json.loads(planned)
    document["plans"][0]["plan"] |= {
        "rounding": {"method": "hqq", "is_symmetric": True},
        "has_int8_kv_cache": True,
        "has_int8_activations": True,
    }
    path = tmp_path / "plan.json"
    expected = [layer.scheme for stage in PLAN.stages for layer in stage.layers]
    for written in (document, document["plans"][0], document["plans"][0]["plan"]):
        path.write_text(json.dumps(written))
        assert ppl(terminal, address, text, "--precisions", path).status == 0
        options = background_coordinator.submissions[-1].plan_options
        assert list(options.layer_schemes) == expected
        assert (options.group_size, options.rounding.method, options.rounding.is_symmetric) == (64, "hqq", True)
        assert options.has_int8_kv_cache
        assert options.has_int8_activations
    ppl(terminal, address, text, "--precisions", path, "--rounding", "gptq", "--group", 0)
    options = background_coordinator.submissions[-1].plan_options
    assert (options.group_size, options.rounding.method, options.rounding.is_symmetric) == (0, "gptq", False)


@pytest.mark.parametrize(
    ("flags", "taught"),
    [
        (("--precisions", "w8*2,w5"), "'w5' is not SCHEME or SCHEME*LAYERS"),
        (("--precisions", "w8*0"), "'w8*0' is not SCHEME or SCHEME*LAYERS"),
        (("--precisions", "w8", "--scheme", "w8"), "not both"),
        (("--precisions", "none.json"), "none.json: [Errno 2]"),
        (("--precisions", "{dir}/list.json"), "list.json has no plan"),
        (("--precisions", "{dir}/broken.json"), "broken.json: Expecting"),
        (("--precisions", "{dir}/odd.json"), "odd.json: Plan.model: Field required"),
        (("--precisions", "{dir}/two.json"), "two.json has 2 plans"),
        (("--precisions", "{dir}/mixed.json"), "groups of [0, 64]"),
        (("--rounding", "stochastic"), "nearest, hqq, gptq"),
    ],
)
def test_unclear_precisions_are_refused(  # noqa: PLR0917
    terminal: Terminal, address: str, text: Path, tmp_path: Path, flags: tuple[str, ...], taught: str
) -> None:
    """What can be told from flags and files is refused before anything is started, and says what is wrong."""
    layers = [{"scheme": "w4", "group_size": size} for size in (0, 64)]
    plan = {"model": "m", "strategy": "", "stages": [{"device_id": "a", "first_layer": 0, "layers": layers}]}
    sizes = ("prefill_micro_batch", "decode_micro_batch", "num_lanes", "max_sequence_tokens", "max_prefill_tokens")
    files = {
        "list": "[]",
        "broken": "{",
        "odd": "{}",
        "two": json.dumps({"plans": [{"plan": {}}, {"plan": None}, {"plan": {"a": 1}}, {"plan": {"b": 1}}]}),
        "mixed": json.dumps(plan | dict.fromkeys(sizes, 1)),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(content)
    outcome = ppl(terminal, address, text, *(flag.format(dir=tmp_path) for flag in flags))
    assert outcome.status == 2
    # Messages are wrapped into a box; a long path may be broken anywhere.
    assert taught.replace(" ", "") in "".join(outcome.err.replace("│", " ").split())


def test_tasks_are_scored_by_the_log_probability_of_continuations(
    terminal: Terminal, address: str, tmp_path: Path
) -> None:
    """Where all tokens are equally likely, acc goes to the fewest tokens, and perplexity is that of all of a word."""
    path = tmp_path / "few.jsonl"
    lines = [
        {"task": "dogs", "context": "The dog saw a", "choices": ["big red ball in the park", "ball"], "answer": 1},
        {"task": "dogs", "context": "The dog saw a", "choices": ["big red ball in the park", "ball"], "answer": 0},
        {"text": "Lily was very happy"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    outcome = tasks(terminal, address, path, "--scheme", "w4", "--json")
    assert outcome.status == 0, outcome.err
    document = json.loads(outcome.out)
    dogs, few = document["tasks"]
    assert (dogs["task"], dogs["kind"], dogs["items"]) == ("dogs", "multiple_choice", 2)
    assert (dogs["acc"], dogs["acc_stderr"]) == (0.5, 0.5)
    assert dogs["samples"][0]["logprobs"][1] == pytest.approx(2 * TOKEN_LOGPROB)  # two tokens: b, all
    assert [sample["line"] for sample in dogs["samples"]] == [1, 2]
    assert (few["task"], few["kind"], few["acc"], few["acc_stderr"]) == ("few", "last_word", 0.0, None)
    assert few["perplexity"] == pytest.approx(8.0)
    assert set(document) >= BATCH_KEYS | DESCRIBED
    table = tasks(terminal, address, path).out
    assert "0.5000 ± 0.5000" in table
    assert "8.0000" in table


def test_malformed_items_are_named_by_line(terminal: Terminal, address: str, tmp_path: Path) -> None:
    """Each of the first lines that are no items is named with what is wrong; further ones are counted."""
    path = tmp_path / "bad.jsonl"
    good = {"task": "a", "context": "One", "choices": ["day", "dog"], "answer": 0}
    bad = [
        (good | {"answer": 2}, "line 2: `answer` is 2; there are choices 0 to 1"),
        ({"task": "a", "context": "One", "choices": ["day", "dog"]}, "line 3: `answer` is missing"),
        ({"context": "One"}, "line 4: needs either `choices` (with `context` and `answer`) or `text`"),
        ({"text": "One"}, "line 5: `text` has fewer than two words"),
        ({"task": "a", "text": "One day"}, "line 6: is of another kind than line 1 of the same task"),
        (good | {"choices": ["day"]}, "and 2 more"),
        (good | {"context": " "}, "and 2 more"),
    ]
    path.write_text("\n".join(map(json.dumps, [good, *(line for line, _ in bad)])))
    outcome = tasks(terminal, address, path)
    assert outcome.status == 1
    for _, complaint in bad:
        assert complaint in outcome.err


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"answer": "1"}, "`answer` is not a whole number"),
        ({"answer": True}, "`answer` is not a whole number"),
        ({"answer": 1.0}, "`answer` is not a whole number"),
        ({"choices": "day"}, "`choices` is not a list of strings"),
        ({"choices": ["day", 2]}, "`choices` is not a list of strings"),
        ({"task": 3}, "`task` is not a string"),
    ],
    ids=str,
)
def test_fields_of_other_types_are_refused_in_the_words_of_json(
    terminal: Terminal, address: str, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    """What looks like a number is none; a file that means something else is not scored as if it did not."""
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({"task": "a", "context": "One", "choices": ["day", "dog"], "answer": 0} | changes))
    outcome = tasks(terminal, address, path)
    assert outcome.status == 1
    assert f"line 1: {complaint}" in outcome.err


def test_a_failed_batch_is_told_by_its_own_words(
    terminal: Terminal, background_coordinator: FakeCoordinator, address: str, text: Path
) -> None:
    """Why the batch failed is said once, not that a line of it was not answered."""
    background_coordinator.final_state = pb.BATCH_STATE_FAILED
    outcome = ppl(terminal, address, text, "--scheme", "w4")
    assert outcome.status == 1
    assert "Batch batch-1 failed: the fake says so" in outcome.err
    assert "window-0" not in outcome.err


def test_precisions_for_another_number_of_layers_start_no_mesh(terminal: Terminal, text: Path) -> None:
    """Where a mesh would be started for the call, the model's layers are counted first."""
    for command in (
        ("eval", "ppl", "--text", text),
        ("run-batch", "-i", text, "-o", text.with_name("o")),
        ("plan", "--batch", 1, "--prompt-len", 8, "--gen-len", 8),
    ):
        outcome = terminal.run(*command, "--model", STORIES, "--precisions", "w8*3", "--stages", 1)
        assert outcome.status == 2
        taught = "".join(outcome.err.replace("│", " ").split())
        assert "--precisionsisfor3layers,andthemodelhas5." in taught
        assert "Startingamesh" not in taught


@pytest.mark.parametrize("count", [2, 100, 900])
def test_the_first_tokens_are_those_of_the_whole_text(wikitext_head: Path, count: int) -> None:
    """What is not encoded does not change the tokens that are, and little more is read and encoded than is used."""
    text = wikitext_head.read_text(encoding="utf-8")[:20_000]
    encode = encoder(load_tokenizer(str(STORIES)))
    encoded, rest = [], iter([text[first : first + 500] for first in range(0, len(text), 500)])

    def counted(part: str) -> list[int]:
        encoded.append(len(part))
        return encode(part)

    assert first_tokens(counted, rest, count) == encode(text)[:count]
    assert sum(encoded) < len(text)
    assert next(rest, None) is not None


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_texts_longer_than_a_block_are_read_whole(tmp_path: Path, suffix: str) -> None:
    """What two blocks share, a character or the end of a line, comes out as one; a byte that is no UTF-8 is named."""
    text = "é\r\n" * 60_000
    path = tmp_path / f"long{suffix}"
    stored = text if suffix == ".txt" else "\r\n".join(json.dumps({"text": part}) for part in ("first é", text, "last"))
    path.write_bytes(b"\xef\xbb\xbf" + stored.encode())
    expected = text.replace("\r\n", "\n") if suffix == ".txt" else f"first é\n\n{text}\n\nlast"
    assert read_text(path) == expected
    path.write_bytes(stored.encode() + b"\xff")
    with pytest.raises(InvalidInputError, match=f"not UTF-8, at byte {len(stored.encode()):,}"):
        read_text(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"text": "One day"}\nnot json\n', "line 2: not JSON"),
        ("[1]\n", "line 1: not a JSON object."),
        ("\n\n", "has no items."),
    ],
)
def test_files_without_items_are_refused(
    terminal: Terminal, address: str, tmp_path: Path, content: str, complaint: str
) -> None:
    """A line that is no JSON object is named; an empty file is no success."""
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    outcome = tasks(terminal, address, path)
    assert outcome.status == 1
    assert f"{path}" in outcome.err
    assert complaint in outcome.err


def test_documents_without_text_are_refused(terminal: Terminal, address: str, tmp_path: Path) -> None:
    """A line of a .jsonl text without `text` is named."""
    path = tmp_path / "c4.jsonl"
    path.write_text('{"text": "One day."}\n{"body": "Two."}\n')
    outcome = ppl(terminal, address, path)
    assert outcome.status == 1
    assert "line 2: has no field `text`" in outcome.err
