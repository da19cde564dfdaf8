"""Tic-tac-toe (chapter 8): rules, games, the tree of all positions, and the A3C training."""
