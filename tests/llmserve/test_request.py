import pytest

from llmserve import SLO, AdmissionConfig, ConfigurationError, GenerationRequest, InvalidRequest, ManagerConfig, Sampling

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_tokens", [0, -1, 10**12, 1.5, "3", True]),
        ("min_tokens", [-1, 10**12]),
        ("temperature", [NAN, INFINITY, -INFINITY, -0.1, "0.5", True]),
        ("top_p", [0, 1.1, NAN, -1]),
        ("top_k", [-2, 2**40]),
        ("min_p", [-0.1, 1.1, NAN]),
        ("presence_penalty", [-2.1, 2.1, NAN]),
        ("frequency_penalty", [-2.1, 2.1, INFINITY]),
        ("repetition_penalty", [0, -1, NAN]),
        ("seed", [2**63, -(2**63) - 1, 1.0]),
        ("stop", [["a"] * 5, [""], ["x" * 257]]),
        ("stop_token_ids", [[-1], [1] * 129, [True], [1.0]]),
        ("logprobs", [-1, 21]),
        ("prompt_logprobs", [-1, 21]),
    ],
)
def test_a_sampling_field_out_of_bounds_is_named(field, values):
    for value in values:
        with pytest.raises(InvalidRequest) as caught:
            Sampling(**{field: value})
        assert caught.value.param == field


def test_min_tokens_above_max_tokens_is_refused():
    with pytest.raises(InvalidRequest) as caught:
        Sampling(max_tokens=3, min_tokens=4)
    assert caught.value.param == "min_tokens"


def test_the_bounds_themselves_are_fine():
    Sampling(temperature=0, top_p=1, top_k=-1, min_p=1, seed=-(2**63), logprobs=20, max_tokens=1, min_tokens=1)
    assert Sampling(stop="one").stop == ("one",)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1.0]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ({"prompt": "x", "deadline": 0.0}, "deadline"),
        ({"prompt": "x", "deadline": NAN}, "deadline"),
        ({"prompt": "x", "priority": 2**40}, "priority"),
    ],
)
def test_a_malformed_request_is_named(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        GenerationRequest(**fields)
    assert caught.value.param == param


def test_every_request_has_an_id_of_its_own():
    assert GenerationRequest("x").request_id != GenerationRequest("x").request_id


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: SLO(ttft=-1), "ttft"),
        (lambda: SLO(tpot=NAN), "tpot"),
        (lambda: AdmissionConfig(max_running=-1), "max_running"),
        (lambda: AdmissionConfig(max_wait=0), "max_wait"),
        (lambda: AdmissionConfig(tenant_limit=0), "tenant_limit"),
        (lambda: ManagerConfig(max_tokenizing=0), "max_tokenizing"),
        (lambda: ManagerConfig(drain_timeout=INFINITY), "drain_timeout"),
    ],
)
def test_a_wrong_setting_is_named(make, name):
    with pytest.raises(ConfigurationError, match=name):
        make()
