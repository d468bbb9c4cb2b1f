"""The wire format of OpenAI's Responses API, without I/O: a conversion from and to chats."""
