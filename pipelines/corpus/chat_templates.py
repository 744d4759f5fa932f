"""Chat templates, rendered in a process of their own that is killed when it takes too long: see `template_process.py`.

One such process serves all threads of a worker; it costs 70 MB, two seconds to begin with, and 0.2 ms a
conversation.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select as polling
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.rejects import CHAT_TEMPLATE, RejectedError
from schemas.errors import TeacherError

SECONDS = 20.0
"""What one conversation may take, all its turns together."""
START_SECONDS = 120.0
_STRIKES = 3
"""Conversations that a template may be too slow or too large for, before the run fails."""
_SCRIPT = Path(__file__).with_name("template_process.py")


_ANSWER = "An answer, as 7 as 7."
"""That no template writes by itself."""


class ChatPart(NamedTuple):
    """A rendered text, and where in it the answers stand (characters); None: all of it is supervised."""

    text: str
    spans: list[tuple[int, int]] | None


class LimitError(Exception):
    """The template took too long or too much."""


class Renderer:
    """The process that renders, begun when it is first needed and again when it had to be killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to one request.

        Raises:
            LimitError: there was none in time, or the process died of it.
        """
        data = json.dumps(request, default=str).encode()
        with self._lock:
            try:
                if self._child is None:
                    self._start()
                return self._exchange(data, SECONDS)
            except (LimitError, OSError) as error:
                self.close()
                raise error if isinstance(error, LimitError) else LimitError("ended the process") from error

    def _start(self) -> None:
        environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        # an answer comes as soon as all is imported
        self._exchange(json.dumps({"variables": []}).encode(), START_SECONDS)

    def _exchange(self, data: bytes, seconds: float) -> dict[str, Any]:
        child = self._child
        assert child is not None
        assert child.stdin is not None
        child.stdin.write(len(data).to_bytes(8, "big") + data)
        child.stdin.flush()
        deadline = time.monotonic() + seconds
        size = int.from_bytes(self._read(8, deadline, seconds), "big")
        reply: dict[str, Any] = json.loads(self._read(size, deadline, seconds))
        return reply

    def _read(self, size: int, deadline: float, seconds: float) -> bytes:
        assert self._child is not None
        assert self._child.stdout is not None
        poll, found = polling.poll(), bytearray()
        descriptor = self._child.stdout.fileno()
        poll.register(descriptor, polling.POLLIN)
        while len(found) < size:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise LimitError(f"did not end in {seconds:g} s")
            part = os.read(descriptor, min(size - len(found), 2**20))
            if not part:
                raise LimitError("ended the process")
            found += part
        return bytes(found)

    def close(self) -> None:
        """Ends the process, whatever it does."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            with contextlib.suppress(OSError):
                child.communicate()


@functools.cache
def renderer() -> Renderer:
    """The one of this process."""
    made = Renderer()
    atexit.register(made.close)
    return made


class Chat:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._strikes = 0

    def of(
        self, messages: str, given: str | None, *, supervise: bool, prompt: bool = False
    ) -> list[ChatPart]:
        """The texts of a conversation, and the answers in them; messages and what else is given as JSON. With `prompt`
        the one text that asks for an answer to all of them.

        Raises:
            RejectedError: the template refuses it, or fails.
            TeacherError: the template has taken too long or too much several times.
        """
        reply = self.reply(
            json.loads(messages), json.loads(given or "{}"), supervise=supervise, prompt=prompt
        )
        if "error" not in reply:
            return [ChatPart(part["text"], _pairs(part["spans"])) for part in reply["parts"]]
        self._strikes += bool(reply.get("limit"))
        if self._strikes >= _STRIKES:
            raise TeacherError(
                "the teacher's chat template takes too long or too much",
                got=f"{self._strikes} conversations of which it {reply['error']}",
                do="Mend the template, or leave these conversations out",
            )
        expected = "a conversation that the chat template takes"
        raise RejectedError(CHAT_TEMPLATE, expected=expected, got=f"a template that {reply['error']}")

    def reply(
        self,
        messages: Sequence[Mapping[str, Any]],
        given: Mapping[str, Any],
        *,
        supervise: bool,
        prompt: bool = False,
    ) -> dict[str, Any]:
        """What the process says: `parts`, or `error` and perhaps `limit`."""
        try:
            template = self._tokenizer.get_chat_template(None, given.get("tools"))
        except ValueError:
            return {"error": "is none of several: there is no default"}
        return self._asked(
            template=template,
            special=dict(self._tokenizer.special_tokens_map),
            messages=list(messages),
            given=dict(given),
            supervise=supervise,
            prompt=prompt,
        )

    def unheeded(self, *, prompt: bool) -> str:
        """The words that begin an answer where the template does not heed `add_generation_prompt`: the teacher is asked
        without them (`prompt`), or they are supervised as if they were the answer's; else nothing.
        """
        asked, told = {"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}
        replies = [self.reply([asked, told], {}, supervise=not prompt)]
        replies += [self.reply([asked], {}, supervise=False, prompt=True)] if prompt else []
        if any("error" in reply for reply in replies):
            return ""
        whole, *before = (reply["parts"][0] for reply in replies)
        begin = len(before[0]["text"]) if before else whole["spans"][0][0]
        follows = not before or whole["text"].startswith(before[0]["text"])
        words: str = whole["text"][begin:].partition(_ANSWER)[0].strip()
        return words if follows else ""

    def variables(self) -> dict[str, Any]:
        """The names that the template, or any of several, looks for outside itself."""
        templates = self._tokenizer.chat_template
        named = list(templates.values()) if isinstance(templates, dict) else [templates]
        return self._asked(variables=named)

    def _asked(self, **request: Any) -> dict[str, Any]:
        try:
            return renderer().ask(request)
        except LimitError as error:
            return {"error": str(error), "limit": True}


def _pairs(spans: list[list[int]] | None) -> list[tuple[int, int]] | None:
    return None if spans is None else [(begin, end) for begin, end in spans]
