"""One line in, one request or one error out."""

import json
import shutil
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from mesh import completion

from coordinator.openai_answers import generation_answer, scoring_answer
from coordinator.openai_requests import model_of
from coordinator.requests import Endpoint, Request
from coordinator.tokenizing import ModelTokenizer
from coordinator.validation import ValidatedLines, validate
from llmpq.batch import BatchOptions
from llmpq.frames import Sampling
from llmpq.schedule.sequence import FinishReason
from llmpq.text_tokenizer import TextTokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(opt_bytes: str) -> ModelTokenizer:
    """A byte-level tokenizer without a chat template; the context is 512 tokens."""
    return ModelTokenizer.load(opt_bytes)


@pytest.fixture(scope="module")
def chat_tokenizer(opt_bytes: str, tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    """The same with a chat template that refuses what says `refuse`."""
    model = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(opt_bytes, model)
    refusal = (
        "{% if messages[0].content == 'refuse' %}{{ raise_exception('not that') }}{% endif %}"
        "{% if messages[0].content == 'add' %}{{ 1 + 'not a number' }}{% endif %}"
    )
    Path(model / "chat_template.jinja").write_text(refusal + TEMPLATE)
    return ModelTokenizer.load(str(model))


def _validate(tokenizer: ModelTokenizer, *lines: object, options: BatchOptions | None = None) -> ValidatedLines:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return validate(enumerate(texts, start=1), "model", tokenizer, options or BatchOptions(model="model"))


def _request(tokenizer: ModelTokenizer, line: object, **options: Any) -> Request:
    validated = _validate(tokenizer, line, options=BatchOptions(model="model", **options))
    assert not validated.errors, validated.errors[0].json
    return validated.requests[0]


def _error(tokenizer: ModelTokenizer, line: object, **options: Any) -> dict[str, Any]:
    validated = _validate(tokenizer, line, options=BatchOptions(**({"model": "model"} | options)))
    assert not validated.requests
    answer = json.loads(validated.errors[0].json)
    assert answer["response"] is None
    assert answer["id"].startswith("batch_req_")
    error: dict[str, Any] = answer["error"]
    assert error["line"] == 1
    return error


def _chat(*messages: dict[str, Any], **body: Any) -> dict[str, Any]:
    return {
        "custom_id": "chat",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": list(messages), "seed": 1} | body,
    }


USER = {"role": "user", "content": "hi"}


def test_a_prompt_is_text_or_token_ids(tokenizer: ModelTokenizer) -> None:
    """Text is tokenized with the model's tokenizer; token ids are taken as they are."""
    text = _request(tokenizer, completion("a", "hé", 5))
    ids = _request(tokenizer, completion("b", text.prompt.tolist(), 5))

    assert len(text.prompt) == 3
    assert tokenizer.decode(text.prompt) == "hé"
    assert ids.prompt == text.prompt
    assert ids.max_tokens == 5


def test_chat_messages_go_through_the_template(chat_tokenizer: ModelTokenizer) -> None:
    """Messages become what the model's template makes of them, ready for the answer."""
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    request = _request(chat_tokenizer, _chat({"role": "system", "content": "s"}, parts))

    assert chat_tokenizer.decode(request.prompt) == "<system>s<user>ab<a>"
    assert request.endpoint is Endpoint.CHAT_COMPLETIONS


def test_unset_parameters_have_the_defaults_of_openai(
    tokenizer: ModelTokenizer, chat_tokenizer: ModelTokenizer
) -> None:
    """Temperature and top_p are 1; max_tokens 16 for completions, and our own 256 for chats, or what the batch says."""
    bare = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "hi"}}
    request = _request(tokenizer, bare)

    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (1.0, 0.0, 0)
    assert request.max_tokens == 16
    assert _request(tokenizer, bare, default_max_tokens=7).max_tokens == 7
    assert _request(chat_tokenizer, _chat(USER)).max_tokens == 256


def test_a_default_gives_way_to_the_context(tokenizer: ModelTokenizer) -> None:
    """Where nobody asked for a number of tokens, there are as many as the context has room for."""
    line = completion("a", "x" * 510, 1)
    del line["body"]["max_tokens"]

    assert _request(tokenizer, line).max_tokens == 2


def test_every_draw_has_a_seed(tokenizer: ModelTokenizer) -> None:
    """A seed that is given is kept, also a negative one; one that is not is drawn; greedy needs none."""
    assert _request(tokenizer, completion("a", "hi", 1, temperature=1, seed=-1)).sampling.seed == 2**64 - 1
    drawn = {_request(tokenizer, completion("a", "hi", 1, temperature=1)).sampling.seed for _ in range(3)}
    assert len(drawn) == 3
    assert _request(tokenizer, completion("a", "hi", 1, seed=5)).sampling == Sampling()


def test_sampling_parameters_are_kept(tokenizer: ModelTokenizer) -> None:
    """Temperature, top_p, top_k and seed reach the stage as they were given; null is unset."""
    line = completion("a", "hi", 1, temperature=0.5, top_p=0.9, top_k=7, seed=3, stop=None, logprobs=None)

    assert _request(tokenizer, line).sampling == Sampling(0.5, 0.9, 7, 3)


def test_tiny_parameters_keep_their_meaning(tokenizer: ModelTokenizer) -> None:
    """What is nearly 0 is still above 0 as a 32-bit float, for 0 means greedy, or no limit."""
    drawn = _request(tokenizer, completion("a", "hi", 1, temperature=1e-300, top_p=1e-300)).sampling
    on_the_wire = array("f", [drawn.temperature, drawn.top_p])

    assert on_the_wire == array("f", [1e-4, 1e-6])
    assert min(on_the_wire) > 0


def test_a_tokenizer_is_loaded_once_until_its_files_change(opt_bytes: str, tmp_path: Path) -> None:
    """Submission and run share one tokenizer; new files make a new one."""
    model = tmp_path / "model"
    shutil.copytree(opt_bytes, model)
    first = ModelTokenizer.load(str(model))
    assert ModelTokenizer.load(str(model)) is first
    (model / "chat_template.jinja").write_text(TEMPLATE)

    assert ModelTokenizer.load(str(model)).tokenizer.chat_template == TEMPLATE


def test_stop_is_a_string_or_a_list(tokenizer: ModelTokenizer) -> None:
    """Stop strings and stop token ids are kept, and ignore_eos."""
    one = _request(tokenizer, completion("a", "hi", 1, stop="\n", stop_token_ids=[9], ignore_eos=True))
    two = _request(tokenizer, completion("a", "hi", 1, stop=["x", "y"]))

    assert (one.stop_strings, one.stop_ids, one.ignores_eos) == (("\n",), (9,), True)
    assert two.stop_strings == ("x", "y")


def test_echo_with_logprobs_and_no_tokens_scores_the_prompt(tokenizer: ModelTokenizer) -> None:
    """echo, logprobs and max_tokens 0 together ask for the log-probabilities of the prompt, up to the whole context."""
    request = _request(tokenizer, completion("a", "x" * 512, 0, echo=True, logprobs=0))

    assert request.is_scoring


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"echo": True}, "body.echo"),
        ({"logprobs": 1}, "body.logprobs"),
        ({"max_tokens": 0}, "body.max_tokens"),
        ({"echo": True, "logprobs": 1, "max_tokens": 4}, "body.logprobs"),
        ({"echo": True, "logprobs": 2, "max_tokens": 0}, "body.logprobs"),
        ({"n": 2}, "body.n"),
        ({"best_of": 3}, "body.best_of"),
        ({"stream": True}, "body.stream"),
        ({"presence_penalty": 0.5}, "body.presence_penalty"),
        ({"frequency_penalty": -0.5}, "body.frequency_penalty"),
        ({"logit_bias": {"50": 1}}, "body.logit_bias"),
        ({"suffix": "end"}, "body.suffix"),
        ({"min_tokens": 4}, "body.min_tokens"),
        ({"grammar": "x"}, "body.grammar"),
        ({"temperature": -0.1}, "body.temperature"),
        ({"temperature": 2.5}, "body.temperature"),
        ({"temperature": "warm"}, "body.temperature"),
        ({"top_p": 0}, "body.top_p"),
        ({"top_p": 1.1}, "body.top_p"),
        ({"top_k": -2}, "body.top_k"),
        ({"seed": 1.5}, "body.seed"),
        ({"max_tokens": -1}, "body.max_tokens"),
        ({"max_tokens": 2.5}, "body.max_tokens"),
        ({"max_tokens": True}, "body.max_tokens"),
        ({"stop": [""]}, "body.stop"),
        ({"stop": ""}, "body.stop"),
        ({"stop_token_ids": [-1]}, "body.stop_token_ids"),
        ({"prompt": ["one", "two"]}, "body.prompt"),
        ({"prompt": 5}, "body.prompt"),
        ({"prompt": [999]}, "body.prompt"),
        ({"prompt": [-1]}, "body.prompt"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    tokenizer: ModelTokenizer, body: dict[str, Any], param: str
) -> None:
    """A parameter that is out of range, of a wrong type or not supported is an error that names it, never ignored."""
    line = completion("a", "hi", 4)
    line["body"] |= body

    error = _error(tokenizer, line)

    assert error["param"].startswith(param)
    assert param in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [{"type": "function"}]},
        {"tool_choice": "auto"},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"max_tokens": 0},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"messages": [{"role": "robot", "content": "hi"}]},
        {"messages": [{"role": "user"}]},
        {"messages": "hi"},
    ],
)
def test_what_a_chat_cannot_have_is_refused_by_name(chat_tokenizer: ModelTokenizer, body: dict[str, Any]) -> None:
    """The same for chat completions."""
    error = _error(chat_tokenizer, _chat(USER, **body))

    assert next(iter(body)) in error["param"]


def test_parameters_without_effect_are_accepted(tokenizer: ModelTokenizer) -> None:
    """What changes nothing is no error: neutral values, and fields for the service rather than the model."""
    line = completion("a", "hi", 4, n=1, stream=False, presence_penalty=0, logit_bias={}, user="me", model="any")

    assert _request(tokenizer, line)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"custom_id": "a"', "invalid_json_line"),
        ("[1]", "invalid_json_line"),
        ("[" * 100_000, "invalid_json_line"),
        ('{"method": "POST", "url": "/v1/completions", "body": {}}', "missing_custom_id"),
        ('{"custom_id": 5, "method": "POST", "url": "/v1/completions", "body": {}}', "invalid_value"),
        ('{"custom_id": "a", "method": "GET", "url": "/v1/completions", "body": {}}', "invalid_method"),
        ('{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {}}', "invalid_url"),
        ('{"custom_id": "a", "method": "POST", "url": "/v1/completions"}', "missing_required_parameter"),
        ('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}', "missing_required_parameter"),
        ('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": ""}}', "empty_prompt"),
        ('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": []}}', "empty_prompt"),
        (
            '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}',
            "empty_prompt",
        ),
    ],
)
def test_a_malformed_line_is_an_error_of_its_own_kind(tokenizer: ModelTokenizer, text: str, code: str) -> None:
    """Each way of being malformed has a code, as far as they exist those of OpenAI."""
    assert _error(tokenizer, text)["code"] == code


@pytest.mark.parametrize(
    ("prompt_tokens", "body"),
    [(513, {"max_tokens": 1}), (500, {"max_tokens": 13}), (512, {"max_tokens": None})],
)
def test_a_request_must_fit_the_context(tokenizer: ModelTokenizer, prompt_tokens: int, body: dict[str, Any]) -> None:
    """Prompt and answer together must fit; the error names the context and what was asked for."""
    line = completion("a", "x" * prompt_tokens, 1)
    line["body"] |= body

    error = _error(tokenizer, line)

    assert error["code"] == "context_length_exceeded"
    assert "512" in error["message"]
    assert str(prompt_tokens) in error["message"]


def test_a_second_custom_id_names_both_lines(tokenizer: ModelTokenizer) -> None:
    """Of two lines with one custom_id the first is run, and the second says which lines they are."""
    validated = _validate(tokenizer, completion("a", "x", 1), completion("b", "x", 1), completion("a", "y", 1))

    assert [request.line_number for request in validated.requests] == [1, 2]
    error = json.loads(validated.errors[0].json)["error"]
    assert error["code"] == "duplicate_custom_id"
    assert "line 3" in error["message"]
    assert "line 1" in error["message"]


def test_chat_needs_a_template(tokenizer: ModelTokenizer) -> None:
    """A model without a chat template cannot chat, and the error says what can be done."""
    error = _error(tokenizer, _chat(USER))

    assert error["code"] == "no_chat_template"
    assert "/v1/completions" in error["message"]


def test_what_a_template_refuses_is_an_error_of_the_line(chat_tokenizer: ModelTokenizer) -> None:
    """An exception that the template raises reaches the line's author."""
    assert "not that" in _error(chat_tokenizer, _chat(USER | {"content": "refuse"}))["message"]
    assert "unsupported operand" in _error(chat_tokenizer, _chat(USER | {"content": "add"}))["message"]


@pytest.mark.parametrize(
    "line",
    [
        r'{"custom_id": "x\ud800", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}',
        r'{"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a", "\ud800": 1}}',
        r'{"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Once \uDBFF"}}',
    ],
)
def test_half_a_surrogate_pair_is_an_error_of_the_line(tokenizer: ModelTokenizer, line: str) -> None:
    """Text that UTF-8 cannot hold is refused before it is stored or sent, and nothing of the line is repeated."""
    validated = _validate(tokenizer, line)

    (answer,) = validated.errors
    assert json.loads(answer.json)["error"]["code"] == "invalid_json_line"
    assert (answer.custom_id, model_of(line)) == ("", "")
    assert answer.json.encode()


def test_a_whole_surrogate_pair_is_a_character(tokenizer: ModelTokenizer) -> None:
    """JSON escapes a character beyond the basic plane as two halves, and that is as good as the character."""
    line = json.dumps(completion("a", "\U0001f600", 1))

    assert r"\ud83d\ude00" in line
    assert tokenizer.decode(_request(tokenizer, line).prompt) == "\U0001f600"


def test_a_tokenizer_that_fails_on_a_line_fails_no_other(tokenizer: ModelTokenizer) -> None:
    """Whatever the tokenizer raises for a line is the error of that line."""

    class Picky:
        def encode(self, text: str) -> list[int]:
            if text == "bad":
                raise RuntimeError("upset")
            return tokenizer.encode(text)

    picky = cast("TextTokenizer", Picky())
    validated = _validate(replace(tokenizer, tokenizer=picky), completion("a", "bad", 1), completion("b", "good", 1))

    assert [request.custom_id for request in validated.requests] == ["b"]
    assert "RuntimeError" in json.loads(validated.errors[0].json)["error"]["message"]


def test_a_batch_runs_one_model(tokenizer: ModelTokenizer) -> None:
    """Where the options name no model, a line may not name another than the batch runs."""
    error = _error(tokenizer, completion("a", "hi", 1, model="another"), model="")

    assert error["code"] == "model_mismatch"
    assert _request(tokenizer, completion("a", "hi", 1, model="another"))


def test_answers_have_the_form_of_openai(tokenizer: ModelTokenizer, chat_tokenizer: ModelTokenizer) -> None:
    """Each endpoint's answer is what the live one would send, with custom_id, usage and finish reason."""
    chat = _request(chat_tokenizer, _chat(USER))
    text = _request(tokenizer, completion("text", "hi", 4))

    answers = [
        json.loads(
            generation_answer(request, model="m", text="out", num_generated=3, finish_reason=FinishReason.STOP).json
        )
        for request in (chat, text)
    ]

    assert [answer["custom_id"] for answer in answers] == ["chat", "text"]
    assert all(answer["error"] is None and answer["response"]["status_code"] == 200 for answer in answers)
    chat_body, text_body = (answer["response"]["body"] for answer in answers)
    assert (chat_body["object"], text_body["object"]) == ("chat.completion", "text_completion")
    assert chat_body["choices"][0]["message"] == {"role": "assistant", "content": "out"}
    assert text_body["choices"] == [{"index": 0, "text": "out", "logprobs": None, "finish_reason": "stop"}]
    assert text_body["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert text_body["model"] == "m"


def test_scores_begin_with_null(tokenizer: ModelTokenizer) -> None:
    """The first token of a prompt has no log-probability; the others have one each."""
    request = _request(tokenizer, completion("a", "abc", 0, echo=True, logprobs=0))

    body = json.loads(scoring_answer(request, model="m", text="abc", logprobs=[-1.0, -2.0]).json)["response"]["body"]

    assert body["choices"][0]["text"] == "abc"
    assert body["choices"][0]["logprobs"]["token_logprobs"] == [None, -1.0, -2.0]
    assert body["choices"][0]["logprobs"]["tokens"] == ["token_id:67", "token_id:68", "token_id:69"]
    assert body["usage"]["completion_tokens"] == 0
