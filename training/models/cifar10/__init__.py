"""CIFAR-10 (chapter 9): the book's network and a modern one."""
