"""Renders texts and conversations to token ids. Written against vLLM 0.25.1, 0.32.0 and 0.33.0."""

import copy
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from llmserve.engine import EnginePrompt
from llmserve.engines.vllm.outputs import brief
from llmserve.engines.vllm.pooling.tasks import has_pair_template
from llmserve.engines.vllm.prompts import GONE, PromptEncoder, PromptJob, can_encode
from llmserve.engines.vllm.tool_parsers import template_tools
from llmserve.errors import ConfigurationError, EngineDead, InvalidRequest, PromptTooLong
from llmserve.images.decoding import Decoded, ImageDecoder
from llmserve.images.parts import AnyImage, images, text_of
from llmserve.pooling.requests import CLASSIFY, Pooling, pair_of
from llmserve.request import GenerationRequest

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


def has_chat_template(tokenizer: Any) -> bool:
    return getattr(tokenizer, "chat_template", None) is not None


def texts(tokenizer: Any, name: str) -> Collection[str]:
    """Return the tokens' texts. Raises ConfigurationError if all tokens are special.

    transformers makes such a tokenizer from a folder that lacks the tokenizer's files.
    """
    found: Mapping[str, int] = tokenizer.get_vocab()
    if found.keys() <= set(tokenizer.all_special_tokens):
        remedy = "copy its files (such as tokenizer.json) into that folder, or set the engine argument 'tokenizer'"
        raise ConfigurationError(f"the tokenizer of {name} knows no text: {remedy}")
    return found


class PromptRenderer:
    """Renders the prompts of one AsyncLLM, without keeping it.

    `encoder` encodes the texts; without one, vLLM's renderer does.
    """

    def __init__(self, llm: "AsyncLLM") -> None:
        self._renderer: Any = llm.renderer
        self._model: Any = llm.model_config
        tokenizer = llm.get_tokenizer()
        self._has_chat_template = has_chat_template(tokenizer)
        # The longest text of one token bounds the length of text that can fit the context.
        self._longest_token = max(map(len, texts(tokenizer, self._model.tokenizer)))
        self.encoder = PromptEncoder(llm.renderer) if can_encode(llm.renderer) else None
        self._decoder = ImageDecoder()
        self._has_pair_template: bool | None = None
        self._closed = False

    def close(self) -> None:
        self._closed = True
        if self.encoder is not None:
            self.encoder.close()

    async def render(self, request: GenerationRequest) -> EnginePrompt:
        """Return the tokens of a text or a conversation. Raises InvalidRequest or EngineDead."""
        try:
            if request.messages is not None:
                return await self._conversation(request)
            return await (self._text(request) if pair_of(request) is None else self._pair(request))
        except (InvalidRequest, EngineDead):
            raise
        except Exception as error:
            if self._closed:
                raise EngineDead(GONE) from error
            # Templates are the model's own programs: any error in one is about the conversation.
            raise InvalidRequest(f"the prompt cannot be rendered: {brief(error)}", request.prompt_field) from error

    async def _text(self, request: GenerationRequest) -> EnginePrompt:
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        text = self._without_endless(str(request.prompt), request)
        self._refuse_endless(len(text), "prompt")
        params = _unbounded(self._renderer.default_cmpl_tok_params, request)
        if self.encoder is not None:
            encoded = await self.encoder.encode(PromptJob(text, params))
            return EnginePrompt(token_ids=tuple(encoded.token_ids), text=text)
        (rendered,) = await self._renderer.render_cmpl_async([parse_model_prompt(self._model, text)], params)
        return EnginePrompt(token_ids=tuple(rendered["prompt_token_ids"]), text=text)

    async def _pair(self, request: GenerationRequest) -> EnginePrompt:
        """Return the tokens of two texts, as a classifier reads them to score the second one."""
        if self._has_pair_template is None:
            self._has_pair_template = await anyio.to_thread.run_sync(has_pair_template, self._model)
        if self._has_pair_template or self.encoder is None:
            raise InvalidRequest("this model reads pairs in a form of its own, which is not supported", "pair")
        text, pair = self._without_endless(str(request.prompt), request), self._without_endless(str(pair_of(request)), request)
        self._refuse_endless(len(text) + len(pair), "prompt")
        params = _unbounded(self._renderer.default_cmpl_tok_params, request)
        # A language model that became a reranker reads the texts as one.
        job = PromptJob(text, params, pair) if self._model.use_sep_token else PromptJob(text + pair, params)
        encoded = await self.encoder.encode(job)
        return EnginePrompt(token_ids=tuple(encoded.token_ids), pooling=Pooling(task=CLASSIFY, second=encoded.second))

    async def _conversation(self, request: GenerationRequest) -> EnginePrompt:
        from vllm.renderers.params import ChatParams

        # vLLM replaces the arguments of tool calls by dictionaries, in place. It does not change
        # anything else.
        messages = [copy.deepcopy(dict(one)) if one.get("tool_calls") else dict(one) for one in request.messages or ()]
        tools = template_tools(request.tools) if request.tools is not None and request.tools.choice != "none" else None

        if not self._has_chat_template:
            raise InvalidRequest("this model has no chat template; use prompt instead of messages", "messages")
        if request.truncate_prompt_tokens is None:
            self._refuse_endless(sum(len(text_of(message.get("content"))) for message in messages), "messages")
        kwargs = {"add_generation_prompt": True, **request.template_kwargs, "tools": tools}
        params = _unbounded(self._renderer.default_chat_tok_params, request)
        if self.encoder is not None:
            # As text, so that the tokenizer encodes it together with other prompts.
            chat = ChatParams(chat_template_kwargs=kwargs | {"tokenize": False})
            _, prompt = await self._renderer.render_messages_async(messages, chat)
            encoded = await self.encoder.encode(PromptJob(self._without_endless(prompt["prompt"], request), params))
            return EnginePrompt(token_ids=tuple(encoded.token_ids), text=encoded.text)
        if found := images(messages):
            async with self._decoder.decoded(found, request.tenant) as decoded:
                return await self._with_images(
                    _with_pixels(messages, decoded), ChatParams(chat_template_kwargs=kwargs), params, request.tenant
                )
        _, (rendered,) = await self._renderer.render_chat_async([messages], ChatParams(chat_template_kwargs=kwargs), params)
        return EnginePrompt(token_ids=tuple(rendered["prompt_token_ids"]), text=rendered.get("prompt"))

    async def _with_images(self, messages: list[dict[str, Any]], chat: Any, params: Any, tenant: str) -> EnginePrompt:
        """Render messages with pixels. vLLM processes the images in a thread of its own.

        Its processor would leave out the images that the engine should still have. But this prompt
        may wait for a slot, go to another engine, or to none, so it carries its images.
        """
        _, (rendered,) = await self._renderer.render_chat_async([messages], chat, params, skip_mm_cache=True)
        # vLLM would count the time of the request's queueing here as its own.
        rendered.pop("arrival_time", None)
        # One kind of input, "image" or another name that the model has for it.
        (hashes,) = rendered["mm_hashes"].values()
        ids, text, processed = tuple(rendered["prompt_token_ids"]), rendered.get("prompt"), _Processed(rendered)
        self._decoder.hold(processed, _size([element.data for item in _items(rendered) for element in item.values()]), tenant)
        return EnginePrompt(token_ids=ids, text=text, images=processed, images_key=str(hashes[0]))

    def _without_endless(self, text: str, request: GenerationRequest) -> str:
        """Return the part of a text to be truncated that can fit the context in any tokenisation."""
        if request.truncate_prompt_tokens is None:
            return text
        characters = self._model.max_model_len * self._longest_token
        return text[-characters:] if request.truncation_side == "left" else text[:characters]

    def _refuse_endless(self, characters: int, field: str) -> None:
        """Refuse a text that cannot fit the context in any tokenisation, before any work on it."""
        limit = self._model.max_model_len
        if characters > limit * self._longest_token:
            raise PromptTooLong(characters // self._longest_token, limit, field)


class _Processed(dict[str, Any]):
    """A prompt with processed images in vLLM's form. Unlike a dictionary it can be referred to weakly."""


def _items(rendered: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what vLLM has of each image; None is an image that vLLM has in its cache."""
    return (item for items in rendered["mm_kwargs"].values() for item in items if item is not None)


def _size(value: object) -> int:
    """Return the bytes of tensors, which may be in lists."""
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return int(getattr(value, "nbytes", 0))


def _with_pixels(messages: list[dict[str, Any]], decoded: list[Decoded]) -> list[dict[str, Any]]:
    """Return messages in vLLM's form, with the pixels in place of the images, in their order."""
    from vllm.multimodal.media import MediaWithBytes

    # vLLM hashes an image's file rather than its pixels if it has both.
    media = iter([MediaWithBytes(one.pixels, one.data) for one in decoded])

    def part(value: str | AnyImage) -> dict[str, Any]:
        return {"type": "text", "text": value} if isinstance(value, str) else {"type": "image_pil", "image_pil": next(media)}

    return [
        message | {"content": [part(value) for value in message["content"]]} if isinstance(message.get("content"), list) else message
        for message in messages
    ]


def _unbounded(params: Any, request: GenerationRequest) -> Any:
    """Return vLLM's tokenisation parameters without a length check: the manager does that."""
    changes: dict[str, Any] = {} if request.add_special_tokens is None else {"add_special_tokens": request.add_special_tokens}
    if request.truncation_side is None and request.truncate_prompt_tokens is not None:
        # The tokenizer keeps the special tokens at the end of a truncated text.
        most = request.truncate_prompt_tokens
        changes["truncate_prompt_tokens"] = params.max_total_tokens if most == -1 else most
    return dataclasses.replace(params, max_total_tokens=None, **changes)
