"""What passes are built from: the contract, the graph and its constants, layers, axes, windows, fields and costs.

Nothing here knows a command, a file or ONNX Runtime.
"""
