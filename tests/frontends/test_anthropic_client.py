"""The unmodified Anthropic client against the simulated engine; tests/vllm has the real engine."""

from contracts.anthropic_contract import AnthropicContract


class TestAnthropic(AnthropicContract):
    """The whole contract on the simulated engine."""
