"""The field's yardstick: TOFU's scores of unlearning, as open-unlearning defines them.

``formulas`` is arithmetic; ``sets`` scores one model on one set; ``yardstick`` puts the
scores of a checkpoint together, beside those of a model that never saw what is to be forgotten.
"""

__all__: list[str] = []
