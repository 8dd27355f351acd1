"""Recipes: an edit as a small YAML document that can be checked, run, and made of a record.

A recipe names one command and its options by their long names. :mod:`.document` reads the YAML,
:mod:`.command` holds what a command takes, :mod:`.recipe` (with :mod:`.listed`) checks one against
the other, and :mod:`.inputs` compares files with the SHA-256 they should have. :mod:`.from_record`
turns the record of an output into a recipe, with :mod:`.settings` for what nobody typed, and
:mod:`.text` writes it.
"""

__all__: list[str] = []
