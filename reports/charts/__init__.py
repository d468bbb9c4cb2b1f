"""The charts, one module per question.

Every function takes the content and returns a figure, or a text that says what is missing.
"""
