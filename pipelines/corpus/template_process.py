"""The process that renders chat templates: conversations in, text and spans of the answers out. It runs as a script.

A template comes with the teacher, from anybody: it may loop without end, or double a string until memory is gone, and
no thread of Python can be stopped in that. So templates run here, under a limit of memory, in a process that the parent
(`chat.py`) kills when its time is over. Rendering is transformers' own, called as `apply_chat_template` calls it.

Where do an assistant's answers stand in the text? In this order:

* *generation*: where the template marks them (`{% generation %}`), there;
* *prefix*: where each turn only adds to the text, from the end of its generation prompt to the end of the turn;
* *turns*: where a template rewrites earlier turns, each answer is a text of its own: the conversation up to its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # 70 MB and two seconds instead of 400 and ten

import jinja2
import jinja2.meta
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

MEMORY_BYTES = 2**30
"""What templates may take beyond what the process has taken to begin with."""
MAX_CHARS = 2**26
"""Of all texts that one conversation gives."""
GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_OTHER_ANSWER = "\ue000\ue001"
"""An answer that nobody gives: where it changes the text, there the real one begins."""


class RefusedError(Exception):
    """A template that cannot be rendered, or not so that its answers are found."""


class Talk:
    """One conversation under one template."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._template: str = request["template"]
        self.messages: list[dict[str, Any]] = request["messages"]
        given = dict(request["given"])
        self._options = {name: given.pop(name, None) for name in ("tools", "documents")}
        self._variables = {**request["special"], **given}
        self._chars = 0

    def render(self, messages: list[dict[str, Any]], *, prompt: bool = False, mark: bool = False) -> Any:
        """The text of some messages; with `mark`, and the spans that the template marks."""
        texts, spans = render_jinja_template(
            conversations=[messages],
            chat_template=self._template,
            return_assistant_tokens_mask=mark,
            add_generation_prompt=prompt,
            **self._options,
            **self._variables,
        )
        self._chars += len(texts[0])
        if self._chars > MAX_CHARS:
            raise RefusedError(f"makes more than {MAX_CHARS:,} characters of a conversation")
        return (texts[0], spans[0]) if mark else texts[0]

    def tried(self, messages: list[dict[str, Any]], *, prompt: bool = False) -> str | None:
        """The text of messages that the template may have a reason to refuse; None where it does."""
        if not messages:
            return None
        with contextlib.suppress(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError):
            text: str = self.render(messages, prompt=prompt)
            return text
        return None

    def parts(self, supervise: bool) -> list[dict[str, Any]]:
        """Texts with the spans of their answers; None where all is supervised."""
        if supervise and GENERATION.search(self._template):
            text, spans = self.render(self.messages, mark=True)
            self._check(text)
            return [{"text": text, "spans": spans}]
        whole = self.render(self.messages)
        self._check(whole)
        if not supervise:
            return [{"text": whole, "spans": None}]
        turns = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        spans = [self._span(whole, turn) for turn in turns]
        if None not in spans:
            return [{"text": whole, "spans": spans}]
        return [self._alone(turn) for turn in turns]

    def asks(self) -> dict[str, Any]:
        """The text that asks for an answer."""
        text = self.render(self.messages, prompt=True)
        self._check(text)
        return {"text": text, "spans": None}

    def _check(self, text: str) -> None:
        """A template that knows no parts prints the list as Python writes it, and nobody sees it."""
        contents = (message.get("content") for message in self.messages)
        if any(not isinstance(one, str | None) and str(one) in text for one in contents):
            raise RefusedError("prints a content of parts as Python writes a list: it knows strings alone")

    def _span(self, whole: str, turn: int) -> tuple[int, int] | None:
        """Where an answer stands in the whole text; None where later turns have changed what was before."""
        after = whole if turn == len(self.messages) - 1 else self.tried(self.messages[: turn + 1])
        begin = self._begin(whole, turn)
        if begin is None or after is None or not whole.startswith(after):
            return None
        return min(begin, len(after)), len(after)

    def _begin(self, text: str, turn: int) -> int | None:
        """The end of the turn's generation prompt, as far as the text goes along with it."""
        prompted = self.tried(self.messages[:turn], prompt=True)
        if prompted is None or text.startswith(prompted):
            return None if prompted is None else len(prompted)
        before = self.tried(self.messages[:turn])
        if before is None or not text.startswith(before):
            return None
        return max(len(before), common(prompted, text))

    def _alone(self, turn: int) -> dict[str, Any]:
        """The conversation up to one answer."""
        text = self.render(self.messages[: turn + 1])
        begin = self._begin(text, turn)
        if begin is None:
            other = {"role": "assistant", "content": _OTHER_ANSWER}
            changed = self.tried([*self.messages[:turn], other])
            if changed is None or _OTHER_ANSWER not in changed:
                raise RefusedError("does not tell where an answer begins")
            begin = common(changed, text)
        return {"text": text, "spans": [(begin, len(text))]}


def common(one: str, other: str) -> int:
    """How many characters two texts share from their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def variables(template: str) -> set[str]:
    """The names that a template looks for outside itself."""
    environment = _compile_jinja_template(template).environment
    return jinja2.meta.find_undeclared_variables(environment.parse(template)) - set(environment.globals)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request: its parts, or why there are none."""
    try:
        if "variables" in request:
            return {"variables": sorted(set[str]().union(*map(variables, request["variables"])))}
        talk = Talk(request)
        return {"parts": [talk.asks()] if request.get("prompt") else talk.parts(request["supervise"])}
    except RefusedError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"takes more than {MEMORY_BYTES / 2**30:g} GiB of memory", "limit": True}
    except RecursionError:
        return {"error": "recurses without end"}
    except Exception as error:  # noqa: BLE001  whatever a template can raise
        return {"error": told(error, request.get("template", ""))}


def told(error: Exception, template: str) -> str:
    """What a template's error says; what it may have copied from a message is left out."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"is no template: {text} (line {error.lineno})"
    if type(error) is jinja2.TemplateError:
        # by `raise_exception`: the words of the template are its own, others may be a message's
        return f"refuses it: {text}" if text and text in " ".join(template.split()) else "refuses it"
    if isinstance(error, jinja2.TemplateError | TypeError):
        return f"fails: {text}"
    return f"fails: {type(error).__name__}"


def limit_memory() -> None:
    """Where the system tells what a process has taken, it gets so much more and no page beyond."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answers until the parent closes the pipe. Each message is JSON behind its length in 8 bytes."""
    while head := requests.read(8):
        reply = answer(json.loads(requests.read(int.from_bytes(head, "big"))))
        data = json.dumps(reply).encode()
        replies.write(len(data).to_bytes(8, "big") + data)
        replies.flush()


def end_with(parent: int) -> None:
    """Ends this process when its parent is gone: a template without end would go on for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    limit_memory()
    serve(sys.stdin.buffer, sys.stdout.buffer)
