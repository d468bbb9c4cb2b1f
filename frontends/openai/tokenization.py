"""The bodies of /tokenize and /detokenize, which are vLLM's."""

from typing import ClassVar

import msgspec

from frontends.access.caller import Caller
from frontends.openai.messages import ChatMessage, final_message, plain_messages
from frontends.openai.tools import ToolBody, tools_of
from frontends.openai.unsupported import TOKENIZE, Unsupported
from frontends.openai.wanted import renamed
from llmserve import GenerationRequest, InvalidRequest


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /tokenize: a text, or a conversation with the arguments of its template."""

    unsupported: ClassVar[Unsupported] = TOKENIZE

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, bool | int | float | str | None] | None = None
    tools: list[ToolBody] | None = None

    def generation_request(self, caller: Caller) -> GenerationRequest:
        """Return a request whose prompt is to be tokenized. Raises InvalidRequest."""
        # The tenant that the decoding of the images counts for.
        tenant = caller.tenant or "default"
        arguments = dict(self.chat_template_kwargs or {}) | final_message(self.add_generation_prompt, self.continue_final_message)
        if self.messages is None:
            given = {"chat_template_kwargs": arguments, "tools": self.tools}
            for name, value in given.items():
                if value:
                    raise InvalidRequest(f"{name} requires messages", name)
            return GenerationRequest(self.prompt, add_special_tokens=self.add_special_tokens, tenant=tenant)
        with renamed(template_kwargs="chat_template_kwargs"):
            return GenerationRequest(
                self.prompt,
                messages=plain_messages(self.messages),
                tools=tools_of(self.tools or None, None, None),
                template_kwargs=arguments,
                add_special_tokens=self.add_special_tokens,
                tenant=tenant,
            )


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: list[int]
