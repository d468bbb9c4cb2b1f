"""Images over the wires: chats of the HTTP API, the raw socket, and their errors."""

import openai
import pytest
from http_support import running_server
from image_files import asking, bomb, data_url, part, picture
from socket_support import running_socket

from frontends.rawsocket.client import SocketClient
from llmserve import GenerationRequest, Image, InvalidRequest
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine

RED = picture()
TOKENS = 16
URL = "messages[0].content[1].image_url.url"


def chat(*parts, **more):
    return {"messages": asking(*parts), "max_tokens": 4, "temperature": 0, **more}


@pytest.fixture
async def server():
    async with running_server(image_tokens=TOKENS) as server:
        yield server


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate"])
async def test_an_image_s_tokens_are_in_the_usage(server, path):
    _, text, _ = await server.post(path, chat())
    status, image, _ = await server.post(path, chat(part(RED)))
    assert status == 200
    assert image["usage"]["prompt_tokens"] == text["usage"]["prompt_tokens"] + TOKENS


async def test_a_large_image_takes_the_slow_way_of_large_bodies(server):
    data = picture("PNG", size=(300, 300)) + bytes(30_000)
    status, image, _ = await server.post("/v1/chat/completions", chat(part(data)))
    assert (status, image["object"]) == (200, "chat.completion")


async def test_a_batch_and_the_tokenizer_take_images(server):
    status, body, _ = await server.post("/v1/chat/completions/batch", {"messages": [asking(part(RED)), asking()], "max_tokens": 1})
    assert (status, len(body["choices"])) == (200, 2)
    counts = [(await server.post("/tokenize", {"messages": asking(*parts)}))[1]["count"] for parts in ((part(RED),), ())]
    assert counts[0] == counts[1] + TOKENS


async def test_the_openai_client_sends_an_image(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        found = []
        for color in ("red", "red", "blue"):
            content = [{"type": "text", "text": "What is this?"}, part(picture(color=color))]
            answer = await client.chat.completions.create(
                model="sim", messages=[{"role": "user", "content": content}], max_tokens=9, temperature=0
            )
            found.append(answer.choices[0].message.content)
        assert found[0] == found[1] != found[2]
        with pytest.raises(openai.BadRequestError, match="the server fetches nothing") as caught:
            content[1] = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
            await client.chat.completions.create(model="sim", messages=[{"role": "user", "content": content}])
        assert caught.value.param == URL


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1/a.png", "the server fetches nothing, not even from http: addresses; send the image as a data URL"),
        ("file:///etc/passwd", "the server fetches nothing, not even from file: addresses; send the image as a data URL"),
        ("data:image/png;base64,AAA", "the data is not valid base64"),
        ("data:image/png;base64,AAAA", "the data is not a PNG, JPEG, WebP or GIF image"),
        (data_url(RED[:50]), "the PNG image is damaged or incomplete"),
        (data_url(bomb(60_000, 60_000)), "the image has 60,000 x 60,000 pixels, but may have at most 16,777,216"),
    ],
)
async def test_a_wrong_image_is_a_400_that_names_it(server, url, words, stream):
    status, body, _ = await server.post("/v1/chat/completions", chat({"type": "image_url", "image_url": {"url": url}}, stream=stream))
    assert (status, body["error"]["param"]) == (400, URL)
    assert body["error"]["message"] == f"{URL}: {words}"
    assert (await server.post("/v1/chat/completions", chat(part(RED))))[0] == 200


@pytest.mark.parametrize(
    "wrong", [{}, {"image_url": None}, {"image_url": {"url": None}}, {"image_url": 5}, {"image_url": {"detail": "low"}}]
)
async def test_an_image_without_a_url_is_a_400(server, wrong):
    status, body, _ = await server.post("/v1/chat/completions", chat({"type": "image_url", **wrong}))
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert body["error"]["param"] in (URL, "messages")


@pytest.mark.parametrize(("path", "messages"), [("", asking(*[part(RED)] * 3)), ("/batch", [asking(part(RED))] * 3)])
async def test_all_choices_together_have_a_bounded_number_of_images(server, path, messages):
    status, body, _ = await server.post(f"/v1/chat/completions{path}", {"messages": messages, "n": 22, "max_tokens": 1})
    assert (status, body["error"]["param"], body["error"]["message"]) == (400, "n", "images times n must be at most 64, not 66")
    status, body, _ = await server.post(f"/v1/chat/completions{path}", {"messages": messages, "n": 3, "max_tokens": 1})
    assert (status, len(body["choices"])) == (200, 9 if path else 3)


async def test_a_model_without_images_says_so():
    async with running_server() as server:
        status, body, _ = await server.post("/v1/chat/completions", chat(part(RED)))
        assert (status, body["error"]["param"], body["error"]["message"]) == (400, URL, f"{URL}: the model takes no images")


async def test_the_raw_socket_carries_images():
    async with (
        running_socket(engine=SimulatedEngine(SimulatedConfig(image_tokens=TOKENS, time_scale=0.0))) as served,
        SocketClient(served.addresses[0]) as client,
    ):
        text = await client.generate(asking(), max_tokens=1)
        for image in (Image(RED), part(RED)):
            request = GenerationRequest(messages=asking(image))
            assert (await client.generate(request, max_tokens=1)).usage.prompt_tokens == text.usage.prompt_tokens + TOKENS
        with pytest.raises(InvalidRequest, match="the PNG image is damaged") as caught:
            await client.generate(asking(Image(RED[:50])))
        assert caught.value.param == URL
