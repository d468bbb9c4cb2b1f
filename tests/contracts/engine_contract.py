"""The contract of every engine: subclass `EngineContract` with a fixture `engine` that yields one.

The engine must be running. Prompts are short English texts, so that any tokenizer can encode them.
"""

import anyio
import pytest

from llmserve import EngineDead, GenerationRequest, InvalidRequest, Sampling
from llmserve.lifecycle.delta_buffer import DeltaBuffer
from llmserve.request import Delta

# Only a hang exceeds this, also beside other programs.
PATIENCE = 240


class CollectingSink:
    """Keeps everything, and detects calls that a sink must never get."""

    def __init__(self):
        self.deltas = []
        self.timings = None
        self.error = None
        self.ended = anyio.Event()
        self.progress = anyio.Event()

    def put(self, delta, timings=None):
        assert not self.ended.is_set(), "a delta after the end"
        self.deltas.append(delta)
        self.timings = timings or self.timings
        self.progress.set()
        if delta.finish_reason is not None:
            self.ended.set()

    def fail(self, error):
        assert not self.ended.is_set(), "an error after the end"
        self.error = error
        self.ended.set()
        self.progress.set()

    @property
    def whole(self):
        backlog = DeltaBuffer(Delta("", ()))
        for delta in self.deltas:
            backlog.add(delta)
        return backlog.whole()


class EngineContract:
    """The contract tests. Each test leaves the engine as it found it."""

    async def begin(self, engine, name, text="Once upon a time", **sampling):
        prompt = await engine.tokenize(GenerationRequest(text))
        sink = CollectingSink()
        fields = {"max_tokens": 8, "temperature": 0.0, **sampling}
        await engine.submit(name, prompt, Sampling(**fields), 0, sink)
        return sink

    async def finish(self, sink):
        with anyio.fail_after(PATIENCE):
            await sink.ended.wait()
        assert sink.error is None
        return sink.whole

    async def run_one(self, engine, name, **sampling):
        return await self.finish(await self.begin(engine, name, **sampling))

    async def assert_idle(self, engine):
        """Check that the engine is idle, after a short request that makes its figures current."""
        await self.run_one(engine, "probe", max_tokens=1)
        statistics = engine.statistics()
        assert (statistics.running, statistics.waiting, statistics.kv_usage) == (0, 0, 0.0)

    async def test_it_generates_exactly_max_tokens_with_finish_reason_length(self, engine):
        whole = await self.run_one(engine, "length", ignore_eos=True)
        assert len(whole.token_ids) == 8
        assert whole.finish_reason == "length"
        assert whole.text

    async def test_tokens_come_one_step_at_a_time(self, engine):
        sink = await self.begin(engine, "steps", ignore_eos=True)
        await self.finish(sink)
        assert len(sink.deltas) > 1
        assert [delta.finish_reason for delta in sink.deltas[:-1]] == [None] * (len(sink.deltas) - 1)

    async def test_greedy_answers_repeat(self, engine):
        first = await self.run_one(engine, "one", ignore_eos=True)
        second = await self.run_one(engine, "two", ignore_eos=True)
        assert first.token_ids == second.token_ids

    async def test_the_same_seed_gives_the_same_answer(self, engine):
        answers = [await self.run_one(engine, f"s{n}", temperature=1.0, seed=7, ignore_eos=True) for n in range(2)]
        assert answers[0].token_ids == answers[1].token_ids

    async def test_a_stop_string_ends_the_text_before_it(self, engine):
        whole = await self.run_one(engine, "full", max_tokens=24, ignore_eos=True)
        stop = whole.text[len(whole.text) // 2 :][:3]
        cut = await self.run_one(engine, "cut", max_tokens=24, ignore_eos=True, stop=[stop])
        assert cut.finish_reason == "stop"
        assert cut.stop_reason == stop
        assert cut.text == whole.text[: whole.text.index(stop)]

    async def test_an_included_stop_string_ends_the_text(self, engine):
        whole = await self.run_one(engine, "full", max_tokens=24, ignore_eos=True)
        stop = whole.text[len(whole.text) // 2 :][:3]
        cut = await self.run_one(engine, "cut", max_tokens=24, ignore_eos=True, stop=[stop], include_stop=True)
        assert cut.text == whole.text[: whole.text.index(stop) + len(stop)]

    async def test_logprobs_come_for_every_token(self, engine):
        whole = await self.run_one(engine, "logprobs", logprobs=2, ignore_eos=True, max_tokens=4)
        assert [entry.token_id for entry in whole.logprobs] == list(whole.token_ids)
        assert all(entry.logprob <= 0 and len(entry.top) == 2 for entry in whole.logprobs)

    async def test_zero_logprobs_are_the_chosen_token_alone(self, engine):
        whole = await self.run_one(engine, "zero", logprobs=0, ignore_eos=True, max_tokens=2)
        assert [entry.top for entry in whole.logprobs] == [(), ()]

    async def test_the_prompt_s_own_logprobs_begin_with_a_token_that_has_none(self, engine):
        prompt = await engine.tokenize(GenerationRequest("Once upon a time"))
        whole = await self.run_one(engine, "prompt", prompt_logprobs=1, max_tokens=1)
        assert [entry.token_id for entry in whole.prompt_logprobs] == list(prompt.token_ids)
        assert [entry.logprob is None for entry in whole.prompt_logprobs] == [True] + [False] * (len(prompt.token_ids) - 1)
        assert "".join(entry.token for entry in whole.prompt_logprobs) == "Once upon a time"
        assert all(len(entry.top) == 1 for entry in whole.prompt_logprobs[1:])

    async def test_an_answer_is_made_of_the_allowed_tokens(self, engine):
        free = await self.run_one(engine, "free", ignore_eos=True)
        allowed = sorted(set(free.token_ids))[:2]
        bound = await self.run_one(engine, "allowed", allowed_token_ids=allowed)
        assert set(bound.token_ids) <= set(allowed)
        assert (bound.finish_reason, len(bound.token_ids)) == ("length", 8)

    async def test_bad_words_do_not_come(self, engine):
        free = await self.run_one(engine, "free", ignore_eos=True, max_tokens=16)
        words = free.text.split()[:2]
        without = await self.run_one(engine, "without", ignore_eos=True, max_tokens=16, bad_words=words)
        assert len(without.token_ids) == 16
        assert not set(words) & set(without.text.split())

    async def test_it_reports_its_timings(self, engine):
        sink = await self.begin(engine, "timings", ignore_eos=True)
        await self.finish(sink)
        timings = sink.timings
        assert timings.queued <= timings.scheduled <= timings.first_token <= timings.last_token <= anyio.current_time()

    async def test_many_at_once_do_not_mix(self, engine):
        alone = await self.run_one(engine, "alone", ignore_eos=True)
        sinks = [await self.begin(engine, f"many{n}", text="Once upon a time" if n % 2 else "The end", ignore_eos=True) for n in range(8)]
        answers = [await self.finish(sink) for sink in sinks]
        assert {answer.token_ids for answer in answers[1::2]} == {alone.token_ids}

    async def test_an_aborted_request_says_nothing_more_and_frees_its_memory(self, engine):
        sink = await self.begin(engine, "abort", ignore_eos=True, max_tokens=500)
        with anyio.fail_after(PATIENCE):
            await sink.progress.wait()
        assert engine.statistics().running == 1
        await engine.abort("abort")
        seen = len(sink.deltas)
        await self.assert_idle(engine)
        assert len(sink.deltas) == seen
        assert not sink.ended.is_set()

    async def test_aborting_the_unknown_the_finished_and_the_aborted_is_fine(self, engine):
        await engine.abort("never seen")
        await self.run_one(engine, "done")
        await engine.abort("done")
        await self.begin(engine, "twice", ignore_eos=True, max_tokens=500)
        await engine.abort("twice")
        await engine.abort("twice")
        await self.assert_idle(engine)

    async def test_a_submit_cancelled_half_way_and_aborted_leaves_nothing(self, engine):
        prompt = await engine.tokenize(GenerationRequest("Once upon a time"))
        sink = CollectingSink()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await engine.submit("half", prompt, Sampling(max_tokens=500, ignore_eos=True), 0, sink)
        await engine.abort("half")
        await self.assert_idle(engine)
        assert not sink.ended.is_set()

    async def test_an_answer_that_is_not_detokenized_is_its_token_ids(self, engine):
        plain = await self.run_one(engine, "text", ignore_eos=True)
        ids = await self.run_one(engine, "ids", ignore_eos=True, detokenize=False)
        assert ids.token_ids == plain.token_ids
        assert (ids.text, plain.text != "") == ("", True)

    async def test_statistics_count_up(self, engine):
        before = engine.statistics()
        await self.run_one(engine, "count", ignore_eos=True)
        after = engine.statistics()
        assert after.steps > before.steps
        assert after.generation_tokens == before.generation_tokens + 8
        assert after.prompt_tokens > before.prompt_tokens

    async def test_it_says_when_it_has_stepped_and_counts_no_pause_as_a_step(self, engine):
        told = []
        engine.watch(lambda: told.append(engine.statistics()))
        try:
            before, began = engine.statistics(), anyio.current_time()
            await self.run_one(engine, "first", ignore_eos=True)
            await anyio.sleep(0.5)
            await self.run_one(engine, "second", ignore_eos=True)
            # The engine reports the last step's end after its tokens.
            await anyio.sleep(0.05)
            after, ended = engine.statistics(), anyio.current_time()
        finally:
            engine.watch(lambda: None)
        assert len(told) >= 16
        assert [one.generation_tokens for one in told] == sorted(one.generation_tokens for one in told)
        # Each step of a request follows another one, except the first: the prefill step may come
        # alone.
        assert 14 <= after.busy_steps - before.busy_steps <= len(told) - 2
        assert 0 < after.busy_seconds - before.busy_seconds < ended - began - 0.5

    async def test_text_survives_a_round_trip_through_tokens(self, engine):
        text = "Grüße, 世界!"
        prompt = await engine.tokenize(GenerationRequest(text))
        assert await engine.detokenize(prompt.token_ids) == text

    async def test_token_ids_are_used_unchanged(self, engine):
        prompt = await engine.tokenize(GenerationRequest([65, 66, 67]))
        assert prompt.token_ids == (65, 66, 67)

    async def test_a_conversation_is_rendered_with_its_roles(self, engine):
        prompt = await engine.tokenize(GenerationRequest(messages=[{"role": "user", "content": "hello there"}]))
        text = await engine.detokenize(prompt.token_ids)
        assert "user" in text
        assert "hello there" in text

    async def test_ids_outside_the_vocabulary_are_refused(self, engine):
        with pytest.raises(InvalidRequest) as caught:
            await engine.detokenize((engine.info.vocab_size,))
        assert caught.value.param == "tokens"

    async def test_info_is_plausible(self, engine):
        info = engine.info
        assert info.max_model_len > 0
        assert info.vocab_size > 0
        assert info.max_num_seqs > 0
        assert info.kv_cache_tokens >= info.max_model_len
        engine.check_health()


async def assert_dead(engine):
    """Check an engine that is not running."""
    with pytest.raises(EngineDead):
        engine.check_health()
