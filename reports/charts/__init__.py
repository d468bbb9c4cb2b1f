"""The charts, a module for each question. Every function takes the content, and returns a figure, or in words what is missing."""
