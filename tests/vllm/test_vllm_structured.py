"""Structured outputs on the real engine: answers conform; harmful constraints do not reach it."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import anyio
import openai
import psutil
import pytest

from llmserve import EngineError, GenerationRequest, InvalidRequest, LLMServeError, Overloaded, Sampling, StructuredOutputs
from llmserve.engines.vllm.grammars.sandbox import vocabulary
from llmserve.engines.vllm.grammars.sandbox_program import compile_one

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
# Takes 10 s of one core with xgrammar 0.2.8 unless it is stopped. Each pattern is different,
# because verdicts are cached.
SLOW = "^(.*a){25}[a-z]{1,%d}(.|\\n){1,5000}$"


async def ask(manager, constraint, max_tokens=100, **sampling):
    wanted = Sampling(max_tokens=max_tokens, structured_outputs=constraint, **sampling)
    return (await manager.generate(GenerationRequest("A person, as JSON: ", sampling=wanted))).text


def person(text):
    found = json.loads(text)
    assert set(found) == {"name", "age"}
    assert isinstance(found["age"], int)
    assert 0 <= found["age"] <= 120
    return True


async def test_the_official_client_s_schema_is_kept_to_fifty_times_of_fifty(server):
    asked: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    messages: Any = [{"role": "user", "content": "Tell me of a person."}]
    kept = []

    async def one(number):
        answer = await client.chat.completions.create(
            model="sim", messages=messages, response_format=asked, max_tokens=120, seed=number, temperature=1.5
        )
        assert answer.choices[0].finish_reason == "stop"
        kept.append(person(answer.choices[0].message.content))

    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(one, number)
        stream = await client.chat.completions.create(model="sim", messages=messages, response_format=asked, max_tokens=120, stream=True)
        assert person("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))
    assert len(kept) == 50


@pytest.mark.parametrize(
    ("constraint", "is_kept"),
    [
        (StructuredOutputs.json(SCHEMA), person),
        # Without a schema this model does not end its answer.
        (StructuredOutputs.json_object(), lambda text: text.startswith('{"')),
        (StructuredOutputs.regex(r"\d{4}-\d{2}-\d{2}"), re.compile(r"\d{4}-\d{2}-\d{2}").fullmatch),
        (StructuredOutputs.choice(["yes", 'no, "never"', "ä\n"]), ["yes", 'no, "never"', "ä\n"].__contains__),
        (StructuredOutputs.grammar('root ::= x x | "c"\nx ::= "a" | "b"'), re.compile("[ab]{2}|c").fullmatch),
        (StructuredOutputs.json({"enum": [f"v{number}" for number in range(2000)]}), re.compile(r'"v\d+"').fullmatch),
    ],
    ids=["json", "json_object", "regex", "choice", "grammar", "enum"],
)
async def test_each_kind_is_kept_to(manager, constraint, is_kept):
    assert is_kept(await ask(manager, constraint, temperature=0))


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (StructuredOutputs.regex("("), "cannot be read"),
        (StructuredOutputs.regex("a**"), "cannot be read"),
        (StructuredOutputs.regex("(?<=a)b"), "look-behind"),
        (StructuredOutputs.json({"type": "stsring"}), "stsring"),
        (StructuredOutputs.json({"type": "string", "pattern": "{{}}("}), "pattern: it cannot be read"),
        (StructuredOutputs.json({"$ref": "#"}), "refers to itself"),
        (
            StructuredOutputs.json({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            "refers to itself",
        ),
        (StructuredOutputs.json({"type": "integer", "multipleOf": 3}), "not supported"),
        (StructuredOutputs.json({"type": "string", "pattern": SLOW % 4999}), "too complex|too ambiguous"),
        (StructuredOutputs.grammar("root ::= root"), "no string can match this schema or grammar"),
        (StructuredOutputs.grammar("root ::= " + "(" * 30_000), "Nest layer"),
        (StructuredOutputs.grammar("rule ::= 1"), "EBNF"),
    ],
)
async def test_unsupported_constraints_are_refused_and_the_engine_goes_on(manager, constraint, words):
    with pytest.raises(InvalidRequest, match=words) as caught:
        await ask(manager, constraint)
    assert caught.value.param == "structured_outputs"
    assert "cpp" not in str(caught.value)
    assert person(await ask(manager, StructuredOutputs.json(SCHEMA), temperature=0))


async def test_a_rule_that_leads_nowhere_is_the_request_s_own_fault(manager):
    with pytest.raises(InvalidRequest, match="no token can continue"):
        await ask(manager, StructuredOutputs.grammar('root ::= "a" x\nx ::= x'))


async def test_many_slow_ones_at_once_are_refused_and_do_not_stand_before_others_for_ever(manager):
    """They are tested one by one. A client that would wait too long gets an error to retry."""
    refused = []

    async def one(number):
        with pytest.raises(LLMServeError) as caught:
            await ask(manager, StructuredOutputs.json({"type": "string", "pattern": SLOW % (3000 + number)}))
        refused.append(type(caught.value))

    async with anyio.create_task_group() as tasks:
        for number in range(80):
            tasks.start_soon(one, number)
        # Requests that need no test are answered in that time.
        await ask(manager, None, max_tokens=4)
    assert set(refused) <= {InvalidRequest, Overloaded}
    assert refused.count(Overloaded) >= 16
    assert person(await ask(manager, StructuredOutputs.json(SCHEMA), temperature=0))
    assert manager.statistics().open == 0


async def test_one_schema_is_tested_once_for_many_requests(manager):
    schema = StructuredOutputs.regex("[a-z]{3}|once")
    trials, verdict = [], manager.engine._grammars._trials.verdict
    manager.engine._grammars._trials.verdict = lambda constraint: trials.append(constraint) or verdict(constraint)
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask, manager, schema)
    finally:
        del manager.engine._grammars._trials.verdict
    assert trials == [schema]


def arrays_of_arrays():
    references = [{"type": "array", "items": {"$ref": f"#/$defs/d{number}"}} for number in range(20)]
    return json.dumps({"$ref": "#/$defs/d0", "$defs": {f"d{number}": {"anyOf": references} for number in range(20)}})


# Each of these compiles, but takes longer with every token: 0.1 to 25 s at the 26th, or with one
# more level of nesting.
COSTLY = [
    StructuredOutputs.grammar('root ::= x x x x\nx ::= x x | x x x | "" | [a-z ] | "the" | x "a" x'),
    StructuredOutputs.regex("((a|b|[a-z ])*|([a-z ]*))*"),
    StructuredOutputs.json(arrays_of_arrays()),
    StructuredOutputs.grammar("root ::= root root | [ a-z]"),
    StructuredOutputs.regex("((a+)+)+"),
]


@pytest.mark.parametrize("constraint", COSTLY, ids=["grammar", "regex", "json", "two_roots", "nested"])
async def test_costly_constraints_are_refused_and_a_canary_notices_nothing(manager, constraint):
    # If other processes use the cores, the answer is no verdict but a time to come back.
    for _ in range(5):
        with pytest.raises((InvalidRequest, Overloaded)) as refused:
            await ask(manager, constraint, max_tokens=1500)
        if not isinstance(refused.value, Overloaded):
            break
        await anyio.sleep(refused.value.retry_after)
    assert re.search("structured_outputs: .*(too ambiguous|too complex)", str(refused.value))
    assert len((await manager.generate("x", sampling=Sampling(max_tokens=8, ignore_eos=True))).token_ids) == 8


@pytest.mark.parametrize(
    "constraint",
    [
        StructuredOutputs.json({}),
        StructuredOutputs.json({"type": "array", "items": SCHEMA}),
        StructuredOutputs.json({"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}),
        StructuredOutputs.regex(r"[\w\s]+"),
        StructuredOutputs.grammar("root ::= root [a-z] | [a-z]"),
        StructuredOutputs.grammar('root ::= term ("+" term)*\nterm ::= [0-9]+ | "(" root ")"'),
    ],
)
async def test_a_constraint_of_constant_cost_is_accepted(manager, constraint):
    assert await ask(manager, constraint, max_tokens=4)


@pytest.mark.parametrize("two_compilers", [False, True])
async def test_a_grammar_is_tried_out_with_the_special_tokens(engine, monkeypatch, two_compilers):
    import xgrammar
    from vllm.v1.structured_output import backend_xgrammar

    class WithTwoCompilers(backend_xgrammar.XgrammarBackend):
        """The two compilers of vLLM 0.33; the lock file has 0.32."""

        compiler: Any

        def __post_init__(self):
            super().__post_init__()
            if hasattr(self, "full_vocab_compiler"):
                return
            known = self.compiler.compile_grammar('root ::= "a"').tokenizer_info
            texts = {token: text for text, token in self.tokenizer.get_vocab().items() if token not in self.tokenizer.all_special_ids}
            plain = [texts.get(token, "") for token in range(known.vocab_size)]
            self.full_vocab_compiler = self.compiler
            self.compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_vocab_and_metadata(plain, known.dump_metadata()))

    if two_compilers:
        monkeypatch.setattr(backend_xgrammar, "XgrammarBackend", WithTwoCompilers)
    llm = engine.running_llm
    known = xgrammar.TokenizerInfo.deserialize_json(vocabulary(llm.vllm_config, llm.get_tokenizer()))
    compile_one("lark", 'start: <|im_start|> "a"', known)


async def test_the_program_that_tries_starts_with_the_engine_and_without_torch(manager):
    """A regression: the first constraint waited 9 s for the program, mostly to import torch."""
    program = manager.engine._grammars._trials._process
    assert program.poll() is None
    libraries = {Path(mapped.path).name for mapped in psutil.Process(program.pid).memory_maps()}
    assert any("xgrammar" in name for name in libraries)
    assert not any("torch" in name for name in libraries)


async def test_the_program_that_tries_is_started_again_when_it_was_killed(manager):
    await ask(manager, StructuredOutputs.regex("a"))
    program = manager.engine._grammars._trials._process
    os.kill(program.pid, signal.SIGKILL)
    psutil.Process(program.pid).wait(10)
    assert await ask(manager, StructuredOutputs.regex("b")) == "b"


async def test_the_start_of_the_program_does_not_count_in_the_first_test(manager):
    """The start took 3 s, and more on a busy machine.

    The first constraint got a 503 although it was too complex, and so did those that waited behind
    it.
    """
    manager.engine._grammars._trials.close()
    refused = []

    async def one(number):
        with pytest.raises(InvalidRequest, match=r"[Rr]egex|parenthesis"):
            await ask(manager, StructuredOutputs.regex("(" * number))
        refused.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(1, 4):
            tasks.start_soon(one, number)
    assert len(refused) == 3


async def test_a_test_that_cannot_run_is_not_a_verdict(manager, monkeypatch):
    trials = manager.engine._grammars._trials
    monkeypatch.setattr(trials, "_vocabulary", lambda: (_ for _ in ()).throw(RuntimeError("nothing starts")))
    trials.close()
    with pytest.raises(EngineError, match="nothing starts"):
        await ask(manager, StructuredOutputs.regex("c"))
    monkeypatch.undo()
    assert await ask(manager, StructuredOutputs.regex("c")) == "c"


async def test_a_bias_is_added(manager):
    token = manager.engine.running_llm.get_tokenizer().encode(" London")[0]
    sampling = Sampling(max_tokens=3, temperature=0, logit_bias={token: 100})
    assert (await manager.generate("The capital of France is", sampling=sampling)).text == " London London London"
    with pytest.raises(InvalidRequest) as caught:
        await manager.generate("x", sampling=Sampling(logit_bias={10**6: 1}))
    assert caught.value.param == "logit_bias"


async def test_a_constraint_that_becomes_costly_after_all_is_ejected_and_others_go_on(manager, monkeypatch, caplog):
    """The constraint passes as if its test had found nothing."""
    monkeypatch.setattr(manager.engine._grammars._trials, "verdict", lambda constraint: None)
    ends, slow = {}, []
    cores = [psutil.Process(pid) for pid in manager.engine.processes()]

    def worked():
        """Return the seconds of CPU time that the engine has had, which no other program lengthens."""
        return sum(sum(core.cpu_times()[:2]) for core in cores)

    async def read(name, constraint, max_tokens):
        sampling = Sampling(max_tokens=max_tokens, ignore_eos=True, structured_outputs=constraint)
        try:
            async with manager.stream(GenerationRequest("aaaa", request_id=name, sampling=sampling)) as stream:
                async for _ in stream:
                    pass
            ends[name] = None
        except LLMServeError as error:
            ends[name] = error

    async def look():
        while True:
            before = manager.engine.statistics()
            await anyio.sleep(1)
            after = manager.engine.statistics()
            if after.busy_seconds - before.busy_seconds > 0.2 * (after.busy_steps - before.busy_steps) or after.steps == before.steps:
                slow.append(worked())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        async with anyio.create_task_group() as readers:
            readers.start_soon(read, "plain", None, 400)
            readers.start_soon(read, "cheap", StructuredOutputs.regex("[a-z ]+"), 400)
            with anyio.fail_after(600):
                await read("costly", StructuredOutputs.grammar("root ::= root root | [ a-z_]"), 1500)
            ended = worked()
        tasks.cancel_scope.cancel()
    assert isinstance(ends["costly"], InvalidRequest)
    assert ends["costly"].param == "structured_outputs"
    # Some 15 s of two threads.
    assert ended - slow[0] < 30
    assert (ends["plain"], ends["cheap"]) == (None, None)
    assert any("ejected request costly" in record.getMessage() for record in caplog.records)
    assert manager.statistics().restarts == 0
