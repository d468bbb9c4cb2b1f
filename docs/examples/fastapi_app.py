"""A FastAPI application with an engine inside: `uvicorn fastapi_app:app` in this folder.

The simulated engine answers at once and needs no model. `EngineManager.open("bundled")` is a real one (README, "Without a GPU").
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from llmserve import EngineManager, InvalidRequest, Overloaded, TokenStream


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with EngineManager.open(engine="simulated") as manager:
        app.state.manager = manager
        yield


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    prompt: str
    max_tokens: int = Field(default=64, ge=1)


def manager_of(request: Request) -> EngineManager:
    manager: EngineManager = request.app.state.manager
    return manager


Manager = Annotated[EngineManager, Depends(manager_of)]


@app.post("/answers")
async def answer(question: Question, manager: Manager) -> dict[str, object]:
    return (await manager.generate(question.prompt, max_tokens=question.max_tokens)).to_dict()


async def opened(question: Question, manager: Manager) -> AsyncIterator[TokenStream]:
    # FastAPI leaves it when the response has ended or its client has left. A refusal comes before the response, and so is a status.
    async with manager.stream(question.prompt, max_tokens=question.max_tokens) as stream:
        yield stream


@app.post("/streams")
async def stream(stream: Annotated[TokenStream, Depends(opened)]) -> StreamingResponse:
    return StreamingResponse((delta.text async for delta in stream), media_type="text/plain")


@app.exception_handler(Overloaded)
async def overloaded(request: Request, error: Overloaded) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 503, {"Retry-After": str(max(1, round(error.retry_after)))})


@app.exception_handler(InvalidRequest)
async def invalid(request: Request, error: InvalidRequest) -> JSONResponse:
    return JSONResponse({"error": str(error), "field": error.param}, 400)
