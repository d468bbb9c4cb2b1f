"""Images: their parts of messages, the bounds on them, and their decoding beside the event loop."""

import base64
import io
import threading
import warnings
import weakref
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import asking, bomb, data_url, part, picture
from PIL import Image as Pixels
from quiescence import Audit, AuditedEngine, check_quiescent

from frontends.access.caller import Caller
from frontends.openai.chat import ChatRequest
from llmserve import (
    CancellationToken,
    EngineManager,
    GenerationRequest,
    Image,
    InvalidRequest,
    ManagerConfig,
    Overloaded,
    RequestCancelled,
    RestartConfig,
)
from llmserve.engines.simulated.engine import Fault, SimulatedConfig, SimulatedEngine
from llmserve.images.decoding import KEPT_BLOCKS, MAX_OF_ONE, MAX_PIXELS, MAX_SCANS, MAX_WAITING, ImageDecoder, decode_all
from llmserve.images.headers import MAX_SEGMENTS, read_header
from llmserve.images.parts import MAX_BYTES, MAX_IMAGES, PIECE, EncodedImage, images, openai_form, with_parts

RED, BLUE = picture(), picture(color="blue")
KINDS = ("PNG", "JPEG", "WEBP", "GIF")
TOKENS = 16
AT_ONCE = ImageDecoder().at_once
FIELD = "messages[0].content[1].image_url.url"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """Return the backends with real clocks, because threads take real time."""
    return request.param


def decode(*files):
    found = []
    decode_all([(FIELD, file if isinstance(file, EncodedImage) else Image(file)) for file in files], found)
    return found


def decoded(data):
    return decode(data)[0].pixels


def refusal(data):
    with pytest.raises(InvalidRequest) as caught:
        decoded(data)
    assert caught.value.param == FIELD
    return str(caught.value).removeprefix(f"{FIELD}: ")


# Parts of messages


def test_every_form_of_a_part_becomes_a_text_or_an_image():
    sent = [{"type": "text", "text": "a"}, "b", part(RED), {"type": "image_url", "image_url": data_url(BLUE)}, Image(RED)]
    request = GenerationRequest(messages=[{"role": "system", "content": "c"}, {"role": "user", "content": sent}])
    first, second, third = images(request.messages)
    names = ["messages[1].content[2].image_url.url", "messages[1].content[3].image_url.url", "messages[1].content[4]"]
    assert [first[0], second[0], third[0]] == names
    assert [image.read() for _, image in (first, second, third)] == [RED, BLUE, RED]
    assert request.messages[1]["content"][:2] == ["a", "b"]
    again = GenerationRequest.of(request, max_tokens=3)
    assert again.messages == request.messages
    assert [image.read() for _, image in images(with_parts([openai_form(one) for one in request.messages]))] == [RED, BLUE, RED]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1/a.png", "the server fetches nothing, not even from http: addresses"),
        ("HTTPS://example.com/a.png", "the server fetches nothing"),
        ("file:///etc/passwd", "the server fetches nothing"),
        ("ftp:x", "the server fetches nothing"),
        ("/etc/passwd", "an image must be a data URL"),
        ("", "an image must be a data URL"),
        ("data:image/png,abc", "an image must be a data URL with base64"),
        ("data:text/plain;base64,AAAA", "an image must be a data URL"),
        ("data:image/png;a=b;c=d;e=f;g=h;i=j;base64,AAAA", "an image must be a data URL"),
        (" data:image/png;base64,AAAA", "an image must be a data URL"),
        (None, "must be a data URL"),
        (5, "must be a data URL"),
        ("data:image/png;base64," + "A" * (MAX_BYTES // 3 * 4 + 1), f"at most {MAX_BYTES:,} bytes"),
    ],
)
def test_only_data_urls_are_accepted_and_nothing_is_fetched(url, words):
    with pytest.raises(InvalidRequest, match=words) as caught:
        GenerationRequest(messages=asking({"type": "image_url", "image_url": {"url": url}}))
    assert caught.value.param == FIELD
    assert str(caught.value).startswith(FIELD)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"type": "input_audio", "input_audio": {"data": "AAAA"}}, "parts of the type 'input_audio' are not supported"),
        ({"image_url": "http://127.0.0.1/"}, "parts of the type 'None' are not supported"),
        ({"type": "text", "image_url": "http://127.0.0.1/", "uuid": "u"}, "a part of the type text requires text"),
        ({"type": "image_pil", "image_pil": None}, "parts of the type 'image_pil'"),
    ],
)
def test_a_part_of_another_type_is_named(wrong, words):
    """By itself, vLLM would fetch the second one and the third one."""
    with pytest.raises(InvalidRequest, match=words) as caught:
        GenerationRequest(messages=asking(wrong))
    assert caught.value.param == "messages[0].content[1]"


def test_a_text_part_keeps_nothing_but_its_text():
    request = GenerationRequest(messages=asking({"type": "text", "text": "a", "image_url": "http://127.0.0.1/", "uuid": "u"}))
    assert request.messages[0]["content"] == ["What is this?", "a"]


@pytest.mark.parametrize("wrong", [5, None, b"", object()])
def test_a_part_of_a_wrong_python_type_is_named(wrong):
    with pytest.raises(TypeError, match=r"messages\[0\]\.content\[1\] must be a text, an Image or a mapping"):
        GenerationRequest(messages=asking(wrong))


@pytest.mark.parametrize("wrong", ["", "AAAA", None, bytearray(b"a")])
def test_an_image_takes_bytes(wrong):
    with pytest.raises(TypeError, match="data must be bytes"):
        Image(wrong)


@pytest.mark.parametrize("size", [0, MAX_BYTES + 1])
def test_an_image_has_a_bounded_size(size):
    with pytest.raises(InvalidRequest, match="an image must have 1 to"):
        Image(bytes(size))


def test_a_request_has_a_bounded_number_of_images():
    GenerationRequest(messages=asking(*[Image(RED)] * MAX_IMAGES))
    with pytest.raises(InvalidRequest, match=f"messages has {MAX_IMAGES + 1} images, but may have at most {MAX_IMAGES}"):
        GenerationRequest(messages=[*asking(*[Image(RED)] * MAX_IMAGES), *asking(part(RED))])


@given(st.binary(min_size=1, max_size=100), st.sampled_from(["image/png", "IMAGE/JPEG", "image/svg+xml", "image/png;charset=utf-8"]))
def test_any_bytes_survive_a_data_url(data, kind):
    ((_, image),) = images(with_parts(asking(part(data, kind))))
    assert image.read() == data


@pytest.mark.parametrize("size", [PIECE // 4 * 3 - 1, PIECE // 4 * 3, PIECE // 4 * 3 + 1, PIECE])
def test_base64_is_decoded_in_pieces(size):
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert EncodedImage(base64.b64encode(data).decode()).read() == data


@given(st.text(max_size=60))
def test_any_url_is_decoded_or_refused(url):
    try:
        ((_, image),) = images(with_parts(asking({"type": "image_url", "image_url": {"url": url}})))
    except InvalidRequest:
        return
    assert isinstance(image, EncodedImage)


@given(st.text(alphabet="AB+/=-_ \n\té", max_size=12))
def test_wrong_base64_is_refused(text):
    try:
        expected = base64.b64decode(text, validate=True)
    except ValueError:
        expected = None
    with pytest.raises(InvalidRequest) as caught:
        decode(EncodedImage(text))
    assert ("not valid base64" in str(caught.value)) is (expected is None)


@pytest.mark.parametrize("text", ["AA==" * PIECE, "A" * (PIECE - 1) + "=" + "AAAA", "A" * (PIECE + 1)])
def test_padding_between_two_pieces_is_refused(text):
    with pytest.raises(InvalidRequest, match="not valid base64"):
        decode(EncodedImage(text))


# Headers and decoding


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("PNG", {}),
        ("GIF", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"icc_profile": bytes(200_000)}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 50}),
        ("WEBP", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (8, 6), (300, 2)])
def test_the_header_is_what_pillow_reads(kind, more, size):
    header = read_header(picture(kind, size=size, **more))
    assert (header.kind, header.width, header.height) == (kind, *size)
    assert decoded(picture(kind, size=size, **more)).size == size


def test_a_jpeg_with_fill_bytes_and_restart_markers_has_a_size():
    data = picture("JPEG")
    assert read_header(b"\xff\xd8" + b"\xff" * 9 + b"\xff\xd0" + data[2:]).pixels == 48
    assert read_header(b"\xff\xd8" + b"\xff" * (MAX_SEGMENTS + 9) + data[2:]) is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_its_colour(kind):
    pixels = decoded(picture(kind))
    assert (pixels.mode, pixels.size) == ("RGB", (8, 6))
    red, green, blue = pixels.getpixel((3, 3))
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 7, (7, 7, 7)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("LA", (7, 0), (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_red_green_and_blue(mode, color, expected):
    assert decoded(picture(mode=mode, color=color)).getpixel((0, 0)) == expected


def test_a_transparent_palette_is_white():
    assert decoded(picture("GIF", mode="P", color=3, transparency=3)).getpixel((0, 0)) == (255, 255, 255)


def test_a_photo_is_turned_as_its_camera_says():
    exif = Pixels.Exif()
    exif[0x0112] = 6
    assert decoded(picture("JPEG", exif=exif)).size == (6, 8)


def test_of_an_animation_the_first_frame_counts():
    out = io.BytesIO()
    frames = [Pixels.new("RGB", (8, 6), color) for color in ("red", "blue")]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert decoded(out.getvalue()).getpixel((0, 0)) == (255, 0, 0)


def test_the_declared_type_may_be_wrong():
    ((_, image),) = images(with_parts(asking(part(picture("JPEG"), "image/png"))))
    assert decode(image)[0].pixels.size == (8, 6)


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 1), (1, MAX_PIXELS + 1)])
def test_a_small_file_that_claims_to_be_huge_is_refused_by_its_header(size):
    data = bomb(*size)
    assert len(data) < 300
    with warnings.catch_warnings(action="error"):
        # Pillow would warn of it, so it was not asked.
        assert refusal(data) == f"the image has {size[0]:,} x {size[1]:,} pixels, but may have at most {MAX_PIXELS:,}"


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_a_header_of_another_format_that_lies_is_refused(kind):
    data = bytearray(picture(kind))
    at = {"JPEG": data.find(b"\xff\xc0") + 5, "WEBP": 26, "GIF": 6}[kind]
    data[at : at + 4] = b"\xff\x3f\xff\x3f"
    assert "pixels, but may have at most" in refusal(bytes(data))


def test_a_frame_outside_of_its_header_s_size_is_refused():
    data = bytearray(picture("GIF", size=(300, 200)))
    data[6:10] = (1).to_bytes(2, "little") * 2
    assert refusal(bytes(data)) == "the GIF image is damaged or incomplete"


def test_all_images_together_have_a_bounded_size():
    with pytest.raises(InvalidRequest, match="the images have 150,994,944 pixels together, but may have at most 134,217,728"):
        decode(*[bomb(4096, 4096)] * 9)


def test_a_jpeg_with_too_many_scans_is_refused():
    scans = picture("JPEG") + b"\xff\xda" * (MAX_SCANS + 1)
    assert refusal(scans) == f"the JPEG image has more than {MAX_SCANS} scans"


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused(kind):
    data = picture(kind, size=(64, 64))
    for end in range(len(data) // 2):
        assert refusal(data[:end] or b"x") in (
            "the data is not a PNG, JPEG, WebP or GIF image",
            f"the {kind} image is damaged or incomplete",
        )


@pytest.mark.parametrize("data", [b"x", b"%PDF-1.7", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"BM" + bytes(60), b"II*\0" + bytes(60)])
def test_other_formats_are_refused(data):
    assert refusal(data) == "the data is not a PNG, JPEG, WebP or GIF image"


@given(st.sampled_from(KINDS), st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_is_decoded_or_refused(kind, at, damage):
    data = bytearray(picture(kind, size=(16, 16)))
    data[at : at + len(damage)] = damage
    with warnings.catch_warnings(action="ignore"):
        try:
            assert decoded(bytes(data)).mode == "RGB"
        except InvalidRequest as error:
            assert error.param == FIELD


@given(
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"RIFFxxxxWEBPVP8X", b"RIFFxxxxWEBPVP8L", b"GIF89a", b""]), st.binary(max_size=60)
)
def test_any_bytes_after_a_signature_are_decoded_or_refused(signature, rest):
    with warnings.catch_warnings(action="ignore"):
        try:
            decoded(signature + rest or b"x")
        except InvalidRequest as error:
            assert error.param == FIELD


# On an engine


def config(**more):
    return SimulatedConfig(**{"image_tokens": TOKENS, "time_scale": 0.0, **more})


@pytest.fixture
async def manager():
    async with EngineManager(SimulatedEngine(config()), ManagerConfig(drain_timeout=1)) as manager:
        yield manager


async def test_an_image_s_tokens_count_as_the_prompt_s(manager):
    assert manager.info.max_images == MAX_IMAGES
    text = await manager.generate(asking(), max_tokens=4, temperature=0)
    one = await manager.generate(asking(Image(RED)), max_tokens=4, temperature=0)
    two = await manager.generate(asking(Image(RED), part(BLUE)), max_tokens=4, temperature=0)
    assert one.usage.prompt_tokens == text.usage.prompt_tokens + TOKENS
    assert two.usage.prompt_tokens == text.usage.prompt_tokens + 2 * TOKENS
    tokenized = await manager.tokenize(GenerationRequest(messages=asking(Image(RED))))
    assert len(tokenized.token_ids) == one.usage.prompt_tokens


async def test_answers_depend_on_the_image(manager):
    red, again, blue = [await manager.generate(asking(Image(data)), max_tokens=9, temperature=0) for data in (RED, RED, BLUE)]
    assert red.text == again.text != blue.text


async def test_a_model_without_images_says_so():
    async with EngineManager(SimulatedEngine(config(image_tokens=0))) as manager:
        for call in (manager.generate, manager.embed):
            with pytest.raises(InvalidRequest, match="the model takes no images") as caught:
                await call(asking(Image(RED)))
            assert caught.value.param == "messages[0].content[1]"
        with pytest.raises(InvalidRequest, match="the model takes no images"):
            await manager.tokenize(GenerationRequest(messages=asking(Image(RED))))


async def test_a_model_may_take_fewer_images(manager):
    class FewImages(SimulatedEngine):
        @property
        def info(self):
            return attrs.evolve(super().info, max_images=1)

    async with EngineManager(FewImages(config())) as manager:
        await manager.generate(asking(Image(RED)), max_tokens=1)
        with pytest.raises(InvalidRequest, match="messages has 2 images, but the model takes at most 1"):
            await manager.generate(asking(*[Image(RED)] * 2), max_tokens=1)


async def test_images_cannot_be_truncated(manager):
    with pytest.raises(InvalidRequest, match="truncate_prompt_tokens cannot be combined with images"):
        await manager.generate(asking(Image(RED)), truncate_prompt_tokens=9)


async def test_an_engine_s_death_does_not_lose_an_image():
    engine = SimulatedEngine(config(faults=[Fault(step=1, kind="die")]))
    async with EngineManager(engine, ManagerConfig(restart=RestartConfig(most=5, first_pause=0.01))) as manager:
        first, again = [await manager.generate(asking(Image(RED)), max_tokens=4, temperature=0) for _ in range(2)]
        assert manager.statistics().restarts == 1
        assert (first.text, first.usage.prompt_tokens) == (again.text, again.usage.prompt_tokens)


async def test_each_engine_of_a_pool_takes_images():
    async with EngineManager([SimulatedEngine(config(max_num_seqs=1)) for _ in range(2)]) as manager:
        found = []

        async def ask():
            found.append(await manager.generate(asking(Image(RED)), max_tokens=9, temperature=0))

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(ask)
        assert len({one.text for one in found}) == 1


@attrs.define
class Gate:
    """Counts the images that are being read, and lets them go on when it is open."""

    opened: threading.Event = attrs.field(factory=threading.Event)
    inside: int = 0
    most: int = 0


@attrs.frozen
class SlowImage(Image):
    """An image whose reading takes until a gate is open. On the event loop that would never be."""

    gate: Gate = attrs.field(factory=Gate, kw_only=True)

    def read(self):
        self.gate.inside += 1
        self.gate.most = max(self.gate.most, self.gate.inside)
        assert self.gate.opened.wait(60)
        self.gate.inside -= 1
        return self.data


async def until(condition):
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.001)


@pytest.mark.parametrize(("cpus", "at_once"), [(1, 1), (2, 1), (3, 2), (64, 2)])
def test_decoding_leaves_a_cpu_to_the_event_loop(cpus, at_once):
    assert ImageDecoder(cpus).at_once == at_once


async def test_the_pixels_are_freed_when_the_request_has_them_no_more():
    decoder = ImageDecoder()
    with anyio.CancelScope() as scope:
        async with decoder.decoded([(FIELD, Image(RED))], "a") as found:
            kept = weakref.ref(found[0].pixels)
            scope.cancel()
    assert found == []
    assert kept() is None


def test_memory_is_kept_for_the_next_image_unless_the_program_has_a_setting():
    before = Pixels.core.get_blocks_max()
    try:
        for own, after in ((0, KEPT_BLOCKS), (3, 3)):
            Pixels.core.set_blocks_max(own)
            decode(RED)
            assert Pixels.core.get_blocks_max() == after
    finally:
        Pixels.core.set_blocks_max(before)


async def test_images_are_read_in_a_few_threads_and_not_on_the_event_loop(manager):
    gate = Gate()
    async with anyio.create_task_group() as tasks:
        for _ in range(3 * AT_ONCE):
            tasks.start_soon(lambda: manager.generate(asking(SlowImage(RED, gate=gate)), max_tokens=1))
        await until(lambda: gate.inside == AT_ONCE and manager.statistics().tokenizing == 3 * AT_ONCE)
        # Requests without images do not wait for those with images.
        assert (await manager.generate(asking(), max_tokens=1)).usage.completion_tokens == 1
        gate.opened.set()
    assert gate.most == AT_ONCE


async def test_beyond_a_number_of_waiting_images_more_are_refused():
    gate, decoder, order = Gate(), ImageDecoder(), []

    async def ask(tenant, image=None):
        async with decoder.decoded([(FIELD, image or SlowImage(RED, gate=gate))], tenant):
            order.append(tenant)

    async with anyio.create_task_group() as tasks:
        for _ in range(decoder.at_once + MAX_OF_ONE):
            tasks.start_soon(ask, "flood")
        await until(lambda: gate.inside == decoder.at_once)
        for _ in range(MAX_WAITING - MAX_OF_ONE):
            with pytest.raises(Overloaded, match="too many images wait") as caught:
                await ask("flood")
            assert (caught.value.reason, caught.value.retry_after) == ("tokenizer_busy", 1.0)
            tasks.start_soon(ask, "other")
            await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="too many images wait"):
            await ask("third")
        gate.opened.set()
    # The other tenant's first image does not wait for all of the flood.
    assert order.index("other") <= 2 * decoder.at_once
    await ask("flood")


async def test_images_are_refused_while_others_hold_the_memory_and_a_tenant_may_hold_half():
    """A regression: what one tenant held refused the images of all others."""
    decoder, flood, other = ImageDecoder(max_held=100), Gate(), Gate()

    async def ask(tenant):
        async with decoder.decoded([(FIELD, Image(RED))], tenant) as found:
            return len(found)

    async def refused(tenant, words):
        with pytest.raises(Overloaded, match=words) as caught:
            await ask(tenant)
        assert (caught.value.reason, caught.value.retry_after) == ("tokenizer_busy", 1.0)

    decoder.hold(flood, 50, "flood")
    await refused("flood", "^the images of this tenant's other requests take its half of the memory for images; try again in 1.0 s$")
    assert await ask("other") == 1
    decoder.hold(other, 50, "other")
    await refused("third", "^the images of other requests take all memory for images; try again in 1.0 s$")
    del flood
    assert await ask("third") == 1
    assert await ask("flood") == 1


class Interrupted(str):
    """A tenant's name. Its look-up number `at` lets another thread run, as Python may between any two steps."""

    at = 0
    meanwhile: Any = None

    def __hash__(self):
        self.at -= 1
        if self.at == 0:
            thread = threading.Thread(target=self.meanwhile)
            thread.start()
            thread.join()
        return super().__hash__()


@pytest.mark.parametrize("at", [1, 2])
def test_bytes_that_another_thread_frees_while_more_are_held_are_counted(at):
    """A regression: the subtraction in the thread was lost in the addition, for as long as the process lived."""
    decoder, tenant, owners, last = ImageDecoder(max_held=100), Interrupted("a"), [Gate()], Gate()
    decoder.hold(owners[0], 40, tenant)
    tenant.at, tenant.meanwhile = at, owners.clear
    decoder.hold(last, 7, tenant)
    assert not owners
    assert decoder.held() == {"a": 7}
    del last
    assert not decoder.held()


async def test_the_choices_of_a_request_take_one_place_together():
    gate, decoder = Gate(), ImageDecoder()

    async def ask(image):
        async with decoder.decoded([(FIELD, image)], "a"):
            pass

    async with anyio.create_task_group() as tasks:
        shared = SlowImage(RED, gate=gate)
        for _ in range(decoder.at_once + MAX_OF_ONE + 1):
            tasks.start_soon(ask, shared)
        await until(lambda: gate.inside == decoder.at_once)
        for _ in range(decoder.at_once + MAX_OF_ONE - 1):
            tasks.start_soon(ask, SlowImage(RED, gate=gate))
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="too many images wait"):
            await ask(Image(RED))
        gate.opened.set()
    await ask(Image(RED))


def test_the_choices_of_a_request_have_the_same_images():
    body = {"model": "m", "n": 3, "messages": asking(part(RED))}
    requests = msgspec.convert(body, ChatRequest).generation_requests(Caller())
    assert len({id(image) for request in requests for _, image in images(request.messages)}) == 1


async def test_a_request_that_is_cancelled_meanwhile_leaves_nothing():
    audit, engine, gate = Audit(), AuditedEngine(config()), Gate()
    async with EngineManager(engine, ManagerConfig(drain_timeout=1), [audit]) as manager:
        tokens = [CancellationToken() for _ in range(2 * AT_ONCE)]
        ended = []

        async def ask(token):
            with pytest.raises(RequestCancelled):
                await manager.generate(asking(SlowImage(RED, gate=gate)), token=token)
            ended.append(token)

        async with anyio.create_task_group() as tasks:
            for token in tokens:
                tasks.start_soon(ask, token)
            await until(lambda: gate.inside == AT_ONCE and manager.statistics().tokenizing == len(tokens))
            for token in tokens:
                token.cancel("enough")
            # Those that wait for a thread leave at once.
            await until(lambda: len(ended) == AT_ONCE)
            gate.opened.set()
        check_quiescent(manager, audit)
        assert engine.added == 0
        for _ in range(2 * AT_ONCE):
            await manager.generate(asking(Image(RED)), max_tokens=1)
        check_quiescent(manager, audit)
