"""vLLM's engine core with a model that computes nothing: requests get all their tokens as usual."""

import gc

import anyio
import pytest

from benchmarks.host_cost.server_processes import Setting
from benchmarks.stand_ins.stub_core import TOKENS
from llmserve import EngineManager, GenerationRequest, Sampling

pytestmark = pytest.mark.nightly

ARGS = Setting(core="null").args_of_ours


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("second_runner", [False, True])
def test_a_prompt_in_parts_gets_no_token_before_its_last_part(asynchronous, second_runner):
    """Run vLLM's core in this process, with a feature that a CPU lacks by default.

    A step is scheduled before the previous one is over.
    """
    from vllm import SamplingParams, envs
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    from llmserve.models import resolve

    # Room for two of the three contexts, so that one request is preempted. The block size is that
    # of the CPU, which vLLM 0.33 sets only after it has made the executor.
    args = ARGS | {"max_num_batched_tokens": 64, "max_num_seqs": 3, "max_model_len": 512, "block_size": 128, "num_gpu_blocks_override": 9}
    config = EngineArgs(model=resolve("bundled"), **args).create_engine_config()
    config.scheduler_config.async_scheduling = asynchronous
    core = EngineCore(config, Executor.get_class(config), log_stats=True)
    # The core resumes a preempted request as a new one, which vLLM refuses on a CPU.
    core.scheduler.use_v2_model_runner = second_runner
    for name in ("a", "b", "c"):
        params = SamplingParams(max_tokens=250, ignore_eos=True)
        core.add_request(
            *core.preprocess_add_request(
                EngineCoreRequest(
                    request_id=name,
                    prompt_token_ids=list(range(2000, 2200)),
                    mm_features=None,
                    sampling_params=params,
                    pooling_params=None,
                    arrival_time=0.0,
                    lora_request=None,
                    cache_salt=name,
                    data_parallel_rank=None,
                )
            )
        )
    answers = {"a": [], "b": [], "c": []}
    ended, steps, first, preempted = set(), 0, {}, False
    while len(ended) < 3:
        steps += 1
        assert steps < 3000
        outputs, _ = core.step_fn()
        preempted |= any(request.num_preemptions for request in core.scheduler.requests.values())
        for output in outputs[0].outputs if outputs else ():
            answers[output.request_id] += output.new_token_ids
            first.setdefault(output.request_id, steps)
            if output.finish_reason is not None:
                ended.add(output.request_id)
    assert {name: len(tokens) for name, tokens in answers.items()} == dict.fromkeys(answers, 250)
    assert first["a"] >= 4
    # The test covers that too.
    assert preempted
    core.shutdown()
    # The core makes both for a separate process.
    gc.unfreeze()
    envs.disable_envs_cache()


async def test_every_request_gets_its_tokens_by_the_fast_path():
    async with EngineManager.open("bundled", engine_args=ARGS) as manager:
        answers = []

        async def ask(number):
            request = GenerationRequest((2000, 2001), sampling=Sampling(max_tokens=10 + number, ignore_eos=True))
            answers.append(await manager.generate(request))

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(ask, number)
        assert sorted(len(answer.token_ids) for answer in answers) == list(range(10, 18))
        assert all(set(answer.token_ids) <= set(TOKENS) and answer.text.strip() for answer in answers)
        # All tokens of each answer but the first and the last.
        engine = manager.metrics()["engine"]
        assert (engine["fast_path_tokens"], engine["slow_path_tokens"]) == (sum(range(8, 16)), 16)
