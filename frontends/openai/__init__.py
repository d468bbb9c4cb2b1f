"""The wire format of OpenAI's API, without I/O."""
