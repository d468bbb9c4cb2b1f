"""The texts of a page as HTML: head, verdicts, tiles, table and files. A run's texts are escaped."""
