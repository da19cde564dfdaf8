"""The proof that the rows of an ONNX graph are independent: sizes, values, rules of operations, and the walk."""
