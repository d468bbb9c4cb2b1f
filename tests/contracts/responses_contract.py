"""The contract of /v1/responses with the official `openai` client: subclass it with a fixture `server`."""

import json
import typing

import msgspec
import openai
import pytest
from openai.types.responses import response_create_params

from frontends.responses.requests import ResponsesRequest

# Its answer ends soon on every processor: the bundled model's likeliest tokens lead by a nat.
QUESTION = "Please complete: The capital of France is"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Return the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]},
}
# The event that must come before each of these.
OPENED = {
    "response.output_item.done": "response.output_item.added",
    "response.content_part.done": "response.content_part.added",
    "response.output_text.done": "response.output_text.delta",
    "response.function_call_arguments.done": "response.function_call_arguments.delta",
}


class ResponsesContract:
    @pytest.fixture
    async def client(self, server):
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            yield client

    @pytest.fixture
    def asked(self):
        return {"model": "sim", "input": QUESTION, "max_output_tokens": 16, "temperature": 0}

    async def test_a_response_is_the_chat_s_answer(self, client, server, asked):
        answer = await client.responses.create(**asked, instructions="Be brief.")
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
        _, chat, _ = await server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 16, "temperature": 0})
        (choice,) = chat["choices"]
        assert answer.output_text == choice["message"]["content"]
        ended = ("incomplete", "max_output_tokens") if choice["finish_reason"] == "length" else ("completed", None)
        assert (answer.status, answer.incomplete_details and answer.incomplete_details.reason) == ended
        assert (answer.usage.input_tokens, answer.usage.total_tokens) == (chat["usage"]["prompt_tokens"], chat["usage"]["total_tokens"])

    async def test_a_stream_has_the_same_items_and_ordered_events(self, client, asked):
        whole = await client.responses.create(**asked)
        events = [event async for event in await client.responses.create(**asked, stream=True)]
        kinds = [event.type for event in events]
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] == f"response.{whole.status}"
        assert [event.sequence_number for event in events] == list(range(len(events)))
        for end, begin in OPENED.items():
            assert end not in kinds or kinds.index(begin) < kinds.index(end)
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == events[-1].response.output_text == whole.output_text
        assert events[-1].response.usage.output_tokens == whole.usage.output_tokens

    async def test_the_stream_helper_assembles_the_response(self, client, asked):
        whole = await client.responses.create(**asked)
        async with client.responses.stream(**asked) as stream:
            assert [event.type async for event in stream][-1] == f"response.{whole.status}"

    async def test_a_function_is_called_and_its_result_is_read(self, client, asked):
        asked |= {"tools": [WEATHER], "tool_choice": "required", "max_output_tokens": 100}
        answer = await client.responses.create(**asked)
        call = answer.output[-1]
        assert (call.type, call.name, list(json.loads(call.arguments))) == ("function_call", "get_weather", ["city"])
        async with client.responses.stream(**asked) as stream:
            streamed = await stream.get_final_response()
        assert streamed.output[-1].arguments == call.arguments
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        items = [{"role": "user", "content": QUESTION}, *answer.output, result]
        after = await client.responses.create(**asked | {"input": items, "tool_choice": "none"})
        assert after.usage.input_tokens > answer.usage.input_tokens

    async def test_a_schema_holds(self, client, asked):
        schema = {"type": "object", "properties": {"sky": {"enum": ["blue"]}}, "required": ["sky"], "additionalProperties": False}
        text = {"format": {"type": "json_schema", "name": "sky", "schema": schema, "strict": True}}
        answer = await client.responses.create(**asked | {"text": text, "max_output_tokens": 100})
        assert json.loads(answer.output_text) == {"sky": "blue"}

    async def test_what_needs_a_stored_response_is_refused(self, client, asked):
        with pytest.raises(openai.BadRequestError, match="keeps no responses") as caught:
            await client.responses.create(**asked, previous_response_id="resp_1")
        assert caught.value.param == "previous_response_id"

    def test_every_field_that_the_client_sends_is_known(self):
        known = {field.encode_name for field in msgspec.structs.fields(ResponsesRequest)} | set(ResponsesRequest.unsupported)
        sent = {"stream", *typing.get_type_hints(response_create_params.ResponseCreateParamsBase)}
        assert sent <= known, sent - known
