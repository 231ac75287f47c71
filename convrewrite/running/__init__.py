"""ONNX Runtime: sessions, the inputs that they are given, and whose fault it is where they fail."""
