"""Runs blocks of Python on the simulated engine, each after what a page says around it: `snippets.py < blocks.json`."""

import ast
import asyncio
import contextlib
import inspect
import json
import sys
from types import CodeType
from typing import Any

import msgspec
from fastapi import FastAPI
from pydantic import BaseModel

import llmserve
from llmserve import CancellationToken, EngineManager, GenerationRequest, Sampling


class Question(BaseModel):
    prompt: str


async def run(code: CodeType, name: str) -> None:
    async with EngineManager.open() as manager:
        names: dict[str, Any] = {key: value for key, value in vars(llmserve).items() if not key.startswith("_")}
        names |= {"json": json, "msgspec": msgspec, "app": FastAPI(), "Question": Question, "prompt": "Hello", "__name__": name}
        names |= {"manager": manager, "request": GenerationRequest("Hello"), "sampling": Sampling(max_tokens=4)}
        names |= {"token": CancellationToken(), "completion": await manager.generate("Hello", max_tokens=4, logprobs=1)}
        with contextlib.redirect_stdout(sys.stderr):
            ended = eval(code, names)
            if inspect.isawaitable(ended):
                await ended


for block in json.load(sys.stdin):
    # Top-level await, as in a notebook.
    asyncio.run(run(compile(block["text"], block["name"], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), block["name"]))
