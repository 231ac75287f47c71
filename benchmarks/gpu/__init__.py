"""Every pass on an NVIDIA GPU: `python -m benchmarks.gpu`; `__main__` says how, and `work` what is done to each model.

fcn         one pass over a large image against every window; and the native size, where nothing should change
separable   planted low rank against the original; what a pass that trades needs is in `traded`
"""
