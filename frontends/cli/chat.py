"""`llmserve chat URL`: a conversation in the terminal with any OpenAI-compatible server."""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Any

import aiohttp

from frontends.cli.remote import CannotCall, Server, add_server_arguments, delta_of, plain
from frontends.options.suggestions import Parser

HINT = "Ctrl-C stops an answer, Ctrl-D or /quit ends, /new starts again"


class Conversation:
    """One conversation; each turn sends it whole."""

    def __init__(self, server: Server, model: str, fields: dict[str, Any], system: str | None) -> None:
        self._server = server
        self._body = {"model": model, "stream_options": {"include_usage": True}} | fields
        self._begin = [{"role": "system", "content": system}] if system else []
        self.reset()

    def reset(self) -> None:
        """Forget all turns."""
        self._messages = list(self._begin)

    async def ask(self, text: str) -> str:
        """Print the answer as it arrives, and keep the turn; return a line about it.

        A stopped answer stays in the conversation. A failed turn does not. Raises CannotCall.
        """
        messages = [*self._messages, {"role": "user", "content": text}]
        answer, tokens, began, first = "", None, time.monotonic(), None
        try:
            async with aclosing(self._server.chat(self._body | {"messages": messages})) as events:
                async for event in events:
                    usage, delta = event.get("usage"), delta_of(event)
                    tokens = usage.get("completion_tokens", tokens) if isinstance(usage, dict) else tokens
                    reasoning, content = delta.get("reasoning") or delta.get("reasoning_content") or "", delta.get("content") or ""
                    if reasoning or content:
                        first = first or time.monotonic() - began
                        print(plain(reasoning + content), end="", flush=True)
                        # The next turn does not send the reasoning back.
                        answer += content
        except asyncio.CancelledError:
            self._messages = [*messages, {"role": "assistant", "content": answer}]
            raise
        self._messages = [*messages, {"role": "assistant", "content": answer}]
        count = "" if tokens is None else f"{tokens} tokens, "
        return f"{count}first after {first * 1000:.0f} ms, {time.monotonic() - began:.1f} s in total" if first else "no text"


def _talk(runner: asyncio.Runner, conversation: Conversation) -> None:
    with suppress(ImportError):
        # Line editing and history for `input`.
        import readline  # noqa: F401 - `input` uses it
    note = HINT
    while True:
        # Ctrl-C may come at any moment, also between an answer and the prompt.
        try:
            if note:
                print(note)
            note = ""
            text = input("\n> ").strip()
            if text == "/quit":
                return
            if text == "/new":
                conversation.reset()
            elif text:
                note = _turn(runner, conversation, text)
        except KeyboardInterrupt:
            note = f"\n{HINT}"
        except EOFError:
            print()
            return
        except ValueError as error:
            # The line is not UTF-8 text.
            note = f"[error: the line cannot be read: {error}]"


def _turn(runner: asyncio.Runner, conversation: Conversation, text: str) -> str:
    """Print the answer to a message; return a line about it."""
    try:
        # At Ctrl-C the runner cancels the turn, which closes the connection: the server then frees the engine.
        line = runner.run(conversation.ask(text))
    except KeyboardInterrupt:
        line = "stopped"
    except CannotCall as error:
        line = f"error: {error}"
    return f"\n[{line}]"


async def _connect(server: Server, model: str | None, system: str | None, fields: dict[str, Any]) -> Conversation:
    model = model or await server.model()
    if sys.stdin.isatty():
        print(f"{plain(model)} at {server.url}")
    return Conversation(server, model, {name: value for name, value in fields.items() if value is not None}, system)


async def _open_session() -> aiohttp.ClientSession:
    # aiohttp needs the running event loop.
    return aiohttp.ClientSession()


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(prog=prog, description=f"Chat with a server. {HINT}. A message on standard input that is no terminal gets one answer.")
    add_server_arguments(parser)
    parser.add_argument("--model", metavar="NAME", help="model to ask (default: the first one that the server lists)")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="maximum number of tokens of an answer (default: the server's)")
    parser.add_argument("--temperature", type=float, metavar="T", help="sampling temperature (default: the server's)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "llmserve chat") -> int:
    """Run `llmserve chat`; return 0, 2 if the server cannot be reached, or 130 after Ctrl-C in a pipe."""
    options = build_parser(prog).parse_args(argv)
    fields = {"max_tokens": options.max_tokens, "temperature": options.temperature}
    with asyncio.Runner() as runner:
        session = runner.run(_open_session())
        try:
            server = Server(session, options.url, options.api_key)
            conversation = runner.run(_connect(server, options.model, options.system, fields))
            if sys.stdin.isatty():
                _talk(runner, conversation)
            else:
                runner.run(conversation.ask(sys.stdin.buffer.read().decode(errors="replace")))
                print()
        except CannotCall as error:
            sys.stderr.write(f"{prog}: error: {error}\n")
            return 2
        except KeyboardInterrupt:
            return 130
        finally:
            runner.run(session.close())
    return 0
