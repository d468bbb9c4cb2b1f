"""The contract of every frontend: subclass `FrontendContract` with a fixture `client`.

A client has `manager`, the manager behind it, and `stream(**fields)`, an async context manager that
yields an async iterator of texts. Errors are raised as llmserve's own.
"""

import anyio
import pytest

from llmserve import DeadlineExceeded, InvalidRequest, PromptTooLong

PATIENCE = 20


class FrontendContract:
    async def read(self, client, **fields):
        async with client.stream(**fields) as texts:
            return [text async for text in texts]

    async def assert_quiet(self, client):
        """Check that soon nothing of any request is left."""
        with anyio.fail_after(2):
            while client.manager.statistics().open:
                await anyio.sleep(0.01)
        statistics = client.manager.statistics()
        assert (statistics.running, statistics.waiting) == (0, 0)
        assert (statistics.engine.running, statistics.engine.waiting) == (0, 0)

    async def test_text_comes_piece_by_piece_and_the_same_every_way(self, client):
        fields = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0.0}
        texts = await self.read(client, **fields)
        direct = await client.manager.generate(client.request(**fields))
        assert "".join(texts) == direct.text
        assert len(texts) > 1

    async def test_one_request_after_another(self, client):
        for _ in range(3):
            assert await self.read(client, prompt="hello", max_tokens=3)
        await self.assert_quiet(client)

    @pytest.mark.parametrize("after", [0, 1, 5])
    async def test_leaving_after_any_piece_frees_the_engine(self, client, after):
        async with client.stream(prompt="hello", max_tokens=1500, ignore_eos=True) as texts:
            for _ in range(after):
                await anext(texts)
        await self.assert_quiet(client)

    @pytest.mark.parametrize("after", [0.0, 0.005, 0.03])
    async def test_cancelling_at_any_time_frees_the_engine(self, client, after):
        with anyio.move_on_after(after):
            await self.read(client, prompt="hello", max_tokens=1500, ignore_eos=True)
        await self.assert_quiet(client)

    async def test_a_bad_request_is_named_and_the_next_one_works(self, client):
        with pytest.raises(InvalidRequest) as caught:
            await self.read(client, prompt="hello", temperature=-1.0)
        assert caught.value.param == "temperature"
        assert await self.read(client, prompt="hello", max_tokens=2)

    async def test_too_long_a_prompt_has_its_own_error(self, client):
        with pytest.raises(PromptTooLong):
            await self.read(client, prompt="hello " * client.manager.info.max_model_len)

    async def test_a_deadline_ends_it(self, client):
        with pytest.raises(DeadlineExceeded):
            await self.read(client, prompt="hello", max_tokens=1500, ignore_eos=True, deadline=0.05)
        await self.assert_quiet(client)

    async def test_many_at_once_each_get_their_own(self, client):
        answers = {}

        async def one(number):
            answers[number] = "".join(await self.read(client, prompt=f"number {number % 3}", max_tokens=6, temperature=0.0))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for number in range(12):
                    tasks.start_soon(one, number)
        assert len(set(answers.values())) == 3
        await self.assert_quiet(client)
