"""Calls a server with Python clients of others; prints one line for each call.

    python python_clients.py URL MODEL [embeddings]

The packages are those of `run.py`.
"""

import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import instructor
import litellm
import openai
import pydantic
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

URL, MODEL, *KIND = sys.argv[1:]
QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": QUESTION}]


class Place(pydantic.BaseModel):
    """A structured answer."""

    city: str = pydantic.Field(max_length=12)


@tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


def langchain_chat(**options: Any) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, base_url=f"{URL}/v1", api_key="none", max_tokens=60, **options)


def langchain_streams(model: Any) -> list[str]:
    return [model.invoke(QUESTION).text, "".join(chunk.text for chunk in model.stream(QUESTION))]


def lite(model: str, **options: Any) -> str:
    answer = litellm.completion(model=f"{model}/{MODEL}", api_key="none", messages=MESSAGES, max_tokens=12, **options)
    return answer.choices[0].message.content


def lite_stream() -> str:
    chunks = litellm.completion(
        model=f"openai/{MODEL}", api_base=f"{URL}/v1", api_key="none", messages=MESSAGES, max_tokens=12, stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def instructed(mode: instructor.Mode) -> Place:
    client = instructor.from_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key="none"), mode=mode)
    return client.chat.completions.create(model=MODEL, messages=MESSAGES, response_model=Place, max_tokens=60, max_retries=1)


def llm_command(*options: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        model = f"- model_id: served\n  model_name: {MODEL}\n  api_base: {URL}/v1\n"
        pathlib.Path(folder, "extra-openai-models.yaml").write_text(model)
        command = [str(pathlib.Path(sys.executable).parent / "llm"), "-m", "served", "--key", "none", *options, QUESTION]
        return subprocess.run(command, env={"LLM_USER_PATH": folder}, check=True, capture_output=True, text=True).stdout.strip()


def embedded(provider: str) -> int:
    found = litellm.embedding(f"{provider}/{MODEL}", input=[QUESTION], api_base=f"{URL}/v1", api_key="none")
    return len(found.data[0]["embedding"])


CALLS: dict[str, Callable[[], Any]] = {
    "LangChain, chat: whole and streamed": lambda: langchain_streams(langchain_chat()),
    "LangChain, chat: a batch": lambda: [answer.text for answer in langchain_chat().batch([QUESTION, "Hello"])],
    "LangChain, chat: a structured answer": lambda: langchain_chat().with_structured_output(Place).invoke(QUESTION),
    "LangChain, chat: a tool": lambda: (
        langchain_chat().bind_tools([weather], tool_choice="weather").invoke("Weather in Rome?").tool_calls[0]["name"]
    ),
    "LangChain, responses: whole and streamed": lambda: langchain_streams(langchain_chat(use_responses_api=True)),
    "LangChain, messages: whole and streamed": lambda: langchain_streams(
        ChatAnthropic(model=MODEL, base_url=URL, api_key="none", max_tokens=20)
    ),
    "LiteLLM, chat as `openai`": lambda: lite("openai", api_base=f"{URL}/v1"),
    "LiteLLM, chat as `hosted_vllm`": lambda: lite("hosted_vllm", api_base=f"{URL}/v1"),
    "LiteLLM, messages as `anthropic`": lambda: lite("anthropic", api_base=URL),
    "LiteLLM, chat streamed": lite_stream,
    "LiteLLM, completions": lambda: (
        litellm.text_completion(
            model=f"text-completion-openai/{MODEL}", api_base=f"{URL}/v1", api_key="none", prompt="One, two,", max_tokens=4
        )
        .choices[0]
        .text
    ),
    "LiteLLM, responses": lambda: (
        litellm.responses(model=f"openai/{MODEL}", api_base=f"{URL}/v1", api_key="none", input=QUESTION, max_output_tokens=12).output_text
    ),
    "instructor, tools": lambda: instructed(instructor.Mode.TOOLS),
    "instructor, JSON schema": lambda: instructed(instructor.Mode.JSON_SCHEMA),
    "llm, streamed": llm_command,
    "llm, whole": lambda: llm_command("--no-stream"),
}

# LangChain would download the tokenizer of OpenAI's models.
VECTORS: dict[str, Callable[[], Any]] = {
    "LangChain, embeddings": lambda: len(
        OpenAIEmbeddings(model=MODEL, base_url=f"{URL}/v1", api_key="none", check_embedding_ctx_length=False).embed_query(QUESTION)
    ),
    "LiteLLM, embeddings as `openai`": lambda: embedded("openai"),
    "LiteLLM, embeddings as `hosted_vllm`": lambda: embedded("hosted_vllm"),
    "LiteLLM, rerank as `cohere`": lambda: litellm.rerank(
        f"cohere/{MODEL}", query=QUESTION, documents=["It is Paris.", "Rain is water."], top_n=1, api_base=URL, api_key="none"
    ).results[0]["index"],
}

if __name__ == "__main__":
    for name, call in (VECTORS if KIND else CALLS).items():
        try:
            print(f"ok | {name} | {str(call())[:90]!r}", flush=True)
        except Exception as error:
            print(f"failed | {name} | {type(error).__name__}: {str(error)[:300]!r}", flush=True)
