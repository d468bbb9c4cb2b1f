"""The part of JSON Schema that an answer can be held to, in the form that grammars of structured outputs take."""
