"""From what a person has (a picture, a board, a molecule) to the tensors of a contract."""
