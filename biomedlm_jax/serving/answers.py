"""What the server says: completions and errors, in the shapes of OpenAI's API [1].

[1] https://platform.openai.com/docs/api-reference/completions
"""

import json
from collections.abc import Mapping
from typing import Any

JSON = "application/json"
EVENTS = "text/event-stream"
DONE = b"data: [DONE]\n\n"  # the last event of a stream that came to its end
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refused(Exception):  # noqa: N818 (an answer)
    """Ends a request with an answer that says what was wrong and what is allowed.

    Attributes:
      status: of HTTP.
      param: the field of the request that it is about.
      code: a word for programs.
      headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = {},
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        about = {"type": _KINDS.get(self.status, kind), "param": self.param, "code": self.code}
        return {"error": {"message": self.message, **about}}


def completion(
    id: str,
    created: int,
    model: str,
    choices: list[dict[str, Any]],
    **usage: Any,
) -> dict[str, Any]:
    """The whole answer, or one piece of a stream.

    created: seconds since 1970.
    usage: the field `usage`, where there is one.
    """
    about = {"id": id, "object": "text_completion", "created": created, "model": model}
    return {**about, "choices": choices, **usage}


def choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def usage(prompt: int, written: int) -> dict[str, int]:
    """prompt: tokens of all prompts, each counted once. written: of all choices."""
    total = prompt + written
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": total}


def models(name: str, created: int, context: int) -> dict[str, Any]:
    return {"object": "list", "data": [model(name, created, context)]}


def model(name: str, created: int, context: int) -> dict[str, Any]:
    """context: how many tokens a prompt and what is written after it have together, at most."""
    about = {"id": name, "object": "model", "created": created, "owned_by": "biomedlm_jax"}
    return {**about, "context": context}


def encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def event(body: Mapping[str, Any]) -> bytes:
    """A server-sent event: JSON has no line break outside its escapes."""
    return b"data: " + encoded(body) + b"\n\n"
