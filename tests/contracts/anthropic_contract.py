"""The contract with the official `anthropic` client: subclass it with a fixture `server`."""

import typing

import anthropic
import msgspec
import pytest
from anthropic.types import message_create_params

from frontends.anthropic.requests import MessagesRequest

# Its answer ends soon on every processor: the bundled model's likeliest tokens lead by a nat.
QUESTION = [{"role": "user", "content": "Please complete: The capital of France is"}]
WEATHER = {
    "name": "get_weather",
    "description": "Return the weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]},
}


class AnthropicContract:
    @pytest.fixture
    async def client(self, server):
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
            yield client

    @pytest.fixture
    def asked(self):
        # The client has no argument for the temperature, and sends the body's other fields as they are.
        return {"model": "sim", "messages": QUESTION, "max_tokens": 8, "extra_body": {"temperature": 0}}

    async def test_a_message_is_the_chat_s_answer(self, client, server, asked):
        answer = await client.messages.create(**asked)
        _, chat, _ = await server.post("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 8, "temperature": 0})
        (block,) = answer.content
        assert (answer.type, answer.role, block.type) == ("message", "assistant", "text")
        assert block.text == chat["choices"][0]["message"]["content"]
        assert answer.stop_reason == ("max_tokens" if chat["choices"][0]["finish_reason"] == "length" else "end_turn")
        usage = answer.usage
        assert usage.input_tokens + usage.cache_read_input_tokens == chat["usage"]["prompt_tokens"]
        assert usage.output_tokens == chat["usage"]["completion_tokens"]

    async def test_the_stream_helper_assembles_the_same_message(self, client, asked):
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            kinds = [event.type async for event in stream]
            streamed = await stream.get_final_message()
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
        assert [block.text for block in streamed.content] == [block.text for block in whole.content]
        assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)

    async def test_counted_tokens_are_those_of_the_prompt(self, client, asked):
        system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
        counted = await client.messages.count_tokens(model="sim", messages=QUESTION, system=system)
        usage = (await client.messages.create(**asked, system=system)).usage
        assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens

    async def test_a_stop_sequence_is_named(self, client, asked):
        text = (await client.messages.create(**asked)).content[0].text
        answer = await client.messages.create(**asked, stop_sequences=[text[2:5]])
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", text[2:5])
        assert answer.content[0].text == text[:2]

    async def test_a_tool_is_called_and_its_result_is_read(self, client, asked):
        asked |= {"tools": [WEATHER], "tool_choice": {"type": "any"}, "max_tokens": 100}
        answer = await client.messages.create(**asked)
        call = answer.content[-1]
        assert (answer.stop_reason, call.type, call.name, list(call.input)) == ("tool_use", "tool_use", "get_weather", ["city"])
        async with client.messages.stream(**asked) as stream:
            streamed = await stream.get_final_message()
        assert (streamed.content[-1].input, streamed.stop_reason) == (call.input, "tool_use")
        result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
        talk = [*QUESTION, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
        counted = await client.messages.count_tokens(model="sim", messages=talk, tools=[WEATHER])
        before = await client.messages.count_tokens(model="sim", messages=QUESTION, tools=[WEATHER])
        assert counted.input_tokens > before.input_tokens

    async def test_errors_are_the_client_s_own(self, client, asked):
        with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
            await client.messages.create(**asked | {"model": "other"})
        document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}}
        with pytest.raises(anthropic.BadRequestError, match="only text and images, but a content block has the type 'document'"):
            await client.messages.create(**asked | {"messages": [{"role": "user", "content": [document]}]})

    def test_every_field_that_the_client_sends_is_known(self):
        known = {field.encode_name for field in msgspec.structs.fields(MessagesRequest)} | set(MessagesRequest.unsupported)
        sent = {"stream", *typing.get_type_hints(message_create_params.MessageCreateParamsBase)}
        assert sent <= known
