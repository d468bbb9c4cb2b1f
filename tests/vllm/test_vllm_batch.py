"""The unmodified OpenAI client's files and batches on the real engine, beside a stream."""

import json

import anyio
import openai
from program_support import START_SECONDS

from frontends.batch.objects import ENDED
from frontends.batch.service import BatchService
from frontends.batch.store import Store
from frontends.http.app import build_app
from frontends.http.server import running
from frontends.net.acceptor import listen
from frontends.net.listeners import bind


async def test_a_batch_beside_a_stream(manager, tmp_path):
    chat = {"messages": [{"role": "user", "content": "Name a planet."}], "max_tokens": 8, "temperature": 0}
    given = [{"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": chat} for number in range(40)]
    text = "".join(json.dumps(line) + "\n" for line in given).encode()
    service, listener = BatchService(manager, "sim", Store(tmp_path)), bind("127.0.0.1", 0)
    async with service.running(), running(build_app(manager, "sim", batches=service)) as acceptor, listen(acceptor, listener):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            file = await client.files.create(file=("in.jsonl", text), purpose="batch")
            batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
            alone = await client.chat.completions.create(model="sim", **chat)  # type: ignore[call-overload]  # the same body for both
            with anyio.fail_after(START_SECONDS):
                while batch.status not in ENDED:
                    await anyio.sleep(0.05)
                    batch = await client.batches.retrieve(batch.id)
            assert (batch.status, batch.request_counts.completed) == ("completed", 40)
            assert batch.output_file_id is not None
            answers = [json.loads(line) for line in (await client.files.content(batch.output_file_id)).text.splitlines()]
    assert {line["custom_id"] for line in answers} == {f"r{number}" for number in range(40)}
    # A batch of another size may round differently, so not every answer has the same last words.
    assert alone.choices[0].message.content in {line["response"]["body"]["choices"][0]["message"]["content"] for line in answers}
