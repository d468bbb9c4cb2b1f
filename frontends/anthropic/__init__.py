"""The wire format of Anthropic's Messages API, without I/O: a conversion from and to chats."""
