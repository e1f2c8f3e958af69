"""Where bytes come from: a local file today, whatever has a size and can be read in ranges.

source       the contract of a byte source, and the local file
"""
