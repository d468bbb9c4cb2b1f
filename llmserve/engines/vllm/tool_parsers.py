"""Parses tool calls and reasoning with vLLM's own parsers (vLLM 0.25.1 and 0.32.0)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import attrs

from llmserve.engine import EnginePrompt
from llmserve.engines.vllm.outputs import brief
from llmserve.errors import ConfigurationError, EngineError, InvalidRequest
from llmserve.images.parts import without_images
from llmserve.request import GenerationRequest
from llmserve.structured import StructuredOutputs
from llmserve.tools import Message, ToolCall, Tools, held_functions


class Parsers:
    """The parsers of one engine. `tool_parser` and `reasoning_parser` are vLLM's names, or None.

    Raises ConfigurationError for a parser that vLLM lacks, or that does not work with this model's
    tokenizer.
    """

    def __init__(self, tool_parser: str | None, reasoning_parser: str | None, model_config: Any, tokenizer: Any) -> None:
        self._names = {"tool_parser_name": tool_parser, "reasoning_parser_name": reasoning_parser or None}
        self._model_config = model_config
        self._tokenizer = tokenizer
        self._reasons = bool(reasoning_parser)
        self._takes_auto = bool(tool_parser)
        if tool_parser or reasoning_parser:
            try:
                self._parser(self._kind, None)
            except (TypeError, KeyError, ValueError, RuntimeError, ImportError) as error:
                raise ConfigurationError(
                    f"the parsers {tool_parser or ''} {reasoning_parser or ''} cannot be used: {brief(error)}"
                ) from error

    @cached_property
    def _kind(self) -> Any:
        from vllm.parser import ParserManager

        return ParserManager.get_parser(**self._names, enable_auto_tools=True, model_name=self._model_config.model)

    @cached_property
    def _forcing(self) -> Any:
        """The parser for forced calls, which are JSON in the answers of every model."""
        from vllm.parser import ParserManager
        from vllm.parser.abstract_parser import DelegatingParser
        from vllm.tool_parsers.abstract_tool_parser import ToolParser

        reasoning = ParserManager.get_reasoning_parser(self._names["reasoning_parser_name"])
        return type("ForcingParser", (DelegatingParser,), {"tool_parser_cls": ToolParser, "reasoning_parser_cls": reasoning})

    def _parser(self, kind: Any, tools: Any) -> Any:
        return kind(self._tokenizer, tools, chat_template_kwargs={}, model_config=self._model_config)

    def _for(self, request: GenerationRequest, tools: Tools | None) -> tuple[Any, Any]:
        """Return a parser and the request with its tools in vLLM's form. Raises InvalidRequest."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        if tools is not None and tools.choice == "auto" and not self._takes_auto:
            words = "this server has no tool parser for its model (tool_call_parser), so tool_choice must be required, a function or none"
            raise InvalidRequest(f"tools: {words}", "tools")
        fields = {} if tools is None else _fields(tools)
        try:
            asked = ChatCompletionRequest(messages=[without_images(message) for message in request.messages or ()], **fields)
        except ValueError as error:
            raise InvalidRequest("messages or tools do not conform to OpenAI's API", "messages") from error
        return self._parser(
            self._kind if self._takes_auto or tools is None or tools.choice == "none" else self._forcing, asked.tools
        ), asked

    def is_text(self, request: GenerationRequest) -> bool:
        """Whether the answer is plain text."""
        return request.messages is None or not (self._reasons or (request.tools is not None and request.tools.choice != "none"))

    def constraint(self, request: GenerationRequest) -> StructuredOutputs | None:
        """Return the constraint that the tools put on the answer. Raises InvalidRequest."""
        if request.tools is None or self.is_text(request):
            return None
        # Only the grammar gets narrowed parameters. The template and the parsers get the caller's
        # own.
        parser, asked = self._for(request, attrs.evolve(request.tools, functions=held_functions(request.tools)))
        outputs = parser.adjust_request(asked).structured_outputs
        if outputs is None:
            return None
        if outputs.structural_tag is not None:
            return StructuredOutputs("structural_tag", outputs.structural_tag)
        return StructuredOutputs.json(outputs.json)

    def reader(self, request: GenerationRequest, prompt: EnginePrompt) -> "VLLMOutputParser | None":
        """Return the parser for the answer to one request, or None for plain text."""
        return None if self.is_text(request) else VLLMOutputParser(*self._for(request, request.tools), prompt.token_ids)


class VLLMOutputParser:
    """Parses one answer with one of vLLM's parsers."""

    def __init__(self, parser: Any, asked: Any, prompt: Sequence[int]) -> None:
        self._parser = parser
        self._asked = asked
        self._prompt = list(prompt)
        if hasattr(parser, "set_prompt_token_ids"):
            parser.set_prompt_token_ids(self._prompt)

    def read(self, text: str, token_ids: Sequence[int], *, last: bool) -> Message:
        """Return what these tokens add to the answer. Raises EngineError."""
        with _unreadable():
            found = self._parser.parse_delta(text, list(token_ids), self._asked, prompt_token_ids=self._prompt, finished=last)
        if found is None:
            return Message()
        calls = [
            ToolCall(call.index, call.id, call.function.name if call.function else None, (call.function and call.function.arguments) or "")
            for call in found.tool_calls or ()
            if self._is_wanted(call.index)
        ]
        return Message(found.content or "", found.reasoning or "", tuple(calls))

    def _is_wanted(self, index: int) -> bool:
        """Whether to keep a call: not every parser can prevent a second call of the model."""
        return index == 0 or self._asked.parallel_tool_calls is not False


@contextmanager
def _unreadable() -> Iterator[None]:
    """Convert errors of a parser, which any text of a model may cause, to EngineError."""
    try:
        yield
    except Exception as error:
        raise EngineError(f"the answer cannot be parsed: {brief(error)}") from error


def check_tool_parser(name: str | None) -> None:
    """Check the parser's name before anything is loaded. Raises ConfigurationError."""
    if name is None:
        return
    from vllm.tool_parsers import ToolParserManager

    known = sorted({*ToolParserManager.tool_parsers, *ToolParserManager.lazy_parsers})
    if name not in known:
        raise ConfigurationError(f"vLLM has no tool_call_parser {name!r}; choose one of {', '.join(known)}")


def _fields(tools: Tools) -> dict[str, Any]:
    """Return the tools in the format of vLLM's request.

    Forced calls conform to their schema, unless `strict` is false: without `strict` vLLM forces
    only the call, and the bundled model invented arguments.
    """
    strict = {} if tools.choice == "auto" else {"strict": True}
    choice: Any = tools.choice if tools.choice != "named" else {"type": "function", "function": {"name": tools.name}}
    functions = [{"type": "function", "function": strict | dict(function)} for function in tools.functions]
    return {"tools": functions, "tool_choice": choice, "parallel_tool_calls": tools.parallel}


def template_tools(tools: Tools) -> list[dict[str, Any]]:
    """Return the tools in the format of chat templates."""
    return [{"type": "function", "function": dict(function)} for function in tools.functions]
