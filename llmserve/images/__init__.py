"""Images in conversations: their parts of messages, the bounds on them, and their decoding."""
