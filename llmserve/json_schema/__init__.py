"""The enforceable part of JSON Schema, in the form that xgrammar accepts."""
