"""CUDA kernels of the project, in Triton: element-wise work of the U-Net that PyTorch does in several passes.

Between the matrix products of a transformer block such work takes a third of the time of a training step; it is bound
by memory alone. Every kernel computes in float32, and rounds once.
"""
