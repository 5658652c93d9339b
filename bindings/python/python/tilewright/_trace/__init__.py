"""Tracing: user functions run once on values that record what is done to them, as the text of a region.

`region` holds the text and its values, `elementwise` and `arrays` the operations, `operations` their names in PyTorch
and NumPy, `value` the operators. Nothing here knows of an array library; a front says in a `Library` what it must.
"""
