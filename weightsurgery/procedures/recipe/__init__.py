"""Recipes: an edit as a small YAML document that can be checked, run, and made from a record.

A recipe names one command and its options by their long names. :mod:`.document` reads the YAML,
:mod:`.command` holds the options of a command, :mod:`.recipe` checks one against the other, and
:mod:`.checks` compares files with the SHA-256 that the recipe lists. :mod:`.from_record` turns the
record of an output into a recipe, with :mod:`.settings` for options that nobody typed, and
:mod:`.text` writes it.
"""

__all__: list[str] = []
