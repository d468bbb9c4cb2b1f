"""The contract of /v1/responses with the official `openai` client: subclass it with a fixture `server`."""

import json
import typing

import anyio
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
# More tokens than a response gets before its client cancels it.
ENDLESS = 1500
PATIENCE = 60
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

    async def test_logprobs_are_those_of_the_chat(self, client, server, asked):
        more = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
        answer = await client.responses.create(**asked, **more)
        body = {
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 16,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 2,
        }
        _, chat, _ = await server.post("/v1/chat/completions", body)
        expected = chat["choices"][0]["logprobs"]["content"]
        assert [one.token for one in answer.output[0].content[0].logprobs] == [one["token"] for one in expected]
        assert all(len(one.top_logprobs) == 2 for one in answer.output[0].content[0].logprobs)
        events = [event async for event in await client.responses.create(**asked, **more, stream=True)]
        (done,) = (event for event in events if event.type == "response.output_text.done")
        assert [one.token for one in done.logprobs] == [one["token"] for one in expected]

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

    async def test_three_turns_are_the_whole_conversation(self, client, asked):
        """The model sees what a client without a store would send."""
        first = await client.responses.create(**asked, instructions="Be brief.")
        second = await client.responses.create(**asked | {"input": "Why?"}, previous_response_id=first.id)
        third = await client.responses.create(
            **asked | {"input": [{"role": "user", "content": "And then?"}]}, previous_response_id=second.id
        )
        assert third.previous_response_id == second.id
        items = [QUESTION, *first.output, "Why?", *second.output, "And then?"]
        items = [{"role": "user", "content": item} if isinstance(item, str) else item for item in items]
        whole = await client.responses.create(**asked | {"input": items}, store=False)
        assert (whole.output_text, whole.usage.input_tokens) == (third.output_text, third.usage.input_tokens)
        assert whole.usage.input_tokens > second.usage.input_tokens > first.usage.input_tokens
        assert not whole.store
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(whole.id)

    async def test_a_response_is_stored_until_it_is_deleted(self, client, asked):
        answer = await client.responses.create(**asked, metadata={"topic": "geography"})
        assert answer.store
        assert answer.metadata == {"topic": "geography"}
        assert (await client.responses.retrieve(answer.id)).to_dict() == answer.to_dict()
        await client.responses.delete(answer.id)
        for missing in (answer.id, "resp_unknown"):
            for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel, client.responses.input_items.list):
                with pytest.raises(openai.NotFoundError, match=f"no response '{missing}', or it is no longer kept") as caught:
                    await ask(missing)
                assert (caught.value.type, caught.value.param) == ("invalid_request_error", "response_id")
            with pytest.raises(openai.BadRequestError, match="no longer kept") as refused:
                await client.responses.create(**asked, previous_response_id=missing)
            assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")

    async def test_a_stream_is_stored_before_its_last_event(self, client, asked):
        async for event in await client.responses.create(**asked, stream=True):
            if event.type in ("response.completed", "response.incomplete"):
                assert (await client.responses.retrieve(event.response.id)).to_dict() == event.response.to_dict()
                break
        else:
            raise AssertionError("the stream had no end")

    async def test_the_items_of_the_conversation_are_listed(self, client, asked):
        first = await client.responses.create(**asked)
        items = [{"role": "user", "content": [{"type": "input_text", "text": "Why?"}], "id": "mine"}]
        second = await client.responses.create(**asked | {"input": items}, previous_response_id=first.id)
        found = [item async for item in client.responses.input_items.list(second.id, order="asc", limit=1)]
        assert [item.role for item in found] == ["user", "assistant", "user"]
        assert [item.content[0].text for item in found] == [QUESTION, first.output_text, "Why?"]
        assert (found[1].id, found[2].id) == (first.output[0].id, "mine")
        assert [item.id async for item in client.responses.input_items.list(second.id)] == [item.id for item in reversed(found)]
        page = await client.responses.input_items.list(second.id, after="mine", limit=1)
        assert [item.id for item in page.data] == [found[1].id]
        for wrong, param in (({"limit": 0}, "limit"), ({"after": "other"}, "after"), ({"order": "up"}, "order")):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.responses.input_items.list(second.id, **wrong)
            assert caught.value.param == param

    async def test_a_background_response_is_retrieved_when_it_is_complete(self, client, asked):
        whole = await client.responses.create(**asked)
        queued = await client.responses.create(**asked, background=True)
        assert (queued.status, queued.background, queued.output) == ("queued", True, [])
        with anyio.fail_after(PATIENCE):
            while (found := await client.responses.retrieve(queued.id)).status in ("queued", "in_progress"):
                await anyio.sleep(0.01)
        assert (found.status, found.output_text, found.usage.input_tokens) == (whole.status, whole.output_text, whole.usage.input_tokens)
        # What has ended stays as it is, and can be continued.
        assert (await client.responses.cancel(queued.id)).to_dict() == found.to_dict()
        after = await client.responses.create(**asked, previous_response_id=queued.id)
        assert after.usage.input_tokens > found.usage.input_tokens
        with pytest.raises(openai.BadRequestError, match="background: true"):
            await client.responses.cancel(whole.id)

    async def test_a_background_stream_is_left_and_continued(self, client, asked):
        whole = await client.responses.create(**asked)
        first = []
        async with await client.responses.create(**asked, background=True, stream=True) as stream:
            async for event in stream:
                first.append(event)
                if event.type == "response.in_progress":
                    break
        assert [event.type for event in first] == ["response.created", "response.queued", "response.in_progress"]
        name = first[0].response.id
        with anyio.fail_after(PATIENCE):
            rest = [event async for event in await client.responses.retrieve(name, stream=True, starting_after=2)]
            again = [event async for event in await client.responses.retrieve(name, stream=True)]
        assert [event.to_dict() for event in again] == [event.to_dict() for event in first + rest]
        assert [event.sequence_number for event in again] == list(range(len(again)))
        assert "".join(event.delta for event in rest if event.type == "response.output_text.delta") == whole.output_text
        assert (rest[-1].type, rest[-1].response.output_text) == (f"response.{whole.status}", whole.output_text)
        assert (await client.responses.retrieve(name)).to_dict() == rest[-1].response.to_dict()

    async def test_a_background_response_is_cancelled_or_deleted_while_it_runs(self, client, server, asked):
        endless = asked | {"max_output_tokens": ENDLESS, "extra_body": {"ignore_eos": True}}
        before = server.manager.metrics()["requests"]["cancelled"]
        running = [await client.responses.create(**endless, background=True) for _ in range(2)]
        cancelled = await client.responses.cancel(running[0].id)
        assert (cancelled.id, cancelled.status, cancelled.output) == (running[0].id, "cancelled", [])
        await client.responses.delete(running[1].id)
        with anyio.fail_after(PATIENCE):
            while server.manager.statistics().open:
                await anyio.sleep(0.01)
        assert server.manager.metrics()["requests"]["cancelled"] == before + 2
        assert (await client.responses.retrieve(running[0].id)).to_dict() == cancelled.to_dict()
        with pytest.raises(openai.BadRequestError, match="is cancelled, and only a complete one"):
            await client.responses.create(**asked, previous_response_id=running[0].id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(running[1].id)

    def test_every_field_that_the_client_sends_is_known(self):
        known = {field.encode_name for field in msgspec.structs.fields(ResponsesRequest)} | set(ResponsesRequest.unsupported)
        sent = {"stream", *typing.get_type_hints(response_create_params.ResponseCreateParamsBase)}
        assert sent <= known, sent - known
