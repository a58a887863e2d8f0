"""Kernels in C for models of the Llama shape: how they are compiled, found and called, and how weights are packed for
them. The sources beside this file are plain C11; nothing else is needed to build them than a C compiler.
"""
