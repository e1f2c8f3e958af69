"""The GPU backend: Triton kernels, and their launchers on torch tensors.

launch       fits and extrapolations of tensors on the device
prepare      tensors, block sizes, tables
bits         bits and numbers in a kernel
sums         one group of frames in registers
frames       the kernels that read frames
solve        from sums to lines
extrapolate  new checkpoints, rounded once
worker       what one worker has on a device: a stream, pinned memory
"""
