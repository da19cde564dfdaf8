"""One module a model of the book, each with the same skeleton."""
