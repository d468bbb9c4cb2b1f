"""Wrong types from an embedding program: a TypeError names the accepted types."""

from decimal import Decimal

import hypothesis.strategies as st
import pytest
from anyio import fail_after
from hypothesis import given
from quiescence import Audit, AuditedEngine, check_quiescent

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from llmserve import CancellationToken, EngineManager, GenerationRequest, InvalidRequest, Sampling
from llmserve.engines.simulated.engine import SimulatedConfig

# Likely mistakes: a related type, the positional argument of another method, another library's
# value.
THINGS = st.one_of(
    st.just(Sampling(max_tokens=2)),
    st.builds(object),
    st.just(b"text"),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.just(Decimal(1)),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.lists(st.one_of(st.none(), st.text(max_size=2), st.floats()), min_size=1, max_size=3),
    st.just(GenerationRequest),
    st.just(CancellationToken),
)
NOT_A_TOKEN = st.one_of(THINGS.filter(lambda thing: not isinstance(thing, Sampling)), st.just(GenerationRequest("x")), st.text())
NOT_A_REQUEST = st.one_of(THINGS, st.just(CancellationToken()), st.none())
NOT_A_SAMPLING = st.one_of(THINGS.filter(lambda thing: not isinstance(thing, Sampling)), st.just(GenerationRequest("x")), st.text())
FIELDS = ["sampling", "tools", "adapter", "tenant", "best_effort", "request_id", "trace_headers", "messages", "prompt"]


async def refused(manager, audit, call, error=TypeError):
    with pytest.raises(error) as caught:
        await call()
    check_quiescent(manager, audit)
    assert not audit.ends
    return str(caught.value)


async def stream(manager, *arguments):
    async with manager.stream(*arguments):
        raise AssertionError("taken")


def in_a_manager(test):
    """Run with a manager in virtual time; the manager must close immediately."""

    async def main():
        audit = Audit()
        manager = EngineManager(AuditedEngine(SimulatedConfig()), observers=[audit])
        with fail_after(1):
            async with manager:
                await test(manager, audit)
                # The manager still serves.
                assert (await manager.generate("x", sampling=Sampling(max_tokens=2))).token_ids
        check_quiescent(manager, audit)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


@given(token=NOT_A_TOKEN, request=NOT_A_REQUEST, sampling=NOT_A_SAMPLING)
def test_arguments_of_another_type_are_named_and_leave_nothing_open(token, request, sampling):
    async def test(manager, audit):
        accepted = "must be a Sampling or a CancellationToken"
        assert accepted in await refused(manager, audit, lambda: manager.generate("x", token))
        assert accepted in await refused(manager, audit, lambda: stream(manager, GenerationRequest("x"), token))
        assert "token must be a CancellationToken" in await refused(manager, audit, lambda: manager.generate("x", token=token))
        message = await refused(manager, audit, lambda: stream(manager, request))
        assert all(word in message for word in ("request must be text", "token ids", "messages", "GenerationRequest"))
        assert message == await refused(manager, audit, lambda: manager.generate(request))
        assert "request must be" in await refused(manager, audit, lambda: manager.tokenize(request))
        assert "sampling must be" in await refused(manager, audit, lambda: manager.generate("x", sampling=sampling))

    in_a_manager(test)


@given(field=st.sampled_from(FIELDS), thing=THINGS)
def test_a_field_of_another_type_never_becomes_a_request(field, thing):
    """The manager can serve or refuse every request that can be built."""

    async def test(manager, audit):
        try:
            request = GenerationRequest(**{"prompt": None if field == "messages" else "x", field: thing})
        except TypeError as error:
            assert field in str(error)
        except InvalidRequest as error:
            assert error.param == field
        else:
            await manager.generate(request, sampling=Sampling(max_tokens=1))
            check_quiescent(manager, audit)

    in_a_manager(test)


@given(field=st.sampled_from([field.name for field in Sampling.__attrs_attrs__]), thing=THINGS)
def test_a_field_of_sampling_of_another_type_never_becomes_a_request(field, thing):
    async def test(manager, audit):
        try:
            sampling = Sampling(**{"max_tokens": 1, field: thing})
        except TypeError as error:
            assert field in str(error)
        except InvalidRequest as error:
            assert error.param in (field, "min_tokens")
        else:
            with fail_after(0.5):
                try:
                    await manager.generate("x", sampling=sampling)
                except InvalidRequest as error:
                    assert error.param == field
            check_quiescent(manager, audit)

    in_a_manager(test)
