"""How each built-in model was made: data, recipe, evaluation. Not part of the wheel."""
