//! Lowering of a region to a straight-line program, small arrays held element by element.
