"""Schemathesis against our server and its OpenAPI document, with an API key: `tox run -e fuzz`.

No generated request gets a 500, and every answer has a status, a type and a shape of the document.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from frontends.access.api_keys import add_key

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance", "unsupported_method", "ignored_auth",
)  # fmt: skip
EXAMPLES = 700
# A deadline of 1e-300 s cannot be met, so it is refused with 503 or ends with 504. No other answer
# may be a server error.
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]
"""
SERVER = [sys.executable, "-m", "frontends.aiohttp_app", "--engine", "simulated", "--engine-arg", "time_scale=0", "--port", "0"]


def main():
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder, "keys.toml")
        key = add_key(keys, "fuzz", {})
        server = subprocess.Popen([*SERVER, "--model", "sim", "--api-keys", str(keys)], stderr=subprocess.PIPE, text=True)
        try:
            url = None
            for line in server.stderr:
                url = url or re.search(r"http://\S+", line)
                if "  ready  " in line:
                    break
            config = Path(folder, "schemathesis.toml")
            config.write_text(CONFIG)
            command = [
                str(Path(sys.executable).with_name("schemathesis")),
                "--config-file",
                str(config),
                "run",
                f"{url[0]}/openapi.json",
                "--mode",
                "all",
            ]
            command += ["--header", f"Authorization: Bearer {key}", "--checks", ",".join(CHECKS), "--max-examples", str(EXAMPLES)]
            found = subprocess.run(command, check=False, cwd=folder)
            alive = server.poll() is None
        finally:
            server.terminate()
            server.wait(30)
    sys.exit(found.returncode or int(not alive))


if __name__ == "__main__":
    main()
