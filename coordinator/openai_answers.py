"""Lines of OpenAI's batch output format.

An answered line has `response` with status code 200 and the body that the live endpoint would have sent, and `error`
null. A line that was not run has `response` null and `error` with `code`, `message`, `line` (of the input, from 1) and
`param` (the field concerned, or null).
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.openai_requests import LineError
from coordinator.requests import Answer, Endpoint, Request
from llmpq.schedule.sequence import FinishReason


def generation_answer(
    request: Request,
    *,
    model: str,
    text: str,
    num_generated: int,
    finish_reason: FinishReason,
) -> Answer:
    """The answer to a request that generated `text`."""
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
    if request.endpoint is Endpoint.CHAT_COMPLETIONS:
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    return _answered(request, model, choice, num_generated)


def scoring_answer(request: Request, *, model: str, text: str, logprobs: Sequence[float]) -> Answer:
    """The answer to a request that scores its prompt.

    Args:
        request: The request; its prompt has n tokens.
        model: The model's name.
        text: The prompt as text, echoed.
        logprobs: n - 1 natural logarithms: of each token after the first, given those before it.
    """
    scores = {
        "tokens": [f"token_id:{token}" for token in request.prompt],
        "token_logprobs": [None, *logprobs],
        "top_logprobs": None,
    }
    choice = {"index": 0, "text": text, "logprobs": scores, "finish_reason": FinishReason.LENGTH}
    return _answered(request, model, choice, num_generated=0)


def error_answer(line_number: int, custom_id: str, error: LineError) -> Answer:
    """The answer to a line that was not run."""
    details = {"code": error.code, "message": error.message, "line": line_number, "param": error.param}
    return _line(line_number, custom_id, response=None, error=details)


def _answered(request: Request, model: str, choice: Mapping[str, Any], num_generated: int) -> Answer:
    is_chat = request.endpoint is Endpoint.CHAT_COMPLETIONS
    body = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": len(request.prompt),
            "completion_tokens": num_generated,
            "total_tokens": len(request.prompt) + num_generated,
        },
    }
    response = {"status_code": 200, "request_id": f"req_{uuid.uuid4().hex}", "body": body}
    return _line(request.line_number, request.custom_id, response=response, error=None)


def _line(
    line_number: int,
    custom_id: str,
    *,
    response: Mapping[str, Any] | None,
    error: Mapping[str, Any] | None,
) -> Answer:
    line = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": custom_id or None,
        "response": response,
        "error": error,
    }
    return Answer(line_number, custom_id, is_error=error is not None, json=json.dumps(line, ensure_ascii=False))
