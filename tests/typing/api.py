"""Never run: mypy checks that the public API can be used as its documentation says, and that its types say what they are."""

from typing import assert_type

from llmserve import (
    SLO,
    AdmissionConfig,
    CancellationToken,
    Completion,
    Decision,
    Delta,
    Engine,
    EngineManager,
    GenerationRequest,
    ManagerConfig,
    Observer,
    Overloaded,
    Sampling,
    TenantLimits,
    TenantTable,
    Timeline,
    TokenStream,
    Usage,
)
from llmserve.engines.simulated.engine import SimulatedEngine
from llmserve.engines.vllm.engine import VLLMEngine


async def embedded() -> None:
    config = ManagerConfig(slo=SLO(ttft=1.0, tpot=0.05), admission=AdmissionConfig(max_running=8, tenant_limit=4))
    async with EngineManager.open("bundled", engine_args={"max_num_seqs": 8}, config=config) as manager:
        assert_type(manager, EngineManager)
        completion = await manager.generate("The capital of France is", sampling=Sampling(max_tokens=16))
        assert_type(completion, Completion)
        assert_type(completion.usage, Usage)
        token = CancellationToken()
        request = GenerationRequest(messages=[{"role": "user", "content": "hello"}], tenant="web", priority=0, deadline=2.0)
        async with manager.stream(request, token) as stream:
            assert_type(stream, TokenStream)
            async for delta in stream:
                assert_type(delta, Delta)
        try:
            await manager.generate([1, 2, 3])
        except Overloaded as error:
            assert_type(error.retry_after, float)
        manager.set_tenants(TenantTable({"web": TenantLimits(weight=2, concurrency=8)}))
        assert_type(manager.admission.explain(request.request_id), list[Decision])
        assert_type(await manager.drain(timeout=30), bool)


def engines() -> list[Engine]:
    return [SimulatedEngine(), VLLMEngine("bundled", {"dtype": "float32"})]


class Counting:
    """An observer as anyone may write one."""

    def tokens(self, timeline: Timeline, count: int, now: float) -> None: ...

    def finished(self, timeline: Timeline) -> None: ...


observers: list[Observer] = [Counting()]


async def inputs(manager: EngineManager) -> None:
    token, sampling = CancellationToken(), Sampling(max_tokens=4)
    messages = [{"role": "user", "content": "hello"}]
    assert_type(await manager.generate("hello", sampling, token), Completion)
    assert_type(await manager.generate(messages, token, sampling=sampling), Completion)
    assert_type(await manager.generate([1, 2], max_tokens=5, stop="x", deadline=2.0, tenant="web"), Completion)
    async with manager.stream("hello", sampling, token=token) as stream:
        assert_type(stream, TokenStream)
    async with manager.stream(messages, temperature=0) as stream:
        assert_type(await stream.collect(), Completion)
    await manager.generate("hello", max_token=5)  # type: ignore[call-overload]  # the type checker must reject it
    await manager.generate("hello", max_tokens="5")  # type: ignore[call-overload]  # the type checker must reject it
    await manager.generate({"role": "user"})  # type: ignore[call-overload]  # the type checker must reject it
    manager.stream("hello", 5)  # type: ignore[call-overload]  # the type checker must reject it
    assert_type(GenerationRequest.of(messages, max_tokens=5), GenerationRequest)
